/**
 * The images of the page by name: decoded when they are asked for, and a few kept.
 */
import { decodePng } from "./png.js";

const KEPT = 12;

export class Images {
  constructor() {
    /** @type {Map<string, Promise<import("./png.js").Levels>>} */
    this.decoded = new Map();
  }

  /**
   * @param {string} name
   * @returns {Promise<import("./png.js").Levels>}
   */
  get(name) {
    const known = this.decoded.get(name) ?? loadImage(name);
    this.decoded.delete(name); // to the end: the newest are kept
    this.decoded.set(name, known);
    for (const oldest of this.decoded.keys()) {
      if (this.decoded.size <= KEPT) break;
      this.decoded.delete(oldest);
    }
    return known;
  }
}

async function loadImage(name) {
  const text = (await imageElement(name)).textContent;
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return decodePng(bytes);
}

/** The element with an image's data, which of a large page may still be on its way. */
async function imageElement(name) {
  const find = () => document.getElementById(`image-${name}`);
  while (!find() && document.readyState === "loading") await new Promise((later) => setTimeout(later, 20));
  const found = find();
  if (!found) throw new Error("This file is damaged: an image is missing. Ask for it again.");
  return found;
}
