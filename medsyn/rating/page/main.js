/**
 * The page: opens the set, prepares a session, and connects keys and buttons to the rating screen.
 */
import { WorkClock } from "./clock.js";
import { byId, make, showError, shownScreen } from "./dom.js";
import { saveAnswers } from "./exchange.js";
import { Images } from "./images.js";
import { listenToKeys, listOfKeys } from "./keys.js";
import { RatingScreen } from "./rating.js";
import { prepareSession } from "./start.js";
import { openStore } from "./store.js";
import { restoreTheme, switchTheme } from "./theme.js";

const ON_EVERY_SCREEN = { theme: switchTheme, help: openHelp };
const AT_THE_END = ["takeBack", "back"];

async function main() {
  restoreTheme();
  fillHelp();
  byId("theme").onclick = switchTheme;
  byId("open-help").onclick = ON_EVERY_SCREEN.help;
  const set = JSON.parse(byId("set").textContent);
  const images = new Images();
  const clock = new WorkClock(set.idle_seconds, () => byId("pause").open);
  /** @type {RatingScreen | null} */
  let screen = null;
  const run = (command, argument) => {
    if (ON_EVERY_SCREEN[command]) ON_EVERY_SCREEN[command]();
    else if (screen && shownScreen() === "rate") screen.run(command, argument);
    else if (screen && shownScreen() === "end" && AT_THE_END.includes(command)) screen.run(command, argument);
    else return false;
    return true;
  };
  listenToKeys(run, () => byId("keys-on").checked);
  const session = await prepareSession(await openStore(), set, images);
  screen = new RatingScreen(session, images, clock);
  document.body.classList.add("has-session");
  for (const button of document.querySelectorAll("[data-command]")) button.onclick = () => run(button.dataset.command);
  byId("open-examples").onclick = () => run("examples");
  byId("go-back").onclick = async () => {
    await session.goTo(session.nextOpen(0) < session.turns.length ? session.nextOpen(0) : session.turns.length - 1);
    await screen.show();
  };
  for (const button of [byId("save"), byId("save-at-end")]) {
    button.onclick = () => (byId("saved-as").textContent = `Saved as ${saveAnswers(session)}, among your downloads.`);
  }
  await screen.show();
}

function openHelp() {
  byId("help").showModal();
  byId("help-title").focus(); // and not the switch of the keys, which comes first
}

function fillHelp() {
  const rows = listOfKeys().map(({ keys, text }) => {
    const names = keys.flatMap((key) => [make("kbd", { text: key }), " "]);
    return make("tr", {}, make("td", {}, ...names), make("td", { text }));
  });
  byId("key-list").replaceChildren(...rows);
}

main().catch((error) => {
  console.error(error);
  showError(`This page cannot go on: ${error?.message ?? error}`);
});
