/**
 * A rater's session: where they are, what they have said, and that it is kept. Nothing here knows the screen.
 */
import { orderFor } from "./order.js";

export const LONGEST_NOTE = 2000;

/**
 * @typedef {Object} Said what a rater has said of a case or a pair; an answer has a time
 * @property {string} item
 * @property {number | null} rating
 * @property {string | null} choice
 * @property {boolean} not_sure
 * @property {string[]} defects
 * @property {number | null} confidence
 * @property {string} note
 * @property {number} milliseconds
 * @property {string | null} answered_at
 * @property {number} serial
 * @property {number} changes
 * @property {{low: number, high: number} | null} window
 * @property {number} zoom per cent
 */

/** @param {string} item @returns {Said} */
function nothingSaid(item) {
  return {
    item,
    rating: null,
    choice: null,
    not_sure: false,
    defects: [],
    confidence: null,
    note: "",
    milliseconds: 0,
    answered_at: null,
    serial: 0,
    changes: 0,
    window: null,
    zoom: 100,
  };
}

const prefixOf = (set, rater) => `${set.hash}/${rater}/`;
const sessionKey = (set, rater) => `sessions/${set.hash}/${rater}`;

/**
 * The sessions that this computer has of a set.
 * @param {import("./store.js").Store} store
 * @param {any} set
 * @returns {Promise<{rater: {id: string, expert_level: number}, answered: number, last: string}[]>} the newest first
 */
export async function earlierSessions(store, set) {
  const found = await store.list(`sessions/${set.hash}/`);
  return found.sort((one, other) => (one.last < other.last ? 1 : -1));
}

export class Session {
  /**
   * @param {import("./store.js").Store} store
   * @param {any} set
   * @param {any} about as it is kept: rater, started_at, display, position, ...
   * @param {Said[]} said
   */
  constructor(store, set, about, said) {
    this.store = store;
    this.set = set;
    this.about = about;
    this.turns = orderFor(set, about.rater.id);
    /** @type {Map<string, Said>} */
    this.said = new Map(said.map((one) => [one.item, one]));
    this.position = Math.min(about.position, this.turns.length);
  }

  /**
   * Open a rater's session; one that is new is kept from now on.
   * @param {import("./store.js").Store} store
   * @param {any} set
   * @param {{id: string, expert_level: number}} rater
   */
  static async open(store, set, rater) {
    const known = await store.get(sessionKey(set, rater.id));
    const now = new Date().toISOString();
    const display = { dark_patch: null, bright_patch: null, light: null, width: 0, height: 0, ratio: 100 };
    const fresh = { rater, started_at: now, last: now, position: 0, serial: 0, answered: 0, display, prepared: false };
    const about = { ...(known ?? fresh), rater };
    const session = new Session(store, set, about, await store.list(prefixOf(set, rater.id)));
    await session.keep();
    return session;
  }

  get turn() {
    return this.turns[this.position];
  }

  get isAtEnd() {
    return this.position >= this.turns.length;
  }

  get answered() {
    let count = 0;
    for (const one of this.said.values()) if (one.answered_at) count++;
    return count;
  }

  /** @param {string} item @returns {Said} */
  of(item) {
    return this.said.get(item) ?? nothingSaid(item);
  }

  /** What has been said of the present turn. */
  get here() {
    return this.of(this.turn.item);
  }

  /** Where an answer is still missing, from a place on and then from the start; the end if there is none. */
  nextOpen(from) {
    const places = [...this.turns.keys()];
    const wanted = [...places.slice(from), ...places.slice(0, from)];
    return wanted.find((place) => !this.of(this.turns[place].item).answered_at) ?? this.turns.length;
  }

  /**
   * Answer the present turn, and go on.
   * @param {{rating?: number, choice?: string, not_sure?: boolean}} answer
   * @param {{milliseconds: number, window: any, zoom: number}} seen
   */
  async answer(answer, seen) {
    const before = this.here;
    const serial = this.about.serial + 1;
    const changes = before.changes + (before.answered_at ? 1 : 0);
    const milliseconds = before.milliseconds + seen.milliseconds;
    const plain = { rating: null, choice: null, not_sure: false };
    const at = { answered_at: new Date().toISOString(), serial, changes };
    this.said.set(before.item, { ...before, ...plain, ...answer, ...seen, milliseconds, ...at });
    this.about.serial = serial;
    const next = this.position + 1;
    this.position = next < this.turns.length ? next : this.nextOpen(0);
    await this.keep(before.item);
  }

  /** Take back the answer that was given last, and go there; false if there is none. */
  async takeBack() {
    let last = null;
    for (const one of this.said.values()) if (one.answered_at && one.serial > (last?.serial ?? -1)) last = one;
    if (!last) return false;
    const taken = { rating: null, choice: null, not_sure: false, answered_at: null, changes: last.changes + 1 };
    this.said.set(last.item, { ...last, ...taken });
    this.position = this.turns.findIndex((turn) => turn.item === last.item);
    await this.keep(last.item);
    return true;
  }

  /** Say something beside the answer: defects, confidence, a note. */
  async remark(item, remark) {
    this.said.set(item, { ...this.of(item), ...remark });
    await this.keep(item);
  }

  /** Go elsewhere without an answer. */
  async goTo(position, milliseconds = 0) {
    const left = this.isAtEnd ? null : this.turn.item;
    if (left && milliseconds > 0) {
      const one = this.of(left);
      this.said.set(left, { ...one, milliseconds: one.milliseconds + milliseconds });
    }
    this.position = Math.max(0, Math.min(position, this.turns.length));
    await this.keep(...(left && milliseconds > 0 ? [left] : []));
  }

  /** Keep what has changed; all of it or nothing. */
  async keep(...items) {
    const { about, set } = this;
    Object.assign(about, { position: this.position, last: new Date().toISOString(), answered: this.answered });
    const records = { [sessionKey(set, about.rater.id)]: about };
    for (const item of items) records[prefixOf(set, about.rater.id) + item] = this.said.get(item);
    await this.store.put(structuredClone(records));
  }
}
