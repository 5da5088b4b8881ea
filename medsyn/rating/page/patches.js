/**
 * The display check: greys from black to white, and two fields whose faint squares differ from them by 5 %.
 */
import { byId } from "./dom.js";

const STEPS = 11;
const FAINT = 0.05;

/** Draw the check; again whenever the page's size has changed. */
export function drawPatches() {
  const canvas = byId("patches");
  const ratio = devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const fill = (share, ...box) => {
    const grey = Math.round(255 * share);
    context.fillStyle = `rgb(${grey} ${grey} ${grey})`;
    context.fillRect(...box);
  };
  const [row, half] = [height * 0.4, width / 2];
  for (let step = 0; step < STEPS; step++) fill(step / (STEPS - 1), (width * step) / STEPS, 0, width / STEPS + 1, row);
  const side = (height - row) * 0.4;
  const top = row + (height - row - side) / 2;
  for (const [background, square, left] of [
    [0, FAINT, 0],
    [1, 1 - FAINT, half],
  ]) {
    fill(background, left, row, half, height - row);
    fill(square, left + (half - side) / 2, top, side, side);
  }
}

/** What the browser knows of the screen. */
export function screenSize() {
  return { width: innerWidth, height: innerHeight, ratio: Math.round(100 * (devicePixelRatio || 1)) };
}
