from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsyn import disk
from medsyn.data.phantoms.phantom import parse_caption
from medsyn.evaluation import evaluate, judge
from medsyn.stage import Control, Saved, Task
from tests.helpers.synthetic_campaign import Builder

TASK = Task("evaluate", 0, "all")


@pytest.fixture(scope="session")
def run(expert_directory: Path) -> Callable[[Builder], dict[str, Any]]:
    """Runs the stage with a judge that is already there, and returns metrics.json."""

    def run_stage(builder: Builder) -> dict[str, Any]:
        shutil.copytree(expert_directory, builder.directory.work("evaluate", "all") / "judge", dirs_exist_ok=True)
        evaluate.run(builder.config, TASK, builder.directory, Control())
        return metrics_of(builder)

    return run_stage


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def metrics_of(builder: Builder) -> dict[str, Any]:
    text = (builder.directory.work("evaluate", "all") / "metrics.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def drop_captions(builder: Builder) -> None:
    """Make the data set one of patients: captions that no phantom has."""
    for name, column in (("metadata.csv", "Text"), ("prompts.csv", "prompt")):
        with (builder.data / name).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row[column] += ", follow-up"
        with (builder.data / name).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    builder.prepare_prompts()


@pytest.fixture(scope="session")
def evaluated(whole: Builder, run: Callable[[Builder], dict[str, Any]]) -> Builder:
    run(whole)
    return whole


def test_a_whole_campaign_gets_numbers_and_a_report(evaluated: Builder) -> None:
    metrics = metrics_of(evaluated)
    assert metrics["missing"] == [] and set(metrics["groups"]) == {"all", "OCT", "CT"}
    one = metrics["groups"]["CT"]
    assert one["n"] == {
        "training": one["n"]["training"],
        "held_out": 12 - one["n"]["training"],
        "baseline": 3,
        "filtered": 2,
    }
    assert set(one["kid"]) == {"baseline", "filtered", "floor", "other_modalities"}
    assert one["kid"]["other_modalities"]["value"] > abs(one["kid"]["floor"]["value"])
    assert not one["kid"]["baseline"]["meaningful"]
    assert one["generation"]["filtered"]["exhausted_prompts"] == ["chest-ct-1"]
    assert 0 < one["pairwise_ssim"]["held_out"] < 1
    assert metrics["groups"]["all"]["prompt_following"]["filtered"]["finding"]["value"] == 1
    assert metrics["groups"]["all"]["prompt_following"]["baseline"]["finding"]["value"] < 1
    assert evaluated.directory.report.read_text().startswith("<!doctype html>")


def test_the_result_is_a_function_of_the_files_and_the_seed(
    evaluated: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    first = evaluated.directory.report.read_bytes()
    np.random.seed(99)
    run(evaluated)
    assert evaluated.directory.report.read_bytes() == first


def test_a_failed_modality_costs_its_own_rows_only(builder: Builder, run: Callable[[Builder], dict[str, Any]]) -> None:
    builder.everything()
    complete = run(builder)["groups"]["CT"]
    shutil.rmtree(builder.directory.finetuned_unet("OCT"))
    for mode in ("baseline", "filtered"):
        shutil.rmtree(builder.directory.block(mode, "OCT", 0).parent)
    metrics = run(builder)
    assert {part["task"] for part in metrics["missing"]} == {"finetune oct", "generate oct-00000", "generate oct-00001"}
    assert metrics["groups"]["CT"] == complete
    assert metrics["groups"]["OCT"]["kid"]["filtered"] is None
    assert metrics["groups"]["OCT"]["kid"]["other_modalities"] is not None
    html = builder.directory.report.read_text()
    assert "This report is incomplete" in html and "<code>finetune oct</code>" in html


def test_nothing_at_all_still_gives_a_report(builder: Builder) -> None:
    evaluate.run(builder.config, TASK, builder.directory, Control())
    metrics = metrics_of(builder)
    assert "the data set" in {part["task"] for part in metrics["missing"]}
    assert list(metrics["groups"]) == ["all"] and metrics["groups"]["all"]["kid"]["floor"] is None
    assert "<p>Nothing to show.</p>" in builder.directory.report.read_text()


def test_images_without_prompts_and_prompts_without_images(
    builder: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    builder.everything()
    lines = (builder.data / "prompts.csv").read_text().splitlines()
    (builder.data / "prompts.csv").write_text("\n".join(line for line in lines if not line.endswith(",CT")) + "\n")
    builder.prepare_prompts()
    lines = (builder.data / "metadata.csv").read_text().splitlines()
    (builder.data / "metadata.csv").write_text("\n".join(line for line in lines if ",OCT," not in line) + "\n")
    metrics = run(builder)
    assert metrics["groups"]["CT"]["generation"]["filtered"]["requested"] == 0
    assert metrics["groups"]["OCT"]["n"]["held_out"] == 0 and metrics["groups"]["OCT"]["n"]["filtered"] == 2


def test_patients_images_have_no_judge_and_the_report_says_so(
    builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "train", lambda *_: pytest.fail("a judge was trained"))
    builder.tables()
    drop_captions(builder)
    for mode in ("baseline", "filtered"):
        builder.blocks(mode, "CT")
    evaluate.run(builder.config, TASK, builder.directory, Control())
    metrics = metrics_of(builder)
    assert not metrics["judge"]["available"] and metrics["groups"]["CT"]["prompt_following"] is None
    assert metrics["campaign"]["data"] == "metadata.csv"
    html = builder.directory.report.read_text()
    assert "Prompt following was not measured" in html and "Finding right" not in html


def test_a_stack_without_clean_fid_gives_a_report_that_says_so(
    builder: Builder, run: Callable[[Builder], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cleanfid.fid", None)
    metrics = run(builder.everything())
    assert not metrics["kid"]["available"] and metrics["groups"]["CT"]["kid"] == {}
    assert "No KID: clean-fid cannot be imported here" in builder.directory.report.read_text()


def test_one_mode_alone_is_a_campaign(tmp_path: Path, run: Callable[[Builder], dict[str, Any]]) -> None:
    for mode in ("baseline", "filtered"):
        builder = Builder(tmp_path / mode, overrides={"generation": {"modes": [mode]}}).everything()
        metrics = run(builder)
        assert list(metrics["groups"]["CT"]["generation"]) == [mode] and metrics["missing"] == []


def test_a_kept_best_image_is_shown_but_never_counted(
    builder: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    builder.everything()
    block = builder.directory.block("filtered", "CT", 0)
    lines = [json.loads(line) for line in (block / "manifest.jsonl").read_text().splitlines()]
    lines[0] |= {"accepted": False, "reason": "exhausted-kept-best"}
    (block / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = run(builder)
    assert metrics["groups"]["CT"]["n"]["filtered"] == 1
    assert "not accepted: best of" in builder.directory.report.read_text()


def test_asked_to_stop_it_leaves_without_a_report_and_goes_on_later(
    builder: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    builder.everything()
    control = Control()
    control.request_stop()
    with pytest.raises(Saved):
        evaluate.run(builder.config, TASK, builder.directory, control)
    assert not builder.directory.report.exists()
    assert run(builder)["missing"] == []


def test_heartbeats_say_what_it_is_doing(evaluated: Builder) -> None:
    beats = []

    class Listening(Control):
        def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
            beats.append((step, total, numbers.get("doing")))

    evaluate.run(evaluated.config, TASK, evaluated.directory, Listening())
    assert beats[0] == (0, 4, "reading images") and beats[-1][:2] == (4, 4)
    assert sorted(step for step, _, _ in beats) == [step for step, _, _ in beats]


def test_the_scorers_standing_is_shown_where_it_is_known(
    evaluated: Builder, builder: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    html = evaluated.directory.report.read_text()
    assert "gain 0.25, 0.020 to 0.13" in html and "gain 0.080, 0.020 to 0.13" in html
    assert "too few ratings passed the Selector" in html
    builder.everything()
    summary = builder.directory.work("rlhf-stage1", "all") / "summary.json"
    summary.write_text('{"policy": {"epoch": 0, "auroc": null, "loss": null}}')
    (builder.directory.work("rlhf-stage2", "ct") / "summary.json").unlink()
    metrics = run(builder)
    assert metrics["rlhf"]["stage1"]["policy"]["auroc"] is None and set(metrics["rlhf"]["stage2"]) == {"OCT"}
    summary.unlink()
    assert run(builder)["rlhf"]["stage1"] is None
    assert "How well the scorers rank" not in builder.directory.report.read_text()


def test_the_report_says_what_the_selector_is_worth_and_what_it_let_pass(
    evaluated: Builder, builder: Builder, run: Callable[[Builder], dict[str, Any]]
) -> None:
    html = evaluated.directory.report.read_text()
    assert "What the Selector is known to be worth" in html and "0.75 to 0.90, 120 groups, all modalities" in html
    assert "configured" not in html and "sampled otherwise" not in html
    builder.everything()
    config = builder.directory.selector("CT") / "config.json"
    card = disk.read_json(config)["card"]
    card["evidence"]["by_modality"] = {"CT": {"value": 0.7, "low": 0.55, "high": 0.8, "n": 30}}
    disk.write_json(config, {"card": card | {"sampling": {"guidance_scale": [3.0, 4.0]}}})
    builder.config = builder.config.model_copy(
        update={"generation": builder.config.generation.model_copy(update={"quality_threshold": 0.5})}
    )
    its = run(builder)["selectors"]["CT"]
    assert (its["evidence_of"], its["auroc"]["low"], its["threshold"]) == ("CT", 0.55, 0.5)
    assert its["sampled_otherwise"] == ["guidance_scale 7.5 (seen: 3.0, 4.0)"]
    html = builder.directory.report.read_text()
    assert "0.55 to 0.80, 30 groups" in html and "configured; its own is 0.60" in html
    assert "generated images that were sampled otherwise: guidance_scale 7.5 (seen: 3.0, 4.0)" in html
    for modality in builder.modalities:
        shutil.rmtree(builder.directory.selector(modality))
    assert run(builder)["selectors"] == {}
    assert "known to be worth" not in builder.directory.report.read_text()


def test_neither_patients_nor_paths_are_in_what_people_are_shown(evaluated: Builder) -> None:
    whole = evaluated
    html = whole.directory.report.read_text()
    text = html + (whole.directory.work("evaluate", "all") / "metrics.json").read_text()
    assert str(whole.root) not in text
    assert "patient-" not in text, "a patient's name in the table"
    assert "oct-000" not in html, "a file's name, which may name a patient"


def test_prompts_are_shown_as_text(builder: Builder, run: Callable[[Builder], dict[str, Any]]) -> None:
    builder.tables()
    attack = 'CT: "><script>alert(1)</script><img src=x onerror=alert(2)> & {{ 7 * 7 }}'
    with (builder.data / "prompts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "prompt", "modality"), ("a", attack, "CT"), ("b", "CT: plain", "CT")])
    builder.prepare_prompts()
    assert parse_caption(attack) is None
    for mode in ("baseline", "filtered"):
        builder.blocks(mode, "CT")
    run(builder)
    html = builder.directory.report.read_text()
    assert "<script" not in html and "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html and "{{ 7 * 7 }}" in html
