"""Answers that came back: checked against the keys of their sets, and merged into one table of sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from medsyn.errors import InputError, InputProblems, Problem
from medsyn.rating.formats import Answer, Answers, SetKey, read_answers, read_key
from medsyn.rating.sessions import rows_of
from medsyn.text import counted

_FUTURE = timedelta(days=1)  # a clock may be of another time zone than it says
_SHOWN = 3  # names in a message

Given = tuple[Path, Answers]
Read = TypeVar("Read", Answers, SetKey)


def collect(
    files: Sequence[Path], keys: Sequence[Path], now: datetime | None = None
) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The rows of `medsyn.rating.sessions` for all answers, and warnings.

    Half-done sessions are fine. Of several files of one rater's session, an answer's latest version counts.

    Args:
        files: of answers, as the page saves them.
        keys: of their sets.
        now: the time; for tests.

    Raises:
        InputProblems: files cannot be read, are of another set, name what is not in their set, or two sessions under
            one name contradict each other; everything that is wrong with all files.
    """
    problems: list[Problem] = []
    known = {key.set: key for _, key in _read_all(read_key, keys, problems)}
    read = _read_all(read_answers, files, problems)
    for path, answers in read:
        problems += _of_another_set(path, answers, known) or _forged(path, answers, known[answers.set.hash])
    problems += _two_levels(read)
    if problems:
        raise InputProblems(problems)
    rows: list[dict[str, Any]] = []
    sessions: dict[tuple[str, str], list[Given]] = {}
    for path, answers in sorted(read, key=lambda one: (one[1].set.hash, one[1].rater.id, one[1].exported_at)):
        sessions.setdefault((answers.set.hash, answers.rater.id), []).append((path, answers))
    for (set_hash, _), its in sessions.items():
        merged, contradictions = _merged(its)
        problems += contradictions
        rows += rows_of(merged, known[set_hash])
    if problems:
        raise InputProblems(problems)
    return rows, [warning for path, answers in read for warning in _clock(path, answers, now or datetime.now(UTC))]


def _read_all(read: Callable[[Path], Read], paths: Iterable[Path], problems: list[Problem]) -> list[tuple[Path, Read]]:
    """Every file that can be read; what is wrong with the others is added to `problems`."""
    found = []
    for path in paths:
        try:
            found.append((path, read(path)))
        except (InputError, InputProblems) as error:
            problems += error.problems
    return found


def _of_another_set(path: Path, answers: Answers, known: Mapping[str, SetKey]) -> list[Problem]:
    if answers.set.hash in known:
        return []
    of = ", ".join(sorted(key.id for key in known.values())) or "none that could be read"
    reason = f"is of the set {answers.set.id}, and the keys given are of {of}: give its SET.key.json with --key"
    return [Problem(str(path), reason, key="set")]


def _forged(path: Path, answers: Answers, key: SetKey) -> list[Problem]:
    """Names that are not in the set, or that are answered twice."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for place, answer in enumerate(answers.answers):
        where = f"answers.{place}"
        if answer.item in seen:
            problems.append(Problem(str(path), f"{answer.item} is answered twice in one file", key=where))
        elif answer.item not in key.cases and answer.item not in key.pairs:
            problems.append(Problem(str(path), f"the set {key.id} has no case or pair {answer.item}", key=where))
        elif wrong := _wrong(answer, key):
            problems.append(Problem(str(path), wrong, key=where))
        seen.add(answer.item)
    return problems


def _wrong(answer: Answer, key: SetKey) -> str | None:
    """What is wrong with an answer about something that is in the set."""
    case = key.cases.get(answer.item)
    shown = [case.image] if case else sorted(key.pairs[answer.item])
    if sorted(answer.shown) != shown:
        return f"{answer.item} shows {' and '.join(shown)}, not {' and '.join(answer.shown)}"
    if case and answer.choice:
        return f"{answer.item} is a case, and is answered as a pair"
    if not case and answer.rating:
        return f"{answer.item} is a pair, and is answered as a case"
    return None


def _two_levels(read: Sequence[Given]) -> list[Problem]:
    levels: dict[str, Given] = {}
    problems = []
    for path, answers in read:
        before, first = levels.setdefault(answers.rater.id, (path, answers))
        if first.rater.expert_level != answers.rater.expert_level:
            reason = (
                f"{answers.rater.id} has the expert level {answers.rater.expert_level} here and "
                f"{first.rater.expert_level} in {before}: one rater has one level; two need two names"
            )
            problems.append(Problem(str(path), reason, key="rater"))
    return problems


def _merged(session: Sequence[Given]) -> tuple[Answers, list[Problem]]:
    """The answers of one rater to one set, and what contradicts: files are in the order in which they were saved."""
    _, last = session[-1]
    latest: dict[str, tuple[Path, Answers, Answer]] = {}
    problems: list[Problem] = []
    for path, answers in session:
        unlike: list[str] = []
        for answer in answers.answers:
            before = latest.get(answer.item)
            if before is not None and before[1].started_at != answers.started_at and _differ(before[2], answer):
                unlike.append(answer.item)
            if before is None or answer.serial >= before[2].serial or before[1].started_at != answers.started_at:
                latest[answer.item] = path, answers, answer
        if unlike:
            reason = (
                f"{answers.rater.id} began another session with the same set, and {counted(len(unlike), 'answer')} "
                f"differ ({', '.join(unlike[:_SHOWN])}{', ...' if len(unlike) > _SHOWN else ''}): if these are two "
                "people, they need two names; if it is one, import only the session that counts"
            )
            problems.append(Problem(str(path), reason, key="rater.id"))
    return last.model_copy(update={"answers": [answer for _, _, answer in latest.values()]}), problems


def _differ(one: Answer, other: Answer) -> bool:
    def said(answer: Answer) -> tuple[Any, ...]:
        chosen = answer.shown[answer.choice == "right"] if answer.choice in ("left", "right") else answer.choice
        return answer.rating, chosen, answer.not_sure

    return said(one) != said(other)


def _clock(path: Path, answers: Answers, now: datetime) -> list[Problem]:
    """A warning if the rater's clock cannot have been right; nothing depends on it."""
    times = {name: datetime.fromisoformat(getattr(answers, name)) for name in ("started_at", "exported_at")}
    reason = None
    if times["exported_at"] > now + _FUTURE:
        reason = f"was saved at {answers.exported_at}, which is in the future"
    elif times["started_at"] > times["exported_at"]:
        reason = f"was begun at {answers.started_at}, after it was saved"
    if reason is None:
        return []
    reason += ": the rater's clock is wrong; the order of the answers does not depend on it"
    return [Problem(str(path), reason, key="exported_at", severity="warning")]
