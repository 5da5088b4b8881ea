/**
 * Time at work: what passes between two actions, but no more than the idle limit, and nothing while the page is hidden.
 */
export class WorkClock {
  /**
   * @param {number} idleSeconds
   * @param {() => boolean} isPaused whether what passes now is no work
   */
  constructor(idleSeconds, isPaused) {
    this.limit = idleSeconds * 1000;
    this.isPaused = isPaused;
    this.total = 0; // milliseconds at work since the page was opened
    this.last = performance.now();
    for (const event of ["pointermove", "pointerdown", "keydown", "wheel", "input"]) {
      addEventListener(event, () => this.tick(), { capture: true, passive: true });
    }
    document.addEventListener("visibilitychange", () => this.tick(!document.hidden));
  }

  /**
   * Count the time up to now; call it at an action.
   * @param {boolean} wasAway leaves it out
   * @returns {number} milliseconds at work
   */
  tick(wasAway = false) {
    const now = performance.now();
    if (!wasAway && !this.isPaused()) this.total += Math.min(now - this.last, this.limit);
    this.last = now;
    return this.total;
  }
}
