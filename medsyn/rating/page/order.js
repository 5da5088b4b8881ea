/**
 * The order in which a rater sees a set. `order.py` computes the same; docs/rating.md tells how.
 */
import { sha256 } from "./sha256.js";

/**
 * @typedef {{item: string, shown: string[], caption: string, isPair: boolean}} Turn
 * One thing that a rater is asked: the name of a case or a pair, and its images from left to right.
 */

/**
 * All cases, then all pairs, in the order of a rater.
 * @param {any} set
 * @param {string} rater
 * @returns {Turn[]}
 */
export function orderFor(set, rater) {
  const below = numbers(`${set.seed}:${rater}`);
  const first = below(set.sections);
  const turns = dealt(set.cases, set.sections, first, below).map((one) => turnOf(one, [one.image], false));
  for (const pair of dealt(set.pairs, set.sections, first, below)) {
    const shown = below(2) === 0 ? [...pair.images] : [...pair.images].reverse();
    turns.push(turnOf(pair, shown, true));
  }
  return turns;
}

/** @returns {Turn} */
function turnOf(item, shown, isPair) {
  return { item: item.id, shown, caption: item.caption, isPair };
}

/** The items, section by section from `first` on, each section shuffled. */
function dealt(items, sections, first, below) {
  const all = [];
  for (let number = 0; number < sections; number++) {
    const section = items.filter((item) => item.section === (first + number) % sections);
    for (let last = section.length - 1; last > 0; last--) {
      const other = below(last + 1);
      [section[last], section[other]] = [section[other], section[last]];
    }
    all.push(...section);
  }
  return all;
}

/**
 * mulberry32, seeded by a text.
 * @param {string} text
 * @returns {(count: number) => number} draws a number from 0 to count - 1
 */
function numbers(text) {
  let state = new DataView(sha256(text).buffer).getInt32(0);
  return (count) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) * count) / 2 ** 32);
  };
}
