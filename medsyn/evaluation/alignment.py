"""What alignment did, by modality: read from what the stage left, and said in one sentence each.

Before and after are of the judge's own prompts and seeds; the judge neither trained nor chose anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from medsyn import disk
from medsyn.config import Config
from medsyn.evaluation.report_tables import NONE, ReportTable, TableCell, number
from medsyn.modality_names import in_order
from medsyn.stage import CampaignDirectory, slug
from medsyn.text import counted

CURVES = ("reward", "accepted", "quality", "prompt", "distance", "diversity")
_ASPECTS = ("distance", "quality", "prompt")


def read(config: Config, directory: CampaignDirectory) -> dict[str, dict[str, Any]]:
    """The summary of each modality that was aligned, for metrics.json; nothing where the campaign aligns nothing."""
    found = {}
    for modality in in_order(config.data.modalities) if config.align.enabled else ():
        path = directory.work("align", slug(modality)) / "summary.json"
        if path.is_file():
            found[modality] = disk.read_json(path)
    return found


def rounds(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rounds of a summary, oldest first."""
    return list(summary.get("rounds") or [summary])


def curves(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, pd.DataFrame]:
    """By modality, what the judge and the scorers said of the model at each step, rounds one after another."""
    found = {}
    for modality, summary in summaries.items():
        lines: dict[int, Mapping[str, Any]] = {}
        before = 0
        for one in rounds(summary):
            looks = {int(step): line for step, line in (one.get("steps_judged") or {}).items()}
            lines |= {before + step: line for step, line in looks.items()}
            before += int(one.get("steps") or max(looks, default=0))
        if lines:
            found[modality] = pd.DataFrame.from_dict(lines, orient="index").sort_index()
    return found


def sentence(summary: Mapping[str, Any]) -> str:
    """What alignment did for a modality, and why."""
    told = "; ".join(_gains(summary))
    reason = summary.get("reason") or "no reason is on record"
    used = "the aligned model is used" if summary.get("kept") else "the fine-tuned model stays in use"
    return f"{used} ({reason})" + (f": {told}" if told else "")


def _gains(summary: Mapping[str, Any]) -> Iterator[str]:
    for name in _ASPECTS:
        gain = (summary.get("gains") or {}).get(name)
        if gain is None or gain[0] is None:
            continue
        value, low, high = gain[:3]
        if low is None or high is None:
            yield f"{name}: too few images to say"
        elif low <= 0 <= high:
            yield f"{name}: no difference shown"
        else:
            what = "better" if low > 0 else "worse"
            yield f"{name} {what} by {number(abs(value), 2)} [{number(low, 2)}, {number(high, 2)}]"


def table(summaries: Mapping[str, Mapping[str, Any]]) -> ReportTable | None:
    """A row for every round of every modality; None where nothing was aligned."""
    if not summaries:
        return None
    rows = []
    for modality, summary in summaries.items():
        for number_, one in enumerate(rounds(summary), 1):
            detail = f"round {one.get('round', number_)}, {_asked(one)}"
            before, after = one.get("before") or {}, one.get("after") or {}
            row = [TableCell(modality, detail), TableCell(str(one.get("candidates", NONE)), _units(one))]
            row += [_before_after(before.get(name), after.get(name)) for name in CURVES]
            row.append(TableCell("yes" if one.get("kept") else "no", _stopped(one)))
            rows.append(row)
    header = ["", "candidates", "reward", "accepted", "quality", "prompt", "distance", "diversity", "kept"]
    return ReportTable(header, rows, [("", 2), ("Scorers, before → after", 2), ("Judge, before → after", 4), ("", 1)])


def _asked(one: Mapping[str, Any]) -> str:
    """Whether experts rated anything for a round."""
    ratings = one.get("new_ratings")
    return f"{counted(int(ratings), 'new rating')}" if ratings else "no new ratings: no expert was asked"


def _units(one: Mapping[str, Any]) -> str:
    units = one.get("units")
    return "" if units is None else f"{units} learned from"


def _stopped(one: Mapping[str, Any]) -> str:
    if stopped := one.get("stopped"):
        return str(stopped).partition(":")[0]
    steps = one.get("steps")
    return "" if steps is None else counted(int(steps), "step")


def _before_after(before: Any, after: Any) -> TableCell:
    old, new = (value[0] if isinstance(value, list) else value for value in (before, after))
    if old is None and new is None:
        return TableCell(NONE, faint=True)
    detail = ""
    if isinstance(after, list) and after[1] is not None:
        detail = f"after {number(after[1], 2)} to {number(after[2], 2)}"
    return TableCell(f"{number(old, 2)} → {number(new, 2)}", detail)
