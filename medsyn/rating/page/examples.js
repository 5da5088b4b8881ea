/**
 * What 1, 2 and 3 mean: in words, and with images where the set has some.
 */
import { byId, make } from "./dom.js";
import { Viewer } from "./viewer.js";
import { Viewport } from "./viewport.js";

export const RATINGS = [
  { rating: 1, name: "Poor", text: "Wrong anatomy or bad quality: it should not be used." },
  { rating: 2, name: "Acceptable", text: "Plausible, with defects that do not mislead." },
  { rating: 3, name: "Excellent", text: "Could be a good real image, and shows what the text says." },
];

/**
 * Show the examples of some modalities in an element.
 * @param {HTMLElement} place
 * @param {any} set
 * @param {import("./images.js").Images} images
 * @param {string[]} modalities
 */
export function showExamples(place, set, images, modalities) {
  const alike = set.examples.filter((one) => modalities.includes(one.modality));
  const examples = alike.length ? alike : set.examples;
  const columns = RATINGS.map(({ rating, name, text }) => {
    const shown = examples.filter((one) => one.rating === rating).map((one) => figure(set, images, one));
    const none = shown.length === 0 && examples.length > 0 ? [make("p", { className: "hint", text: "No example." })] : [];
    const heading = make("h2", {}, make("b", { className: "grade", text: String(rating) }), ` ${name}`);
    return make("div", { className: "example" }, heading, make("p", { text }), ...shown, ...none);
  });
  place.replaceChildren(make("div", { className: "examples" }, ...columns));
}

function figure(set, images, { image, modality, rating }) {
  const name = `An example of ${rating}, ${modality}`;
  const canvas = make("canvas", { role: "img", "aria-label": name });
  const viewport = new Viewport();
  viewport.reset(set.images[image]);
  const viewer = new Viewer(canvas, viewport, false);
  images.get(image).then((levels) => viewer.show(levels));
  return make("figure", {}, canvas, make("figcaption", { text: modality }));
}

/** The dialog, for the modality of the present image. */
export function openExamples(set, images, modality) {
  showExamples(byId("examples-here"), set, images, [modality]);
  byId("examples").showModal();
}
