/**
 * One image on a canvas: drawn through the viewport's window, moved by mouse, pen and fingers.
 * Drag: window (right: more contrast, up: brighter). Shift, the middle button or two fingers: move. Wheel, pinch: zoom.
 */

const SMOOTH_UP_TO = 4; // screen pixels for one of the image: beyond, pixels are shown as they are

export class Viewer {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./viewport.js").Viewport} viewport
   * @param {boolean} isMovable
   */
  constructor(canvas, viewport, isMovable = true) {
    this.canvas = canvas;
    this.viewport = viewport;
    /** @type {import("./png.js").Levels | null} */
    this.image = null;
    this.picture = document.createElement("canvas"); // the image in grey levels of the screen, pixel for pixel
    this.pointers = new Map();
    this.drawn = "";
    this.pending = 0;
    viewport.listeners.add(() => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(canvas);
    if (isMovable) this.listen();
  }

  /** @param {import("./png.js").Levels | null} image */
  show(image) {
    this.image = image;
    this.drawn = "";
    this.draw();
  }

  redraw() {
    this.pending ||= requestAnimationFrame(() => this.draw());
  }

  /** How many screen pixels one of the image has where the whole image fits. */
  get fitScale() {
    const { width, height } = this.canvas;
    return this.image ? Math.min(width / this.image.width, height / this.image.height) : 1;
  }

  /** Per cent of the image's own size, in screen pixels. */
  get percent() {
    return Math.max(1, Math.round(100 * this.fitScale * this.viewport.zoom));
  }

  /** One screen pixel for each of the image. */
  showOneToOne() {
    this.viewport.moveTo(0, 0, 1 / this.fitScale);
  }

  draw() {
    cancelAnimationFrame(this.pending);
    this.pending = 0;
    const { canvas, image, viewport } = this;
    const ratio = devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (!image || !width || !height) return;
    this.develop();
    const scale = this.fitScale * viewport.zoom;
    const side = Math.min(width, height);
    context.imageSmoothingEnabled = scale < SMOOTH_UP_TO;
    context.imageSmoothingQuality = "high";
    const [wide, high] = [image.width * scale, image.height * scale].map(Math.round); // whole: 1:1 is pixel for pixel
    const left = Math.round(width / 2 + viewport.x * side - wide / 2);
    const top = Math.round(height / 2 + viewport.y * side - high / 2);
    context.drawImage(this.picture, left, top, wide, high);
  }

  /** The image through the window, into `picture`; nothing to do if it is there already. */
  develop() {
    const { image, picture, viewport } = this;
    const wanted = `${viewport.low} ${viewport.high}`;
    if (this.drawn === wanted) return;
    Object.assign(picture, { width: image.width, height: image.height });
    const context = picture.getContext("2d");
    const pixels = context.createImageData(image.width, image.height);
    const shades = shadesOf(viewport.low, viewport.high, image.levels instanceof Uint16Array ? 65536 : 256);
    const { levels, channels } = image;
    for (let from = 0, to = 0; to < pixels.data.length; from += channels, to += 4) {
      pixels.data[to] = shades[levels[from]];
      pixels.data[to + 1] = shades[levels[channels === 3 ? from + 1 : from]];
      pixels.data[to + 2] = shades[levels[channels === 3 ? from + 2 : from]];
      pixels.data[to + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
    this.drawn = wanted;
  }

  // --- hands ---------------------------------------------------------------------------------------------------------

  listen() {
    const { canvas, pointers } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button > 1) return;
      event.preventDefault();
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const now = { x: event.clientX, y: event.clientY };
      if (pointers.size > 1) this.pinch(event.pointerId, before, now);
      else if (event.shiftKey || event.buttons & 4) this.pan(now.x - before.x, now.y - before.y);
      else this.viewport.adjust((before.y - now.y) / 400, (now.x - before.x) / 200);
      pointers.set(event.pointerId, now);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("dblclick", () => this.viewport.fit());
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.viewport.zoomBy(2 ** (-event.deltaY / 400), ...this.placeOf(event.clientX, event.clientY));
      },
      { passive: false },
    );
  }

  /** A place on the screen as the viewport counts. */
  placeOf(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    const side = Math.min(box.width, box.height) || 1;
    return [(clientX - box.left - box.width / 2) / side, (clientY - box.top - box.height / 2) / side];
  }

  pan(x, y) {
    const side = Math.min(this.canvas.clientWidth, this.canvas.clientHeight) || 1;
    this.viewport.moveTo(this.viewport.x + x / side, this.viewport.y + y / side);
  }

  pinch(pointer, before, now) {
    const [other] = [...this.pointers].filter(([id]) => id !== pointer).map(([, place]) => place);
    const distance = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
    this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    const middle = this.placeOf((now.x + other.x) / 2, (now.y + other.y) / 2);
    this.viewport.zoomBy(distance(now) / distance(before), ...middle);
  }
}

/** The screen's grey, 0 to 255, of every level. */
function shadesOf(low, high, count) {
  const shades = new Uint8ClampedArray(count);
  for (let level = 0; level < count; level++) shades[level] = (255 * (level - low)) / (high - low);
  return shades;
}
