/**
 * The file of answers: written for whoever made the set, and read again to go on elsewhere. docs/rating.md has every
 * field. Its integrity hash is of canonical JSON, which Python writes alike: keys sorted, whole numbers.
 */
import { Session } from "./session.js";
import { sha256Hex } from "./sha256.js";

const ANSWERS_FORMAT = "medsyn-rating-answers/1";
const ANSWER_FIELDS = ["rating", "choice", "not_sure", "answered_at", "serial", "changes", "window", "zoom"];
const REMARK_FIELDS = ["item", "defects", "confidence", "note", "milliseconds"];

/** @param {any} value @returns {string} */
export function canonicalJson(value) {
  return JSON.stringify(value, (_, inner) =>
    inner && typeof inner === "object" && !Array.isArray(inner)
      ? Object.fromEntries(Object.entries(inner).sort(([one], [other]) => (one < other ? -1 : 1)))
      : inner,
  );
}

const pick = (from, names) => Object.fromEntries(names.map((name) => [name, from[name]]));
const hasRemark = (one) => one.note !== "" || one.defects.length > 0 || one.confidence !== null || one.milliseconds > 0;

/**
 * @param {Session} session
 * @returns {any} the file of answers
 */
export function answersOf(session) {
  const answers = [];
  const drafts = [];
  session.turns.forEach((turn, order) => {
    const one = session.said.get(turn.item);
    if (one?.answered_at) {
      answers.push({ ...pick(one, REMARK_FIELDS), ...pick(one, ANSWER_FIELDS), order, shown: turn.shown });
    } else if (one && hasRemark(one)) drafts.push(pick(one, REMARK_FIELDS));
  });
  const body = {
    format: ANSWERS_FORMAT,
    version: session.set.version,
    set: { id: session.set.hash.slice(0, 12), hash: session.set.hash },
    rater: session.about.rater,
    started_at: session.about.started_at,
    exported_at: new Date().toISOString(),
    display: session.about.display,
    answers,
    drafts,
  };
  return { ...body, integrity: sha256Hex(canonicalJson(body)) };
}

/** Hand the file of answers to the browser's downloads. */
export function saveAnswers(session) {
  const answers = answersOf(session);
  const blob = new Blob([JSON.stringify(answers, null, 1)], { type: "application/json" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `ratings-${answers.set.id}-${answers.rater.id}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  return link.download;
}

/**
 * Take up the answers of a file; of two to one case the newer counts.
 * @param {import("./store.js").Store} store
 * @param {any} set
 * @param {string} text of the file
 * @returns {Promise<Session>}
 * @throws {Error} with a text for people
 */
export async function loadAnswers(store, set, text) {
  const file = checkedAnswers(set, text);
  const session = await Session.open(store, set, file.rater);
  const here = new Map(session.turns.map((turn) => [turn.item, turn]));
  const changed = [];
  for (const one of [...file.answers, ...file.drafts]) {
    if (!here.has(one.item)) continue;
    const mine = session.of(one.item);
    const isNewer = (one.answered_at ?? "") > (mine.answered_at ?? "");
    if (!isNewer && (mine.answered_at || hasRemark(mine))) continue;
    const { order, shown, ...said } = one;
    session.said.set(one.item, { ...mine, ...said });
    session.about.serial = Math.max(session.about.serial, one.serial ?? 0);
    changed.push(one.item);
  }
  if (file.started_at < session.about.started_at) session.about.started_at = file.started_at;
  if (file.display.light) session.about.display = file.display;
  session.position = session.nextOpen(0);
  await session.keep(...changed);
  return session;
}

function checkedAnswers(set, text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This is not a file of answers, or it is damaged.");
  }
  if (file?.format !== ANSWERS_FORMAT) throw new Error("This is not a file of answers of a rating page.");
  if (file.set?.hash !== set.hash) {
    throw new Error(`These answers are of another set (${String(file.set?.id).slice(0, 12)}).`);
  }
  const { integrity, ...body } = file;
  if (sha256Hex(canonicalJson(body)) !== integrity) throw new Error("This file was changed after it was saved.");
  return file;
}
