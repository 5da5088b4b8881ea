/**
 * How images are looked at: window, zoom and place. Two images of a pair share one.
 */

const MOST_ZOOM = 32;

export class Viewport {
  constructor() {
    this.listeners = new Set();
    this.reset({ low: 0, high: 255, bits: 8 });
  }

  /** As a new image is shown at first. @param {any} image of the set */
  reset(image) {
    this.image = image;
    this.top = 2 ** image.bits - 1;
    this.low = image.low;
    this.high = image.high;
    this.fit();
  }

  changed() {
    for (const listener of this.listeners) listener();
  }

  // --- place ---------------------------------------------------------------------------------------------------------

  /** The whole image, as large as there is room. */
  fit() {
    this.zoom = 1; // of the size that fits
    this.x = this.y = 0; // of the image's middle from the canvas's, as parts of the size that fits
    this.changed();
  }

  /** @param {number} factor @param {number} x where it stays, as `this.x` */
  zoomBy(factor, x = 0, y = 0) {
    const zoom = Math.min(MOST_ZOOM, Math.max(0.25, this.zoom * factor));
    const by = zoom / this.zoom;
    this.moveTo(x + (this.x - x) * by, y + (this.y - y) * by, zoom);
  }

  moveTo(x, y, zoom = this.zoom) {
    this.zoom = zoom;
    const most = Math.max(0.5, zoom / 2);
    this.x = Math.min(most, Math.max(-most, x));
    this.y = Math.min(most, Math.max(-most, y));
    this.changed();
  }

  // --- window --------------------------------------------------------------------------------------------------------

  get range() {
    return Math.max(1, this.image.high - this.image.low);
  }

  /** @param {number} low level shown as black @param {number} high shown as white */
  setWindow(low, high) {
    const width = Math.max(1, Math.min(high - low, 2 * this.top));
    const centre = Math.min(this.top, Math.max(0, (low + high) / 2));
    this.low = centre - width / 2; // not rounded: many small steps of a drag add up
    this.high = centre + width / 2;
    this.changed();
  }

  /** Brighter and with more contrast, as parts of the range of the image. */
  adjust(brighter, contrast) {
    const width = (this.high - this.low) * 2 ** -contrast;
    const centre = (this.low + this.high) / 2 - brighter * this.range;
    this.setWindow(centre - width / 2, centre + width / 2);
  }

  resetWindow() {
    this.low = this.image.low;
    this.high = this.image.high;
    this.changed();
  }

  /** @param {any} preset of a checklist; false if it does not apply to this image */
  applies(preset) {
    return preset.unit === "%" || preset.unit === this.image.unit;
  }

  choose(preset) {
    const { low, high, offset } = this.image;
    if (preset.unit !== "%") return this.setWindow(preset.low - offset, preset.high - offset);
    const at = (part) => low + ((high - low) * part) / 100;
    return this.setWindow(at(preset.low), at(preset.high));
  }

  /** The window in whole levels, as answers have it. */
  get window() {
    const low = Math.round(this.low);
    return { low, high: Math.max(low + 1, Math.round(this.high)) };
  }

  /** The window as centre and width, in the image's unit if it has one. */
  get text() {
    const { offset, unit } = this.image;
    const centre = Math.round((this.low + this.high) / 2) + offset;
    return `Level ${centre}, width ${Math.round(this.high - this.low)}${unit ? ` ${unit}` : ""}`;
  }
}
