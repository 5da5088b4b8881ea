"""The arms in a report, what each step gave in words, alignment, and the verdict: with known answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsyn import disk
from medsyn.config import EvaluationSection
from medsyn.evaluation import alignment, arm_tables, evaluate, judge, report, verdict
from medsyn.stage import Control, NoProgress
from tests.evaluation.test_evaluate import TASK, metrics_of
from tests.helpers.synthetic_campaign import Builder, png

MODES = ["aligned", "pretrained", "filtered", "finetuned"]  # in no order
# what the stage leaves of a modality: of each figure value, low and high
LOOK = {"reward": 0.4, "accepted": 0.5, "quality": 0.2, "prompt": 0.6, "distance": 0.3, "diversity": 0.7, "recall": 0.5}
ROUND: dict[str, Any] = {
    "round": 1, "candidates": 512, "units": 40, "steps": 50, "kept": True, "step": 50, "stopped": None,
    "reason": "better by the judge: quality", "judged_images": 64,
    "before": {"quality": [0.2, 0.1, 0.3], "distance": [0.3, 0.2, 0.4], "reward": 0.4, "accepted": 0.5},
    "after": {"quality": [0.6, 0.5, 0.7], "distance": [0.2, 0.1, 0.3], "reward": 0.8, "accepted": 0.9},
    "gains": {"quality": [0.4, 0.3, 0.5], "distance": [0.1, -0.1, 0.2]},
    "steps_judged": {"0": LOOK, "25": LOOK | {"reward": 0.6}, "50": LOOK | {"reward": 0.8}},
}  # fmt: skip
HACKED = ROUND | {"kept": False, "reason": "reward hacking: the judge finds quality worse", "round": 2}


def summary(**changes: Any) -> dict[str, Any]:
    return {**ROUND, "rounds": [ROUND], **changes}


def candidates(folder: Path) -> None:
    """Of three prompts a best and a worst candidate, and one prompt whose candidates differ too little."""
    rows = [(group, number, part) for group in range(3) for number, part in enumerate(("worst", "left out", "best"))]
    lines = ["file,prompt,selector,policy,reward,part"]
    for group, number, part in [*rows, (3, 0, "left out")]:
        lines.append(f"{group:04d}-{number:02d}.png,CT: prompt {group},0.5,0.6,{number / 4},{part}")
        (folder / f"{group:04d}-{number:02d}.png").write_bytes(png(np.full((8, 8, 3), 40 * number, np.uint8)))
    (folder / "candidates.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def of_arms(tmp_path_factory: pytest.TempPathFactory, expert_directory: Path) -> Iterator[Builder]:
    """A campaign whose fine-tuning repairs every second image, and whose alignment and filter change little."""
    overrides = {"generation": {"modes": MODES}, "align": {"enabled": True}}
    builder = Builder(tmp_path_factory.mktemp("arms"), prompts_per_kind=24, overrides=overrides).everything()
    for modality in builder.modalities:
        builder.directory.aligned_unet(modality).mkdir(parents=True)
    work = builder.directory.work("align", "ct")
    disk.write_json(work / "summary.json", summary())
    candidates(disk.make_directory(work / "candidates" / "round-1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load_or_train", lambda *_, **__: judge._saved(expert_directory, judge.RECIPE))
        evaluate.run(builder.config, TASK, builder.directory, Control())
    yield builder


@pytest.fixture
def result(of_arms: Builder) -> dict[str, Any]:
    return copy.deepcopy(metrics_of(of_arms))


def test_each_step_is_told_in_words_with_its_paired_interval(result: dict[str, Any]) -> None:
    arms = [arm["mode"] for arm in result["arms"]["arms"]]
    assert arms == ["pretrained", "finetuned", "aligned", "filtered"]
    names, told = zip(*arm_tables.steps(result), strict=True)
    assert names == ("All modalities", "OCT", "CT")
    first, second, third, last = told[0]
    assert (first.name, first.arms) == ("Fine-tuning", "Pretrained → Fine-tuned; 48 images of 48 prompts in both")
    change = result["arms"]["groups"]["all"]["steps"][0]["measures"]["right"]
    assert change["low"] > 0.2 and first.changed[0].startswith(f"+{change['change']:.2f} [")
    assert "right finding and side (" in first.changed[0]
    assert (second.name, third.name, last.name) == (
        "Alignment",
        "Filter on the aligned model",
        "Fine-tuning, alignment and filter",
    )
    assert "right finding and side" in second.unchanged and "right finding and side" in third.unchanged
    assert third.arms.endswith("46 images of 46 prompts in both"), "an exhausted prompt has no pair"


def test_the_table_of_arms_has_a_row_for_each_and_marks_what_is_not_independent(result: dict[str, Any]) -> None:
    table = arm_tables.table(result)
    assert [row[0].text for row in table.rows[:5]] == [
        "Pretrained",
        "Fine-tuned",
        "Aligned",
        "Filtered",
        "OCT: pretrained",
    ]
    assert all(len(row) == len(table.header) == sum(count for _, count in table.groups) for row in table.rows)
    assert ("Scores: not independent", 2) in table.groups
    accepted = table.header.index("accepted")
    assert (table.rows[3][accepted].text, table.rows[3][accepted].detail) == ("96 %", "46 of 48")


def test_the_page_shows_arms_in_rows_the_verdict_in_words_and_alignment(of_arms: Builder) -> None:
    html = of_arms.directory.report.read_text()
    labels = [
        html.index(f'<div class="label">{name}<small>synthetic') for name in ("Pretrained", "Fine-tuned", "Aligned")
    ]
    assert labels == sorted(labels)
    top = html[html.index('id="verdict"') : html.index('id="summary"')]
    assert "Not shown to be good: " in top and '<i aria-hidden="true">◆</i>not shown' in top
    assert "Is the Selector better than chance?" in top and "it has not run" in top
    section = html[html.index('<section id="alignment">') : html.index('<section id="following">')]
    assert (
        "the aligned model is used (better by the judge: quality): distance: no difference shown; quality better"
        in section
    )
    assert "no expert was asked" in section and "<svg" in section
    assert section.count('alt="synthetic image, candidate: CT: prompt') == 6 and "reward 0.50" in section
    assert section.index("learned towards") < section.index("learned away from") and "prompt 3" not in section


def answers(result: dict[str, Any], modality: str = "CT", **section: Any) -> dict[str, dict[str, str]]:
    found = verdict.judge(result, EvaluationSection(**section))["modalities"][modality]
    return {answer["question"]: answer for answer in found}


def test_questions_are_answered_by_thresholds_and_say_what_to_do(result: dict[str, Any]) -> None:
    usual = answers(result, min_images=4)
    assert {name: its["level"] for name, its in usual.items()} == {
        "images": "good",
        "selector": "good",
        "filter": "unclear",
        "alignment": "unclear",
        "diversity": usual["diversity"]["level"],
    }
    assert "no difference shown, aligned → filtered" in usual["filter"]["reason"]
    assert "medsyn rate export" in usual["filter"]["next"]
    assert answers(result)["images"]["level"] == "unclear" and "fewer than 50" in answers(result)["images"]["reason"]
    strict = answers(result, min_auroc=0.8)["selector"]
    assert strict["level"] == "unclear" and "0.75" in strict["reason"]
    result["selectors"]["CT"]["auroc"] |= {"value": 0.37, "low": 0.3, "high": 0.44}
    assert answers(result)["selector"]["level"] == "bad"


@pytest.mark.parametrize(
    ("figure", "level"),
    [
        ((0.3, 0.2, 0.35), "bad"),
        ((0.5, 0.4, 0.6), "unclear"),
        ((0.7, 0.6, 0.8), "good"),
        ((0.3, None, None), "unclear"),
    ],
)
def test_lost_diversity_is_bad_only_where_the_whole_interval_says_so(
    result: dict[str, Any], figure: tuple[float, float | None, float | None], level: str
) -> None:
    result["groups"]["CT"]["pairwise_ssim"]["held_out"] = 0.5
    its = result["arms"]["groups"]["CT"]["arms"]["filtered"]["figures"]
    its["diversity"] = dict(zip(("value", "low", "high"), figure, strict=True))
    assert answers(result, min_diversity=0.9)["diversity"]["level"] == level
    said = verdict.judge(result, EvaluationSection(min_images=1))
    assert (said["overall"] == "bad") == (level == "bad")
    if level == "bad":
        assert said["summary"] == "Not good: diversity is lost (CT)."


@pytest.mark.parametrize(
    ("right", "kid", "level"),
    [((0.3, 0.2, 0.4), None, "good"), ((-0.3, -0.4, -0.2), None, "bad"), (None, (-0.3, -0.4, -0.2), "good")],
)
def test_a_filter_is_good_where_the_judge_or_else_the_distance_says_so(
    result: dict[str, Any], right: tuple[float, ...] | None, kid: tuple[float, ...] | None, level: str
) -> None:
    step = result["arms"]["groups"]["CT"]["steps"][2]
    assert step["name"] == "filter on the aligned model"
    step["measures"] = {
        name: {"before": 0.5, "after": 0.5, **dict(zip(("change", "low", "high"), its, strict=True))}
        for name, its in (("right", right), ("distance", kid))
        if its is not None
    }
    assert answers(result)["filter"]["level"] == level


def test_two_arms_that_differ_in_two_things_tell_neither(result: dict[str, Any]) -> None:
    for group in result["arms"]["groups"].values():
        group["steps"] = [step | {"name": "fine-tuning and filter"} for step in group["steps"][:1]]
    its = answers(result)["filter"]
    assert its["reason"] == "no two arms differ in this alone" and "generation.modes=[" in its["next"]


def test_an_aligned_model_that_is_not_kept_is_told_with_its_reason(result: dict[str, Any]) -> None:
    result["alignment"]["CT"] = summary(**HACKED, rounds=[ROUND, HACKED])
    its = answers(result)["alignment"]
    assert its["level"] == "unclear" and "the fine-tuned model stays in use (reward hacking" in its["reason"]
    result["alignment"]["CT"] = summary(kept=False, reason="the judge finds no difference in quality")
    assert answers(result)["alignment"]["level"] == "unclear"
    result["alignment"] = None
    assert "alignment" not in answers(result)


def test_rounds_are_rows_and_their_curves_follow_one_another() -> None:
    two = {"CT": summary(rounds=[ROUND, HACKED | {"new_ratings": 12}])}
    table = alignment.table(two)
    assert table is not None and len(table.rows) == 2
    assert [row[0].detail for row in table.rows] == [
        "round 1, no new ratings: no expert was asked",
        "round 2, 12 new ratings",
    ]
    assert table.rows[0][2].text == "0.40 → 0.80" and table.rows[1][-1].text == "no"
    curve = alignment.curves(two)["CT"]
    assert list(curve.index) == [0, 25, 50, 75, 100] and curve.reward[100] == 0.8
    nothing = {"kept": False, "reason": "no two candidates differ", "round": 1, "candidates": 16, "units": 0}
    assert alignment.curves({"CT": {**nothing, "rounds": [nothing]}}) == {}
    assert alignment.table({"CT": {**nothing, "rounds": [nothing]}}) is not None


@pytest.mark.parametrize(
    ("fail_on", "overall", "fails"),
    [(None, "bad", 0), ("bad", "bad", 1), ("bad", "unclear", 0), ("unclear", "unclear", 1)],
)
def test_only_a_verdict_that_was_asked_for_fails_the_stage(fail_on: Any, overall: str, fails: int) -> None:
    assert verdict.fails({"overall": overall}, EvaluationSection(fail_on=fail_on)) == bool(fails)


def test_a_failing_evaluation_has_written_its_report_and_says_why(builder: Builder, expert_directory: Path) -> None:
    builder.everything()
    section = builder.config.evaluation.model_copy(update={"fail_on": "unclear"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "load_or_train", lambda *_, **__: judge._saved(expert_directory, judge.RECIPE))
        with pytest.raises(NoProgress, match=r"^Not shown to be good: too few images.*evaluation\.fail_on is unclear"):
            evaluate.run(builder.config.model_copy(update={"evaluation": section}), TASK, builder.directory, Control())
    assert builder.directory.report.exists()


def test_what_to_do_is_told_once_with_the_modalities_that_need_it_the_worst_first() -> None:
    few = {"question": "images", "level": "unclear", "reason": "5", "next": "ask for more"}
    lost = {"question": "diversity", "level": "bad", "reason": "0.1", "next": "fewer steps"}
    said = {"modalities": {"CT": [few, lost], "MRI": [few]}}
    assert report._to_do(said) == [
        ("bad", "Is diversity kept?", "fewer steps", "CT"),
        ("unclear", "Enough images to say?", "ask for more", "CT, MRI"),
    ]
