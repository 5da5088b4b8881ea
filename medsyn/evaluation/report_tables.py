"""The report's tables: measurements turned into words and rounded numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medsyn.arms import MODES, filters, title
from medsyn.efficiency import KINDS, Efficiency
from medsyn.text import counted

OVERALL = "all"  # the group of every modality together
NONE = "–"
SET_NAMES = {"held_out": "Real, held out", **{mode: title(mode) for mode in MODES}}


@dataclass(frozen=True)
class TableCell:
    """A table's cell: what it says, what it says in small print, and whether it means little."""

    text: str
    detail: str = ""
    faint: bool = False


@dataclass(frozen=True)
class ReportTable:
    """A table; the first cell of a row is its heading. `groups` heads several columns together: (title, columns)."""

    header: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    groups: Sequence[tuple[str, int]] = ()


def number(value: float | None, digits: int = 3) -> str:
    """A number with `digits` significant digits and at most three decimals; a dash for None or a non-finite value."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0 or 1e-4 <= abs(value) < 10**6:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        return f"{value:.{max(0, min(decimals, 3))}f}".replace("-", "−")
    return f"{value:.{digits - 1}e}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in whole percent."""
    return NONE if value is None else f"{100 * value:.0f} %"


def duration(seconds: float | None) -> str:
    """Seconds in the unit a person would choose."""
    if seconds is None:
        return NONE
    if seconds < 59.5:
        return f"{number(seconds, 2)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _name_cell(name: str, detail: str = "") -> TableCell:
    return TableCell("All" if name == OVERALL else name, detail)


def _kid_cell(distance: Mapping[str, Any] | None) -> TableCell:
    if distance is None:
        return TableCell(NONE, faint=True)
    error = "" if distance["error"] is None else f"± {number(distance['error'], 2)}"
    return TableCell(number(distance["value"], 2), error, faint=not distance["meaningful"])


def _share_cell(share: Mapping[str, Any] | None) -> TableCell:
    if share is None:
        return TableCell(NONE, faint=True)
    return TableCell(percent(share["value"]), f"{100 * share['low']:.0f}–{100 * share['high']:.0f} %")


def headline(result: Mapping[str, Any]) -> ReportTable:
    """One row per modality: share accepted, distance from real images, how often the finding is right."""
    modes = {mode: f"real, {mode}" for mode in _ends(result)}
    distances = {"floor": "real, real", **modes, "other_modalities": "real, other modalities"}
    sets = {"held_out": "real", **{mode: mode for mode in modes}}
    with_kid, with_judge = result["kid"]["available"], result["judge"]["available"]
    filtered = filtering(result)
    header, groups = ["", "accepted"], [("", 1), (title(filtered or "filtered"), 1)]
    if with_kid:
        header += distances.values()
        groups.append(("KID", len(distances)))
    if with_judge:
        header += sets.values()
        groups.append(("Finding right", len(sets)))
    rows = []
    for name, group in result["groups"].items():
        counts = ", ".join(f"{group['n'][key]} {title}" for key, title in sets.items())
        row = [_name_cell(name, counts), _accepted_cell(group["generation"].get(filtered))]
        if with_kid:
            row += [_kid_cell(group["kid"][key]) for key in distances]
        if with_judge:
            row += [_share_cell(group["prompt_following"][key]["finding"]) for key in sets]
        rows.append(row)
    return ReportTable(header, rows, groups)


def _ends(result: Mapping[str, Any]) -> list[str]:
    """The first and the last arm; those between them have a section of their own."""
    modes = [arm["mode"] for arm in result["arms"]["arms"]]
    return modes if len(modes) <= 2 else [modes[0], modes[-1]]


def filtering(result: Mapping[str, Any]) -> str | None:
    """The last arm whose images scorers chose."""
    chosen = [arm["mode"] for arm in result["arms"]["arms"] if arm["filters"]]
    return chosen[-1] if chosen else None


def _accepted_cell(made: Mapping[str, Any] | None) -> TableCell:
    if made is None or not made["requested"]:
        return TableCell(NONE, faint=True)
    return TableCell(percent(made["acceptance_rate"]), f"{made['accepted']} of {made['requested']}")


def following(result: Mapping[str, Any]) -> ReportTable | None:
    """How often the judge sees what the text says, per set; None without a judge."""
    overall = result["groups"][OVERALL]
    if overall["prompt_following"] is None:
        return None
    aspects = {"modality": "Modality", "kind": "Kind of image", "finding": "Finding", "side": "Side"}
    rows = []
    for key, shares in overall["prompt_following"].items():
        name = TableCell(SET_NAMES[key], f"{overall['n'][key]} images")
        rows.append([name, *(_share_cell(shares[aspect]) for aspect in aspects)])
    return ReportTable(["", *aspects.values()], rows)


def scorers(result: Mapping[str, Any]) -> ReportTable | None:
    """How well the Selector and the Policy rank held-out ratings, overall and per modality; None before stage 1."""
    first, second = result["rlhf"]["stage1"], result["rlhf"]["stage2"]
    if first is None:
        return None
    trained = [name for name in ("selector", "policy") if name in first]
    nothing = [TableCell("")] * len(trained)
    rows = [[TableCell("All"), *(TableCell(number(first[name].get("auroc"), 2)) for name in trained), *nothing]]
    for modality in result["campaign"]["modalities"]:
        found = [first[name].get("auroc_by_modality", {}).get(modality) for name in trained]
        kept = [_kept_cell(second.get(modality), name) for name in trained]
        rows.append([TableCell(modality), *(TableCell(number(auroc, 2)) for auroc in found), *kept])
    titles = [name.capitalize() for name in trained]
    groups = [("", 1), ("Stage 1: AUROC", len(trained)), ("Stage 2: kept", len(trained))]
    return ReportTable(["", *titles, *titles], rows, groups)


def selectors(result: Mapping[str, Any]) -> ReportTable | None:
    """What each modality's Selector is known to be worth, and what it let pass; None where none chose."""
    if not result["selectors"]:
        return None
    rows = []
    for modality, its in result["selectors"].items():
        made = result["groups"].get(modality, {}).get("generation", {}).get(filtering(result), {})
        rows.append(
            [
                TableCell(modality),
                _evidence_cell(its),
                _threshold_cell(its),
                TableCell(percent(made.get("attempt_pass_rate"))),
                TableCell(percent(made.get("unfamiliar_rate"))),
                TableCell(number(made.get("selector_spread_mean"), 2)),
            ]
        )
    header = ["", "AUROC", "threshold", "pass", "unfamiliar", "spread"]
    return ReportTable(header, rows, [("", 1), ("Held-out ratings", 2), ("Candidates", 2), ("Accepted", 1)])


def _evidence_cell(its: Mapping[str, Any]) -> TableCell:
    found = its["auroc"]
    if found["value"] is None:
        return TableCell(NONE, "too few ratings", faint=True)
    interval = "" if found["low"] is None else f"{number(found['low'], 2)} to {number(found['high'], 2)}, "
    whose = "" if its["evidence_of"] else ", all modalities"
    return TableCell(number(found["value"], 2), f"{interval}{counted(found['n'], 'group')}{whose}")


def _threshold_cell(its: Mapping[str, Any]) -> TableCell:
    own, used = its["own_threshold"], its["threshold"]
    if own is None:
        return TableCell(number(used, 2))
    if used != own["threshold"]:
        return TableCell(number(used, 2), f"configured; its own is {number(own['threshold'], 2)}")
    passing = f"{percent(own['good_passing'])} of good, {percent(own['poor_passing'])} of poor pass"
    if own.get("samples_passing") is not None:
        passing += f"; {percent(own['samples_passing'])} of samples, {percent(own['spoilt_passing'])} of bad ones"
    return TableCell(number(used, 2), passing)


def selector_warnings(result: Mapping[str, Any]) -> list[str]:
    """Where a Selector's scores may mean little: it has seen no image that was sampled like these."""
    said = {
        modality: "; ".join(its["sampled_otherwise"])
        for modality, its in result["selectors"].items()
        if its["sampled_otherwise"]
    }
    whose = {what: ", ".join(name for name, its in said.items() if its == what) for what in said.values()}
    reason = "the Selector has only seen generated images that were sampled otherwise"
    return [f"{names}: {reason}: {what}" for what, names in whose.items()]


def _kept_cell(summary: Mapping[str, Any] | None, scorer: str) -> TableCell:
    """Whose weights are in use, and by how much stage 2 was better on images that its networks had not seen."""
    its = summary if scorer == "policy" or summary is None else summary.get("selector")
    if its is None:
        return TableCell(NONE, faint=True)
    gain = its.get("gain_on_sampled" if scorer == "selector" else "gain") or {}
    if gain.get("value") is None:
        return TableCell(its["kept"], its["reason"])
    interval = "" if gain.get("low") is None else f", {number(gain['low'], 2)} to {number(gain['high'], 2)}"
    return TableCell(its["kept"], f"gain {number(gain['value'], 2)}{interval}")


def _estimate_cell(estimate: Mapping[str, Any]) -> TableCell:
    if estimate["value"] is None:
        return TableCell(NONE, faint=True)
    interval = "" if estimate["low"] is None else f"{number(estimate['low'], 2)} to {number(estimate['high'], 2)}, "
    return TableCell(number(estimate["value"], 2), f"{interval}n {estimate['n']}")


def raters(result: Mapping[str, Any]) -> ReportTable | None:
    """What is known of each rater; None where no import has written the ratings."""
    if result.get("raters") is None:
        return None
    rows = [
        [
            TableCell(one["rater"], counted(one["cases"], "case")),
            *(_estimate_cell(one[name]) for name in ("repeat_kappa", "repeat_icc", "decoy_d", "drift")),
            TableCell(duration(one["seconds"])),
        ]
        for one in result["raters"]["raters"]
    ]
    header = ["", "kappa", "ICC", "d′", "drift", "a case"]
    return ReportTable(header, rows, [("", 1), ("Repeats", 2), ("Real images told", 1), ("Session", 2)])


def agreement(result: Mapping[str, Any]) -> ReportTable | None:
    """How far raters agree; None with one rater."""
    found = result.get("raters")
    if found is None or found["overall"]["raters"] < 2:
        return None
    rows = [
        [_name_cell(name), *(_estimate_cell(between[key]) for key in ("alpha", "ac2", "pair_agreement"))]
        for name, between in ({OVERALL: found["overall"]} | found["by_modality"]).items()
    ]
    return ReportTable(["", "Krippendorff’s alpha", "Gwet’s AC2", "Same choice in pairs"], rows)


def rated(result: Mapping[str, Any]) -> ReportTable | None:
    """What experts think of the campaign's own images, by mode, and whether the Selector knew; None without ratings."""
    if result["rated"] is None:
        return None
    rows = [
        [
            TableCell(SET_NAMES.get(mode, mode), counted(its["images"], "image")),
            *(_estimate_cell(its[name]) for name in ("mean", "poor", "selector_auroc")),
        ]
        for mode, its in result["rated"]["modes"].items()
    ]
    return ReportTable(["", "mean rating", "share rated 1", "Selector: AUROC"], rows)


# of a mode that filters, or does not: headings over several columns, and the columns
_COSTS: dict[bool, tuple[list[tuple[str, int]], list[str]]] = {
    False: ([("{}", 1), ("{}, per image", 2)], ["images", "UNet rows", "time"]),
    True: (
        [("{}", 2), ("{}, per accepted image", 3), ("{}, mean score", 2)],
        ["accepted", "exhausted", "attempts", "UNet rows", "time", "Selector", "Policy"],
    ),
}


def generation(result: Mapping[str, Any]) -> ReportTable:
    """Cost and yield of each mode, per modality; without a filter nothing is rejected or scored."""
    modes = [arm["mode"] for arm in result["arms"]["arms"]]
    if len(modes) > 2:
        return _generation_by_row(result, modes)
    rows = [
        [_name_cell(name), *(cell for mode in modes for cell in _cost_cells(mode, group["generation"][mode]))]
        for name, group in result["groups"].items()
    ]
    groups = [("", 1)]
    groups += [(head.format(title(mode)), columns) for mode in modes for head, columns in _COSTS[filters(mode)][0]]
    return ReportTable(["", *(column for mode in modes for column in _COSTS[filters(mode)][1])], rows, groups)


def _generation_by_row(result: Mapping[str, Any], modes: Sequence[str]) -> ReportTable:
    """The same with a row for each mode of each modality, where there are too many modes for columns."""
    rows = []
    for name, group in result["groups"].items():
        for mode in modes:
            cells = _cost_cells(mode, group["generation"][mode])
            if not filters(mode):
                images, *price = cells
                cells = [images, TableCell(NONE), TableCell("1.0"), *price, TableCell(NONE), TableCell(NONE)]
            rows.append([TableCell("All" if name == OVERALL else name, title(mode)), *cells])
    groups = [("", 1), *((head.format("").strip(", ").capitalize(), count) for head, count in _COSTS[True][0])]
    return ReportTable(["", *_COSTS[True][1]], rows, groups)


def _cost_cells(mode: str, made: Mapping[str, Any]) -> list[TableCell]:
    evaluations, accepted = made["unet_evaluations"], made["accepted"]
    price = [
        TableCell(number(evaluations / accepted, 2) if evaluations and accepted else NONE),
        TableCell(duration(made["seconds_per_accepted"])),
    ]
    if not filters(mode):
        return [TableCell(str(accepted)), *price]
    return [
        TableCell(f"{accepted} of {made['requested']}"),
        TableCell(str(made["exhausted"])),
        TableCell(number(made["attempts_per_accepted"], 2)),
        *price,
        TableCell(number(made["selector_mean"], 2)),
        TableCell(number(made["policy_mean"], 2)),
    ]


def achieved(result: Mapping[str, Any]) -> ReportTable | None:
    """Requested and accepted images, by modality and by the values of the prompt list's columns.

    Shares are of rows of the same kind: all modalities, or all values of one column in one modality. None if there is
    nothing to compare.
    """
    cells = result["achieved"]["cells"]
    if len(cells) < 2:
        return None
    kinds = ["asked", *result["groups"][OVERALL]["generation"]]
    table = pd.DataFrame(cells)
    column = table.column.fillna("")
    whole = table[kinds].groupby([column, table.modality.where(column != "", "")]).transform("sum")
    rows = []
    for cell, shares in zip(cells, (table[kinds] / whole).fillna(0).to_dict("records"), strict=True):
        name = TableCell(cell["modality"])
        if cell["column"]:
            name = TableCell(cell["value"] or "(none)", f"{cell['modality']}, {cell['column']}")
        rows.append([name, *(TableCell(str(cell[kind]), percent(shares[kind])) for kind in kinds)])
    return ReportTable(["", *kinds], rows)


def variety(result: Mapping[str, Any]) -> ReportTable:
    """How similar the images of a set are, and how close the nearest training image is."""
    modes = list(result["groups"][OVERALL]["generation"])
    sets = ["held_out", *modes]
    rows = []
    for name, group in result["groups"].items():
        alike, near = group["pairwise_ssim"], group["nearest_training"]
        row = [_name_cell(name)]
        row += [TableCell(number(alike[key], 2)) for key in sets]
        row += [_near_cell(near.get(key)) for key in sets]
        row += [TableCell(percent(near[mode]["suspicious"]) if mode in near else NONE) for mode in modes]
        rows.append(row)
    groups = [("", 1), ("Similarity within the set", len(sets)), ("Nearest training image", len(sets))]
    groups.append(("Suspiciously close", len(modes)))
    return ReportTable(["", *2 * ["real", *modes], *modes], rows, groups)


def _near_cell(near: Mapping[str, Any] | None) -> TableCell:
    if near is None:
        return TableCell(NONE, faint=True)
    return TableCell(number(near["median"], 2), f"nearest {number(near['minimum'], 2)}")


def spent(efficiency: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the seconds of all tasks went to: name, share in percent, time and the width of a bar, largest first."""
    its = Efficiency(efficiency["seconds"], efficiency["queued"])
    percents, longest = its.whole_percents, max(its.shares.values(), default=0) or 1
    return [
        {
            "name": KINDS[kind],
            "share": f"{percents[kind]} %",
            "time": duration(seconds),
            "width": f"{100 * its.shares[kind] / longest:.1f}%",
        }
        for kind, seconds in sorted(its.seconds.items(), key=lambda pair: -pair[1])
        if seconds > 0
    ]


def stages(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Name, runs, time and the width of a bar for every stage."""
    longest = max((stage["seconds"] for stage in stages), default=0) or 1
    rows = []
    for stage in stages:
        runs = counted(stage["tasks"], "task")
        if stage["attempts"] > stage["tasks"]:
            runs += f", {stage['attempts']} attempts"
        if stage["unfinished"]:
            runs += f" ({stage['unfinished']} killed)"
        rows.append(
            {
                "name": stage["stage"],
                "runs": runs,
                "time": duration(stage["seconds"]),
                "width": f"{100 * stage['seconds'] / longest:.1f}%",
            }
        )
    return rows
