"""The report for people: one HTML file that needs no network, no script and no other file.

`medsyn.evaluation.report_tables`, `plots` and `contact_sheets` turn measurements into what a reader sees; the template
`report.html.j2` lays it out. All user text (prompts, captions, names) is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medsyn.arms import steps
from medsyn.config import PHANTOMS, Config
from medsyn.evaluation import alignment, arm_tables, copies, plots, report_tables, tally, verdict
from medsyn.evaluation.contact_sheets import candidate_sheet, contact_sheet
from medsyn.evaluation.read_campaign import Curves, Gathered
from medsyn.stage import CampaignDirectory
from medsyn.text import counted

NOTICE = "All generated images are synthetic. Not for diagnosis."


def render(
    config: Config, directory: CampaignDirectory, gathered: Gathered, curves: Curves, result: Mapping[str, Any]
) -> str:
    """The report as HTML.

    Args:
        config: the campaign's configuration.
        directory: where it is.
        gathered: the pictures and records that `result` was computed from.
        curves: the learning curves.
        result: the content of metrics.json.
    """
    environment = Environment(
        loader=PackageLoader("medsyn.evaluation"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    campaign = result["campaign"]
    return environment.get_template("report.html.j2").render(
        notice=NOTICE,
        name=campaign["name"],
        header=_header(campaign),
        missing=result["missing"],
        kid=result["kid"],
        judge=result["judge"],
        headline=report_tables.headline(result),
        following=report_tables.following(result),
        sheets=[contact_sheet(gathered, modality, config.evaluation.sheet_columns) for modality in gathered.modalities],
        training=_training_figures(curves),
        scorers=report_tables.scorers(result),
        selectors=report_tables.selectors(result),
        selector_warnings=report_tables.selector_warnings(result),
        raters=report_tables.raters(result),
        agreement=report_tables.agreement(result),
        rated=report_tables.rated(result),
        rated_raters=report_tables.raters(result["rated"] or {}),
        rated_agreement=report_tables.agreement(result["rated"] or {}),
        rated_warnings=(result["rated"] or {"raters": {}})["raters"].get("warnings", []),
        rating_warnings=(result["raters"] or {}).get("warnings", []),
        scores=_score_figure(gathered, report_tables.filtering(result)),
        generation=report_tables.generation(result),
        achieved=report_tables.achieved(result),
        dropped=result["achieved"]["dropped"],
        variety=report_tables.variety(result),
        stages=report_tables.stages(result["stages"]),
        spent=report_tables.spent(result["efficiency"]),
        queued=report_tables.duration(result["efficiency"]["queued"]),
        real=gathered.real,
        generated_left_out=campaign["generated_images_left_out"],
        steps=arm_tables.steps(result),
        arms=arm_tables.table(result),
        told_apart=[what for _, _, what in steps(config.arms)],
        verdict=result["verdict"],
        questions=verdict.QUESTIONS,
        answers=_answers(result["verdict"]),
        marks=MARKS,
        asked={one["question"] for its in result["verdict"]["modalities"].values() for one in its},
        to_do=_to_do(result["verdict"]),
        copies=copies.sentences(result["copies"] or {}),
        planted=copies.planted(result["copies"] or {}),
        copied=copies.pairs(result["copies"] or {}, gathered),
        alignment=alignment.table(result["alignment"] or {}),
        candidates=[
            sheet
            for modality in result["alignment"] or {}
            if (sheet := candidate_sheet(directory, modality, config.evaluation.sheet_columns))
        ],
        alignment_sentences={name: alignment.sentence(its) for name, its in (result["alignment"] or {}).items()},
        alignment_figure=_alignment_figure(alignment.curves(result["alignment"] or {})),
    )


MARKS = {"good": "●", "unclear": "◆", "bad": "■"}  # a shape each: colour alone is not seen by all


def _answers(said: Mapping[str, Any]) -> list[tuple[str, dict[str, dict[str, str]]]]:
    """By modality, the answer to each question that was asked: its level, mark, word and reason."""
    return [
        (
            name,
            {
                one["question"]: one | {"mark": MARKS[one["level"]], "word": verdict.ANSWERS[one["level"]]}
                for one in its
            },
        )
        for name, its in said["modalities"].items()
    ]


def _to_do(said: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(level, question, what to do, of which modalities) of every answer that is not yes, the worst first."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, its in said["modalities"].items():
        for one in its:
            if one["level"] != "good" and one["next"]:
                found.setdefault((one["level"], one["question"], one["next"]), []).append(name)
    rows = [
        (level, verdict.QUESTIONS[question], what, ", ".join(names)) for (level, question, what), names in found.items()
    ]
    return sorted(rows, key=lambda row: -verdict.LEVELS.index(row[0]))


def _alignment_figure(curves: Mapping[str, Any]) -> Markup | None:
    if not curves:
        return None
    return Markup(plots.alignment_curves(curves, plots.colours_of(curves)))


def _header(campaign: Mapping[str, Any]) -> list[tuple[str, str]]:
    data = "phantoms: procedural images, no patients" if campaign["data"] == PHANTOMS else campaign["data"]
    wanted = f"{campaign['prompts']} × {counted(campaign['images_per_prompt'], 'image')}"
    if campaign["images_asked"] != campaign["prompts"] * campaign["images_per_prompt"]:  # some set their own
        wanted = f"{campaign['prompts']}, which ask for {campaign['images_asked']} images"
    versions = [f"{name} {found}" for name, found in campaign["versions"].items() if found]
    return [
        ("Model", campaign["model"]),
        ("Data", f"{data} ({campaign['real_images']} images)"),
        ("Modalities", ", ".join(campaign["modalities"]) or report_tables.NONE),
        ("Resolution", f"{campaign['resolution']} px"),
        ("Prompts", wanted),
        ("Seed", str(campaign["seed"])),
        ("Configuration", campaign["config_fingerprint"][:16]),
        ("Versions", ", ".join(versions)),
    ]


def _training_figures(curves: Curves) -> list[tuple[str, Markup]]:
    """(title, SVG) of every stage with a learning curve."""
    colours = plots.colours_of({*curves.finetune, *curves.stage2})  # of a modality the same in every figure
    drawn: Iterable[tuple[str, Any, Any]] = (
        ("Fine-tuning", partial(plots.loss_curves, colours=colours), curves.finetune),
        ("RLHF stage 1: Selector and Policy on all ratings", plots.stage1_curves, curves.stage1),
        ("RLHF stage 2: the Policy of each modality", partial(plots.stage2_curves, colours=colours), curves.stage2),
    )
    return [(title, Markup(draw(data))) for title, draw, data in drawn if len(data)]


def _score_figure(gathered: Gathered, mode: str | None) -> Markup | None:
    made = tally.total(modes[mode].tally for modes in gathered.made.values() if mode in modes)
    passed, rejected = made.passed_scores, made.rejected_scores
    if not (passed.any() or rejected.any()):
        return None
    return Markup(plots.score_histogram(passed, rejected, made.thresholds))
