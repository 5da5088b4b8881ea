/**
 * Elements: found by name, made without HTML (texts of a set can never be markup), and heard.
 */

/** @param {string} id @returns {any} the element; it is in page.html */
export const byId = (id) => document.getElementById(id);

/**
 * @param {string} tag
 * @param {Record<string, any>} properties of the element; `text`, `data` and attributes with a dash are understood
 * @param {(Node | string)[]} children
 * @returns {any}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Show one of the screens, and go to its heading. */
export function showScreen(name) {
  for (const screen of document.querySelectorAll("[data-screen]")) screen.hidden = screen.dataset.screen !== name;
  document.body.dataset.shown = name;
  scrollTo(0, 0);
  const focus = document.querySelector(`[data-screen="${name}"] [data-first]`);
  focus?.focus({ preventScroll: true });
}

export const shownScreen = () => document.body.dataset.shown;

/** Tell screen readers. */
export function announce(text) {
  byId("live").textContent = text;
}

/** Show what went wrong, on any screen. */
export function showError(text) {
  byId("error").textContent = text;
  byId("error").hidden = !text;
}

/** @param {number} milliseconds */
export function minutesText(milliseconds) {
  const minutes = Math.round(milliseconds / 60_000);
  return minutes < 1 ? "less than a minute" : minutes === 1 ? "1 minute" : `${minutes} minutes`;
}
