/**
 * Keys: which means what, and when none does.
 */

const DEFECT_KEYS = "qwertyuiop";

/** Keys, the command of all of them or of each, and what the list of keys says. */
const KEYS = [
  { keys: ["1", "2", "3"], command: "digit", text: "Rate poor, acceptable, excellent, and go on" },
  { keys: ["1", "2", "3", "4"], command: "digit", text: "In a pair: left, right, same, both bad" },
  { keys: ["0"], command: "notSure", text: "Not sure, and go on" },
  { keys: ["z", "Backspace"], command: "takeBack", text: "Take back the last answer" },
  { keys: ["ArrowLeft", "ArrowRight"], commands: ["back", "forth"], text: "Back and forth without an answer" },
  { keys: [...DEFECT_KEYS], command: "defect", text: "Tick a defect; its letter is beside it" },
  { keys: ["c"], command: "confidence", text: "Confidence: low, medium, high" },
  { keys: ["n"], command: "note", text: "Write a note; Escape leaves it" },
  { keys: ["a", "s"], commands: ["darker", "brighter"], text: "Darker, brighter" },
  { keys: ["d", "g"], commands: ["softer", "harder"], text: "Less contrast, more contrast" },
  { keys: ["v"], command: "nextPreset", text: "Next window" },
  { keys: ["b"], command: "resetWindow", text: "Window as at first" },
  { keys: ["+", "-"], commands: ["larger", "smaller"], text: "Larger, smaller" },
  { keys: ["f"], command: "fit", text: "Whole image" },
  { keys: ["h"], command: "oneToOne", text: "One screen pixel for each of the image" },
  { keys: ["x"], command: "examples", text: "Examples of 1, 2 and 3" },
  { keys: ["l"], command: "theme", text: "Light or dark" },
  { keys: ["?"], command: "help", text: "This list" },
];

const NAMES = { ArrowLeft: "←", ArrowRight: "→" };

/** What the list of keys shows. @returns {{keys: string[], text: string}[]} */
export function listOfKeys() {
  const shown = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);
  return KEYS.map(({ keys, text }) => ({
    keys: keys.length > 4 ? [`${shown(keys[0])} … ${shown(keys.at(-1))}`] : keys.map(shown),
    text,
  }));
}

/** The key of a defect, by its place in the checklist. */
export const defectKey = (place) => DEFECT_KEYS[place];

/**
 * Call `run` with the command of every key that is one.
 * @param {(command: string, argument: number) => boolean} run whether the command was taken
 * @param {() => boolean} areOn
 */
export function listenToKeys(run, areOn) {
  addEventListener("keydown", (event) => {
    if (isTyping(event.target)) {
      if (event.key === "Escape") /** @type {HTMLElement} */ (event.target).blur();
      return;
    }
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (document.querySelector("dialog[open]")) return;
    const command = commandOf(event);
    if (!command || (!areOn() && command.name !== "help")) return;
    // a key that is held down must not answer case after case
    if (event.repeat && ["digit", "notSure", "takeBack", "defect"].includes(command.name)) return event.preventDefault();
    if (run(command.name, command.argument)) event.preventDefault();
  });
}

function commandOf(event) {
  const digit = /^(?:Digit|Numpad)([0-4])$/.exec(event.code)?.[1]; // whatever the layout has on these keys
  const key = digit && !event.shiftKey ? digit : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const found = KEYS.find((one) => one.keys.includes(key));
  if (!found) return null;
  const argument = found.command === "defect" ? found.keys.indexOf(key) : Number(key);
  return { name: found.command ?? found.commands[found.keys.indexOf(key)], argument };
}

function isTyping(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || ["TEXTAREA", "SELECT"].includes(target.tagName)) return true;
  return target instanceof HTMLInputElement && !["checkbox", "radio", "button", "file"].includes(target.type);
}
