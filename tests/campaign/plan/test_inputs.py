from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn import schedulers
from medsyn.campaign.plan import inputs
from medsyn.campaign.status import figures, read
from medsyn.errors import InputProblems, Problem
from tests.data.images.test_own_sampling import write as write_image
from tests.helpers.trial import Trial


def write(trial: Trial, rows: list[dict[str, Any]]) -> dict[str, str]:
    path = trial.data / "wanted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data__prompts": str(path)}


ROWS = [
    {"prompt": "CT: a", "n": 5},
    {"prompt": "CT: b", "num_inference_steps": 10},
    {"prompt": "CT: c"},
    {"prompt": "OCT: d", "guidance_scale": 1},
]


def test_blocks_hold_items_that_can_share_a_batch_and_the_plan_counts_them(trial: Trial) -> None:
    asked = write(trial, ROWS)
    for _ in range(2):
        checked = inputs.check(trial.config(**asked, generation__img_num=2))
        assert checked.counts["asked"] == {"CT": 9, "OCT": 2}
        tasks = checked.plan.by_stage["generate"]
        assert [task.task.blocks for task in tasks if task.task.modality == "CT"] == [
            (number, number + 1) for number in range(5)
        ], "seven images with the configuration's steps, two with ten steps, two a block"
    assert trial.prepare(**asked, generation__img_num=2).plan.tasks == checked.plan.tasks


@pytest.mark.parametrize(("one", "others"), [(1, 3), (3, 1)])
def test_ratings_that_can_show_nothing_are_foreseen(trial: Trial, one: int, others: int) -> None:
    table = trial.data / "ratings.csv"
    table.write_text(re.sub(r"png,\d", f"png,{others}", table.read_text()).replace(f",{others},", f",{one},", 1))
    said = [its for its in inputs.check(trial.config()).problems if "require_auroc" in str(its)]
    assert [(its.severity, its.key) for its in said] == [("warning", "data.ratings_file")]
    assert "the campaign will stop before it generates" in said[0].reason
    for without in ({"selector__require_auroc": None}, {"generation__modes": ["baseline"]}):
        assert not any("require_auroc" in str(its) for its in inputs.check(trial.config(**without)).problems)


@pytest.mark.parametrize("guidance", [7.5, 3.0])
def test_ratings_of_images_that_were_sampled_otherwise_are_told(trial: Trial, guidance: float) -> None:
    write_image(trial.data / "ct-0.png", scheduler="dpm", num_inference_steps=25, guidance_scale=7.5)
    said = [str(one) for one in inputs.check(trial.config(generation__guidance_scale=guidance)).problems]
    found = [one for one in said if "sampled otherwise" in one]
    assert len(found) == (guidance != 7.5) and all("guidance_scale 3.0 (seen: 7.5)." in one for one in found)


def test_a_modality_without_ratings_has_no_threshold(trial: Trial) -> None:
    table = trial.data / "ratings.csv"
    table.write_text("\n".join(row for row in table.read_text().splitlines() if "OCT" not in row))

    def said(**given: Any) -> list[Problem]:
        found = inputs.check(trial.config(training__stage=1, **given)).problems
        return [one for one in found if "no ratings of OCT" in str(one)]

    (automatic,), (number,) = said(), said(generation__quality_threshold=0.5)
    assert automatic.severity == "error" and "the Selector no threshold" in automatic.reason
    assert number.severity == "warning" and "threshold" not in number.reason


def test_everything_wrong_with_a_list_is_told_before_anything_is_written(trial: Trial) -> None:
    bad = [{"prompt": "CT: a", "n": 0}, {"prompt": ""}, {"prompt": "PET: x"}, {"prompt": "CT: b", "seed": -1}]
    with pytest.raises(InputProblems) as caught:
        trial.prepare(**write(trial, bad))
    said = str(caught.value)
    for part in ("line 1, n: '0'", "line 2, prompt: '' says nothing", "line 3, prompt: 'PET: x'", "line 4, seed: '-1'"):
        assert part in said
    assert not trial.root.exists()


def test_rows_with_problems_are_left_out_where_the_user_says_so(trial: Trial) -> None:
    campaign = trial.prepare(**write(trial, [*ROWS, {"prompt": "CT: z", "n": 0}]), data__strict=False)
    assert campaign.plan.tasks == trial.prepare(**write(trial, ROWS)).plan.tasks


def test_other_replicates_and_batches_leave_the_list_alone(trial: Trial) -> None:
    asked = write(trial, ROWS)
    trial.prepare(**asked)
    lists = trial.root / "inputs" / "prompts"
    before = {path: path.stat().st_mtime_ns for path in lists.iterdir()}
    trial.prepare(**asked, generation__img_num=3, generation__batch_size=4)
    assert {path: path.stat().st_mtime_ns for path in lists.iterdir()} == before


@pytest.mark.parametrize("change", [{"n": 6}, {"seed": 1}, {"guidance_scale": 2}, {"site": "left"}])
def test_another_setting_of_one_prompt_is_refused_once_there_are_images(trial: Trial, change: dict[str, Any]) -> None:
    trial.prepare(**write(trial, ROWS))
    for planned in trial.campaign().plan:
        trial.work(*planned.key)
    with pytest.raises(InputProblems, match=r"data\.prompts: has changed"):
        trial.prepare(**write(trial, [ROWS[0] | change, *ROWS[1:]]))


def test_the_same_list_in_another_format_is_the_same_campaign(trial: Trial) -> None:
    trial.prepare(**write(trial, [{"prompt": "CT: a", "n": 2}, {"prompt": "OCT: d"}]))
    before = trial.campaign().fingerprints
    path = trial.data / "wanted.csv"
    path.write_text("n,prompt\n2,CT: a\n,OCT: d\n")
    trial.prepare(data__prompts=str(path))
    assert trial.campaign().fingerprints == before


def test_a_prepared_campaign_s_own_configuration_can_be_submitted(trial: Trial) -> None:
    trial.prepare(**write(trial, ROWS))
    before = trial.campaign()
    trial.prepare_config(configuration.load(trial.root / "config.yaml", environment={}))
    assert trial.campaign().fingerprints == before.fingerprints


def test_a_list_that_was_changed_by_hand_stops_its_tasks(trial: Trial) -> None:
    trial.prepare_short(**write(trial, ROWS))
    for planned in trial.campaign().plan:
        if planned.task.stage not in ("generate", "evaluate"):
            trial.work(*planned.key)
    path = trial.root / "inputs" / "prompts" / "ct.jsonl"
    path.write_text(path.read_text().replace("CT: a", "CT: x"))
    code, said = trial.work("generate", "ct-00000")
    assert code == 65
    assert "ct.jsonl has changed since it was written" in said


def test_a_second_preparation_finishes_what_a_killed_one_began(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = write(trial, ROWS)
    whole = trial.prepare(**asked)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)  # the list is written, and its directory has not its name yet
        with pytest.raises(KeyboardInterrupt):
            trial.prepare(**write(trial, [*ROWS, {"prompt": "CT: more"}]))
    assert trial.prepare(**write(trial, ROWS)).plan.tasks == whole.plan.tasks
    assert [path.name for path in (trial.root / "inputs").iterdir()] == ["prompts"]


def test_a_campaign_may_be_narrowed_to_a_modality_of_its_own_list(trial: Trial) -> None:
    trial.prepare(**write(trial, ROWS))
    trial.prepare_config(trial.config(data__prompts=str(trial.root / "inputs" / "prompts"), data__modalities=["CT"]))
    lists = trial.root / "inputs" / "prompts"
    assert sorted(path.name for path in lists.iterdir()) == ["ct.jsonl", "ct.offsets", "index.json"]


def test_steps_that_the_sampler_cannot_take_are_refused(trial: Trial) -> None:
    solver = schedulers.SOLVERS["lcm"]
    asked = write(trial, [{"prompt": "CT: a", "num_inference_steps": solver.most_steps + 1}, {"prompt": "OCT: b"}])
    [problem] = inputs.check(trial.config(**asked, generation__scheduler="lcm")).errors
    assert problem.key == "num_inference_steps"
    assert f"lcm takes {solver.fewest_steps} to {solver.most_steps} steps" in problem.reason
    assert inputs.check(trial.config(**asked)).errors == []


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("CT:", "'CT:' says nothing"),
        ("CT: a\nb", "'CT: a\\nb' contains a line break"),
        ("CT: a\0b", "contains a NUL byte"),
        ("CT: " + "x" * 20_000, "is longer than 10000 characters"),
    ],
    ids=["empty", "line break", "NUL", "long"],
)
def test_the_prompts_of_the_configuration_are_held_to_what_a_list_is(trial: Trial, prompt: str, reason: str) -> None:
    (trial.data / "prompts.csv").unlink()
    (problem,) = inputs.check(trial.config(data__base_prompt=prompt)).errors
    assert (problem.source, problem.key, problem.row) == ("configuration", "data.base_prompt", None)
    assert reason in problem.reason
    told = inputs.check(trial.config(data__base_prompt="CT: a", generation__negative_prompt=prompt)).errors
    assert [one.key for one in told] == ["generation.negative_prompt"] * (prompt != "CT:")


def test_status_knows_how_many_images_the_list_asks_for(trial: Trial) -> None:
    campaign = trial.prepare(**write(trial, ROWS), generation__img_num=2)
    assert {mode: its.asked for mode, its in figures.images(read.read(campaign)).items()} == {
        "baseline": 11,
        "filtered": 11,
    }


def test_a_directory_that_links_may_lead_to_must_be_there(trial: Trial) -> None:
    config = trial.config(data__linked_roots=[str(trial.data), "no/store", str(trial.data / "ct-0.png")])
    reasons = [problem.reason for problem in inputs.check(config).problems if problem.key == "data.linked_roots"]
    assert [reason.partition(" is not a directory")[0] for reason in reasons] == [
        str(Path.cwd() / "no/store"),
        str(trial.data / "ct-0.png"),
    ]
