/**
 * The screen on which images are rated: what it shows, and what its commands do. Commands run one after the other, each
 * when what the one before has said is on disk, so what the screen shows as answered is never lost.
 */
import { announce, byId, make, minutesText, showError, showScreen, shownScreen } from "./dom.js";
import { openExamples, RATINGS } from "./examples.js";
import { defectKey } from "./keys.js";
import { LONGEST_NOTE } from "./session.js";
import { Viewer } from "./viewer.js";
import { Viewport } from "./viewport.js";

const CHOICES = [
  { choice: "left", name: "Left is better" },
  { choice: "right", name: "Right is better" },
  { choice: "same", name: "The same" },
  { choice: "both-bad", name: "Both are bad" },
];
/** What changes no answer: done at once, so that what is typed after N goes into the note. */
const AT_ONCE = new Set(
  ["note", "darker", "brighter", "softer", "harder", "resetWindow", "nextPreset"].concat(
    ["larger", "smaller", "fit", "oneToOne", "examples"],
  ),
);
const AHEAD = 3; // turns whose images are decoded before they are asked for

export class RatingScreen {
  /**
   * @param {import("./session.js").Session} session
   * @param {import("./images.js").Images} images
   * @param {import("./clock.js").WorkClock} clock
   */
  constructor(session, images, clock) {
    Object.assign(this, { session, images, clock, set: session.set });
    this.viewport = new Viewport();
    this.viewers = ["left", "right"].map((side) => new Viewer(byId(`canvas-${side}`), this.viewport));
    this.viewport.listeners.add(() => this.showView());
    this.queue = Promise.resolve();
    this.since = clock.tick(true); // when the present turn came up
    this.lastBreak = clock.total;
    byId("note").addEventListener("input", () => this.writeNote());
    byId("defects").addEventListener("change", () => this.readRemarks());
    byId("more").addEventListener("change", () => this.readRemarks());
    byId("preset").addEventListener("change", () => this.choosePreset(byId("preset").value));
  }

  /** Run a command; one that changes answers after all that were given before. */
  run(command, argument) {
    if (AT_ONCE.has(command)) return this[command](argument);
    this.queue = this.queue.then(() => this[command](argument)).catch((error) => this.fail(error));
    return this.queue;
  }

  fail(error) {
    console.error(error);
    showError(
      `The last answer could not be kept (${error?.message ?? error}). Save your answers as a file, and free some disk.`,
    );
  }

  // --- answers -------------------------------------------------------------------------------------------------------

  digit(number) {
    const choices = this.session.turn.isPair ? CHOICES : RATINGS;
    const { rating, choice } = choices[number - 1] ?? {};
    return rating || choice ? this.answer(rating ? { rating } : { choice }) : undefined;
  }

  notSure() {
    return this.answer({ not_sure: true });
  }

  async answer(answer) {
    const { session, viewport } = this;
    const number = session.position + 1;
    const seen = { milliseconds: this.spent(), window: viewport.window, zoom: this.viewers[0].percent };
    await session.answer(answer, seen);
    await this.show(`Case ${number}: ${answer.choice ?? answer.rating ?? "not sure"}. `);
    this.offerBreak();
  }

  async takeBack() {
    this.spent();
    const isTaken = await this.session.takeBack();
    await this.show(isTaken ? "Taken back. " : "There is no answer to take back. ");
  }

  async back() {
    await this.session.goTo(this.session.position - 1, this.spent());
    await this.show();
  }

  async forth() {
    await this.session.goTo(this.session.position + 1, this.spent());
    await this.show();
  }

  /** Milliseconds at work since the present turn came up, or since they were asked for. */
  spent() {
    const now = this.clock.tick();
    const spent = Math.round(now - this.since);
    this.since = now;
    return spent;
  }

  offerBreak() {
    if (this.clock.total - this.lastBreak < this.set.break_minutes * 60_000 || this.session.isAtEnd) return;
    const { answered, turns } = this.session;
    const worked = minutesText(this.clock.total - this.lastBreak);
    byId("pause-text").textContent =
      `You have been at work for ${worked}, and ${answered} of ${turns.length} are answered. Everything is kept.`;
    byId("pause").showModal();
    this.lastBreak = this.clock.total;
  }

  // --- remarks -------------------------------------------------------------------------------------------------------

  async defect(place) {
    const box = byId("defects").querySelectorAll("input")[place];
    if (!box) return;
    box.checked = !box.checked;
    announce(`${this.checklist.defects[place].text}: ${box.checked ? "ticked" : "not ticked"}`);
    await this.readRemarks();
  }

  async confidence() {
    const next = ((this.session.here.confidence ?? 0) % 3) + 1;
    byId("more").querySelector(`input[name="confidence"][value="${next}"]`).checked = true;
    announce(`Confidence ${["low", "medium", "high"][next - 1]}`);
    await this.readRemarks();
  }

  note() {
    byId("more").open = true;
    byId("note").focus();
  }

  /** Keep what is ticked. */
  readRemarks() {
    const defects = [...byId("defects").querySelectorAll("input:checked")].map((box) => box.value);
    const chosen = byId("more").querySelector('input[name="confidence"]:checked');
    const remark = { defects, confidence: chosen ? Number(chosen.value) : null };
    return this.session.remark(this.session.turn.item, remark).catch((error) => this.fail(error));
  }

  writeNote() {
    const note = byId("note").value.slice(0, LONGEST_NOTE).replace(/\p{Surrogate}/gu, "\ufffd");
    this.session.remark(this.session.turn.item, { note }).catch((error) => this.fail(error));
  }

  // --- the view ------------------------------------------------------------------------------------------------------

  darker = () => this.viewport.adjust(-0.05, 0);
  brighter = () => this.viewport.adjust(0.05, 0);
  softer = () => this.viewport.adjust(0, -0.15);
  harder = () => this.viewport.adjust(0, 0.15);
  resetWindow = () => this.viewport.resetWindow();
  larger = () => this.viewport.zoomBy(1.25);
  smaller = () => this.viewport.zoomBy(0.8);
  fit = () => this.viewport.fit();
  oneToOne = () => this.viewers[0].showOneToOne();
  examples = () => openExamples(this.set, this.images, this.image.modality);

  nextPreset() {
    const options = [...byId("preset").options].map((option) => option.value);
    this.choosePreset(options[(options.indexOf(byId("preset").value) + 1) % options.length]);
  }

  choosePreset(name) {
    const preset = this.checklist.presets.find((one) => one.name === name);
    if (preset) this.viewport.choose(preset);
    else this.viewport.resetWindow();
    byId("preset").value = name;
    announce(`Window: ${name || "as at first"}`);
  }

  showView() {
    byId("view-text").textContent = `${this.viewport.text} · ${this.viewers[0].percent} %`;
  }

  // --- showing -------------------------------------------------------------------------------------------------------

  /** The present image as the set has it. */
  get image() {
    return this.set.images[this.session.turn.shown[0]];
  }

  /** Of the present modality, without its part of the body. */
  get checklist() {
    return this.set.checklists[this.image.modality.split(" ").at(-1)];
  }

  /** Show the present turn, or the end. @param {string} said what has just happened, for screen readers */
  async show(said = "") {
    const { session, set } = this;
    byId("progress").max = session.turns.length;
    byId("progress").value = session.answered;
    byId("progress-text").textContent = `${session.answered} of ${session.turns.length}`;
    if (session.isAtEnd) return this.showEnd();
    const { turn } = session;
    const kind = turn.isPair ? "Pair" : "Case";
    const levels = await Promise.all(turn.shown.map((name) => this.images.get(name)));
    const isNew = shownScreen() !== "rate";
    if (isNew) showScreen("rate");
    byId("frames").classList.toggle("pair", turn.isPair);
    byId("right").hidden = !turn.isPair;
    byId("case-title").textContent = `${kind} ${session.position + 1} of ${session.turns.length}: ${this.image.modality}`;
    byId("caption").textContent = turn.caption;
    byId("caption").hidden = !turn.caption;
    this.viewport.reset(set.images[turn.shown[0]]);
    this.viewers.forEach((viewer, place) => viewer.show(levels[place] ?? null));
    this.labelCanvases(turn);
    this.showAnswers(turn);
    this.showRemarks();
    this.showPresets();
    this.showView();
    announce(`${said}${kind} ${session.position + 1} of ${session.turns.length}, ${this.image.modality}. ${turn.caption}`);
    this.since = this.clock.tick();
    for (const next of session.turns.slice(session.position + 1, session.position + 1 + AHEAD)) {
      for (const name of next.shown) this.images.get(name).catch(() => {});
    }
  }

  labelCanvases(turn) {
    const what = `${this.image.modality}, synthetic or real`;
    byId("canvas-left").setAttribute("aria-label", turn.isPair ? `Left image: ${what}` : `Image: ${what}`);
    byId("canvas-right").setAttribute("aria-label", `Right image: ${what}`);
  }

  showAnswers(turn) {
    const { here } = this.session;
    const choices = turn.isPair ? CHOICES : RATINGS;
    const buttons = choices.map(({ name, rating, choice }, place) => {
      const isChosen = Boolean(here.answered_at) && (here.rating ?? here.choice) === (rating ?? choice);
      return this.answerButton(place + 1, name, isChosen, () => this.run("digit", place + 1));
    });
    buttons.push(this.answerButton(0, "Not sure", here.not_sure, () => this.run("notSure")));
    const place = byId("answers");
    const focused = [...place.children].indexOf(document.activeElement);
    place.classList.toggle("four", turn.isPair);
    place.setAttribute("aria-label", turn.isPair ? "Which image is better?" : "How good is the image?");
    place.replaceChildren(...buttons);
    if (focused >= 0) buttons[Math.min(focused, buttons.length - 1)].focus({ preventScroll: true });
  }

  answerButton(number, name, isChosen, onclick) {
    const [key, text] = [make("b", { text: String(number) }), make("span", { text: name })];
    return make("button", { type: "button", onclick, "aria-pressed": String(isChosen), className: `answer of-${number}` }, key, text);
  }

  showRemarks() {
    const { here } = this.session;
    const boxes = this.checklist.defects.map(({ id, text }, place) => {
      const box = make("input", { type: "checkbox", value: id, checked: here.defects.includes(id) });
      return make("label", {}, box, make("kbd", { text: defectKey(place).toUpperCase() }), make("span", { text }));
    });
    byId("defects").replaceChildren(...boxes);
    byId("defects-of").textContent = this.session.turn.isPair ? "Defects of the worse one" : "Defects";
    for (const radio of byId("more").querySelectorAll('input[name="confidence"]')) {
      radio.checked = Number(radio.value) === here.confidence;
    }
    byId("note").value = here.note;
  }

  showPresets() {
    const names = this.checklist.presets.filter((one) => this.viewport.applies(one)).map((one) => one.name);
    const options = ["", ...names].map((name) => make("option", { value: name, text: name || "Window: as at first" }));
    byId("preset").replaceChildren(...options);
  }

  showEnd() {
    const { session } = this;
    const open = session.turns.length - session.answered;
    const milliseconds = [...session.said.values()].reduce((sum, one) => sum + one.milliseconds, 0);
    byId("end-title").textContent = open ? "The end, with gaps" : "All done. Thank you.";
    const spent = `${session.answered} of ${session.turns.length} are answered, in ${minutesText(milliseconds)}.`;
    byId("end-text").textContent = open
      ? `${spent} Go back for the ${open} that are left, or save what there is.`
      : `${spent} Save your answers, and send the file to whoever asked you.`;
    showScreen("end");
    announce(byId("end-title").textContent);
  }
}
