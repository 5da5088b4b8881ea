"""The arms in the report: a table of all of them, and in words what each step gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsyn.arms import WEIGHTS_IN_WORDS, title
from medsyn.evaluation.report_tables import NONE, OVERALL, ReportTable, TableCell, duration, number, percent
from medsyn.evaluation.side_by_side import ASPECTS, SCORES
from medsyn.text import counted

# what a step can change, in the order in which it is told
MEASURES = {
    "right": "right finding and side",
    "distance": "KID to held-out images",
    "recall": "recall of held-out images",
    "diversity": "diversity",
    "attempts": "attempts for an accepted image",
    "selector": "Selector score (not independent)",
    "policy": "Policy score (not independent)",
    "passes": "share that the filter would pass (not independent)",
}
_SHARES = (*ASPECTS, "passes")


@dataclass(frozen=True)
class Step:
    """One step in words: what it is, between which arms, and what it changed."""

    name: str
    arms: str
    changed: Sequence[str]
    unchanged: str
    unknown: str


def shown(change: Mapping[str, Any]) -> bool | None:
    """Whether a change is more than chance: its interval does not hold 0. None where there is no interval."""
    if change["low"] is None or change["high"] is None:
        return None
    return bool(change["low"] > 0 or change["high"] < 0)


def signed(value: float) -> str:
    """A change with its sign."""
    return ("+" if value >= 0 else "") + number(value, 2)


def in_words(name: str, change: Mapping[str, Any]) -> str:
    """`+0.31 [0.22, 0.40] right finding and side (0.34 to 0.65)`."""
    interval = f"[{number(change['low'], 2)}, {number(change['high'], 2)}]"
    between = f"({number(change['before'], 2)} to {number(change['after'], 2)})"
    return f"{signed(change['change'])} {interval} {MEASURES[name]} {between}"


def steps(result: Mapping[str, Any]) -> list[tuple[str, list[Step]]]:
    """What each step gave: by group, all modalities first; groups in which nothing can be compared are left out."""
    found = []
    for name, group in result["arms"]["groups"].items():
        told = [_step(step) for step in group["steps"] if step["n"]]
        if told:
            found.append(("All modalities" if name == OVERALL else name, told))
    return found[1:] if len(found) == 2 else found  # of one modality, all is the same


def _step(step: Mapping[str, Any]) -> Step:
    known = {name: step["measures"][name] for name in MEASURES if _is_known(step["measures"].get(name))}
    changed = [in_words(name, change) for name, change in known.items() if shown(change)]
    unchanged = [MEASURES[name] for name, change in known.items() if shown(change) is False]
    unknown = [MEASURES[name] for name, change in known.items() if shown(change) is None]
    between = f"{title(step['before'])} → {title(step['after'])}"
    said = f"{between}; {counted(step['n'], 'image')} of {counted(step['prompts'], 'prompt')} in both"
    return Step(step["name"][:1].upper() + step["name"][1:], said, changed, ", ".join(unchanged), ", ".join(unknown))


def _is_known(change: Mapping[str, Any] | None) -> bool:
    return change is not None and change["change"] is not None


def table(result: Mapping[str, Any]) -> ReportTable:
    """Every arm's figures, of all modalities together and then of each."""
    arms = result["arms"]["arms"]
    has = {
        name for group in result["arms"]["groups"].values() for its in group["arms"].values() for name in its["figures"]
    }
    columns = {name: head for name, head in _COLUMNS.items() if name in has}
    rows = []
    for name, group in result["arms"]["groups"].items():
        if name != OVERALL and len(result["arms"]["groups"]) == 2:
            continue
        for arm in arms:
            its = group["arms"][arm["mode"]]
            model = WEIGHTS_IN_WORDS[arm["weights"]] + (", filtered" if arm["filters"] else "")
            what = f"{model}; {counted(its['n'], 'image')}"
            label = title(arm["mode"]) if name == OVERALL else f"{name}: {title(arm['mode']).lower()}"
            row = [TableCell(label, what)]
            row += [_figure_cell(column, its["figures"].get(column)) for column in columns]
            row += [_accepted_cell(its), _plain(its["attempts_per_accepted"])]
            row.append(TableCell(duration(its["seconds_per_accepted"])))
            rows.append(row)
    judged = [name for name in columns if name in ASPECTS]
    scored = [name for name in columns if name in SCORES]
    rest = len(columns) - len(judged) - len(scored)
    groups = [("", 1), ("Right, by the judge", len(judged)), ("Held-out real images", rest)]
    groups += [("Scores: not independent", len(scored)), ("An accepted image", 3)]
    header = ["", *columns.values(), "accepted", "attempts", "time"]
    return ReportTable(header, rows, [group for group in groups if group[1]])


_COLUMNS = {
    "finding": "finding",
    "side": "side",
    "right": "both",
    "distance": "KID",
    "diversity": "diversity",
    "selector": "Selector",
    "policy": "Policy",
    "passes": "pass",
}


def _figure_cell(name: str, found: Mapping[str, Any] | None) -> TableCell:
    if found is None or found["value"] is None:
        return TableCell(NONE, faint=True)
    share = name in _SHARES
    text = percent(found["value"]) if share else number(found["value"], 2)
    if found["low"] is None:
        return TableCell(text, faint=True)
    low, high = (f"{100 * found[end]:.0f}" if share else number(found[end], 2) for end in ("low", "high"))
    return TableCell(text, f"{low}–{high} %" if share else f"{low} to {high}")


def _accepted_cell(its: Mapping[str, Any]) -> TableCell:
    if not its["requested"]:
        return TableCell(NONE, faint=True)
    return TableCell(percent(its["accepted"] / its["requested"]), f"{its['accepted']} of {its['requested']}")


def _plain(value: float | None) -> TableCell:
    return TableCell(number(value, 2))
