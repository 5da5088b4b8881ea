/**
 * PNG files as levels, with all their bits: the browser's own decoder gives eight, and may change colours.
 * Only what the exporter writes is read: grey of 8 or 16 bits, or RGB of 8, not interlaced, red and blue without green.
 */

/**
 * @typedef {{width: number, height: number, channels: 1 | 3, levels: Uint8Array | Uint16Array}} Levels
 */

/**
 * @param {Uint8Array} bytes a PNG file
 * @returns {Promise<Levels>}
 */
export async function decodePng(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [width, height] = [view.getUint32(16), view.getUint32(20)];
  const [bits, colour] = [bytes[24], bytes[25]];
  const channels = colour === 2 ? 3 : 1;
  const packed = [];
  for (let place = 8; place < bytes.length; ) {
    const size = view.getUint32(place);
    const isData = view.getUint32(place + 4) === 0x49444154; // IDAT
    if (isData) packed.push(bytes.subarray(place + 8, place + 8 + size));
    place += size + 12;
  }
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  const lines = new Uint8Array(await new Response(stream).arrayBuffer());
  const step = (channels * bits) / 8;
  const plain = unfiltered(lines, width * step, height, step);
  if (channels === 3) addGreen(plain);
  return { width, height, channels, levels: bits === 16 ? bigEndian(plain) : plain };
}

/**
 * The bytes of all lines without their filters (PNG specification, chapter 9).
 * @param {Uint8Array} lines each with the number of its filter before it
 * @param {number} width of a line, bytes
 * @param {number} height
 * @param {number} step bytes of a pixel
 */
function unfiltered(lines, width, height, step) {
  const plain = new Uint8Array(width * height);
  for (let row = 0; row < height; row++) {
    const from = row * (width + 1) + 1;
    const to = row * width;
    const filter = lines[from - 1];
    for (let i = 0; i < width; i++) {
      const left = i >= step ? plain[to + i - step] : 0;
      const above = row > 0 ? plain[to + i - width] : 0;
      let guess = 0;
      if (filter === 1) guess = left;
      else if (filter === 2) guess = above;
      else if (filter === 3) guess = (left + above) >> 1;
      else if (filter === 4) guess = paeth(left, above, row > 0 && i >= step ? plain[to + i - width - step] : 0);
      plain[to + i] = lines[from + i] + guess;
    }
  }
  return plain;
}

function paeth(left, above, corner) {
  const guess = left + above - corner;
  const [byLeft, byAbove, byCorner] = [Math.abs(guess - left), Math.abs(guess - above), Math.abs(guess - corner)];
  if (byLeft <= byAbove && byLeft <= byCorner) return left;
  return byAbove <= byCorner ? above : corner;
}

/** What was taken from red and blue; bytes wrap around. @param {Uint8Array} levels */
function addGreen(levels) {
  for (let i = 0; i < levels.length; i += 3) {
    levels[i] += levels[i + 1];
    levels[i + 2] += levels[i + 1];
  }
}

function bigEndian(bytes) {
  const levels = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < levels.length; i++) levels[i] = (bytes[2 * i] << 8) | bytes[2 * i + 1];
  return levels;
}
