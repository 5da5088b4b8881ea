/**
 * SHA-256 of a text. The browser's own is asynchronous, and not there in every page from disk.
 */

const ROUND_CONSTANTS = primeRoots(64, 1 / 3);
const FIRST_STATE = primeRoots(8, 1 / 2);

/**
 * The first 32 bits of the fractional parts of roots of the first primes.
 * @param {number} count
 * @param {number} power
 * @returns {Uint32Array}
 */
function primeRoots(count, power) {
  const roots = new Uint32Array(count);
  for (let number = 2, found = 0; found < count; number++) {
    let isPrime = true;
    for (let divisor = 2; divisor * divisor <= number; divisor++) isPrime &&= number % divisor !== 0;
    if (isPrime) roots[found++] = (number ** power % 1) * 2 ** 32;
  }
  return roots;
}

/**
 * @param {string} text
 * @returns {Uint8Array} 32 bytes
 */
export function sha256(text) {
  const message = new TextEncoder().encode(text);
  const padded = new Uint8Array(((message.length + 8) >> 6) * 64 + 64);
  padded.set(message);
  padded[message.length] = 0x80;
  const view = new DataView(padded.buffer);
  view.setUint32(padded.length - 8, Math.floor(message.length / 2 ** 29));
  view.setUint32(padded.length - 4, message.length << 3);
  const state = FIRST_STATE.slice();
  const words = new Uint32Array(64);
  for (let start = 0; start < padded.length; start += 64) {
    for (let i = 0; i < 16; i++) words[i] = view.getUint32(start + 4 * i);
    for (let i = 16; i < 64; i++) {
      const s0 = rotated(words[i - 15], 7) ^ rotated(words[i - 15], 18) ^ (words[i - 15] >>> 3);
      const s1 = rotated(words[i - 2], 17) ^ rotated(words[i - 2], 19) ^ (words[i - 2] >>> 10);
      words[i] = words[i - 16] + s0 + words[i - 7] + s1;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const sum1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
      const first = (h + sum1 + ((e & f) ^ (~e & g)) + ROUND_CONSTANTS[i] + words[i]) | 0;
      const sum0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
      const second = (sum0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + first) | 0, c, b, a, (first + second) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] += value));
  }
  const digest = new Uint8Array(32);
  const output = new DataView(digest.buffer);
  state.forEach((value, i) => output.setUint32(4 * i, value));
  return digest;
}

/**
 * @param {number} value
 * @param {number} by
 * @returns {number} 32 bits, rotated to the right
 */
function rotated(value, by) {
  return (value >>> by) | (value << (32 - by));
}

/**
 * @param {string} text
 * @returns {string} 64 hex digits
 */
export function sha256Hex(text) {
  return Array.from(sha256(text), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
