/**
 * Before the first image: who rates, the display check, the examples.
 */
import { byId, make, showError, showScreen } from "./dom.js";
import { showExamples } from "./examples.js";
import { loadAnswers } from "./exchange.js";
import { drawPatches, screenSize } from "./patches.js";
import { earlierSessions, Session } from "./session.js";

/**
 * @param {import("./store.js").Store} store
 * @param {any} set
 * @param {import("./images.js").Images} images
 * @returns {Promise<Session>} when the first image may be shown
 */
export async function prepareSession(store, set, images) {
  const session = await chosenSession(store, set);
  lockSession(session);
  if (!session.about.prepared) {
    session.about.display = await checkedDisplay();
    await seenExamples(set, images);
    session.about.prepared = true;
    await session.keep();
  }
  return session;
}

/** The first screen: a session of before, a new one, or one from a file. */
async function chosenSession(store, set) {
  const earlier = await earlierSessions(store, set);
  const total = set.cases.length + set.pairs.length;
  byId("about-set").textContent =
    `${set.cases.length} images to rate` + (set.pairs.length ? ` and ${set.pairs.length} pairs to compare.` : ".");
  return new Promise((resolve) => {
    const open = async (rater) => resolve(await Session.open(store, set, rater));
    const buttons = earlier.map((one) => {
      const text = `Go on as ${one.rater.id}: ${one.answered} of ${total} answered`;
      return make("button", { type: "button", className: "main", text, onclick: () => open(one.rater) });
    });
    byId("earlier-list").replaceChildren(...buttons.map((button) => make("li", {}, button)));
    byId("earlier").hidden = buttons.length === 0;
    byId("start-form").onsubmit = (event) => {
      event.preventDefault();
      const form = event.target;
      open({ id: form.rater.value.trim(), expert_level: Number(form.level.value) });
    };
    byId("load").onchange = async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      try {
        showError("");
        resolve(await loadAnswers(store, set, await file.text()));
      } catch (error) {
        showError(error.message);
      }
    };
    showScreen("start");
    (buttons[0] ?? byId("rater")).focus();
  });
}

/** Warn if another window has the same session open: what both say of one case would overwrite each other. */
function lockSession(session) {
  const name = `medsyn-rating/${session.set.hash}/${session.about.rater.id}`;
  navigator.locks?.request(name, { ifAvailable: true }, (lock) => {
    if (lock) return new Promise(() => {}); // until the page is closed
    showError("This session is open in another window, too. Close one of them.");
  });
}

function checkedDisplay() {
  const form = byId("display-form");
  const size = () => {
    const { width, height, ratio } = screenSize();
    byId("screen-size").textContent =
      `This window has ${width} × ${height} points at ${ratio} %. Make it as large as you can.`;
    drawPatches();
  };
  showScreen("display");
  size();
  addEventListener("resize", size);
  return new Promise((resolve) => {
    const done = (seen) => {
      removeEventListener("resize", size);
      resolve({ ...seen, ...screenSize() });
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      const [dark, bright] = [form.dark.value === "yes", form.bright.value === "yes"];
      done({ dark_patch: dark, bright_patch: bright, light: form.light.value });
    };
    byId("skip-display").onclick = () => done({ dark_patch: null, bright_patch: null, light: null });
  });
}

function seenExamples(set, images) {
  const modalities = [...new Set(Object.values(set.images).map((image) => image.modality))];
  showExamples(byId("examples-first"), set, images, modalities);
  showScreen("examples");
  byId("begin-rating").focus();
  return new Promise((resolve) => (byId("begin-rating").onclick = resolve));
}
