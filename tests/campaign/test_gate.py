"""`campaign.gate: ratings`: what waits for ratings, what it says meanwhile, and what lets it go on."""

from __future__ import annotations

import io
import json
import shlex
from dataclasses import replace

import pytest
from rich.console import Console

from medsyn import disk, own_ratings
from medsyn.campaign import notify
from medsyn.campaign.local import scheduler
from medsyn.campaign.local.live_table import Display
from medsyn.campaign.slurm import show
from medsyn.campaign.state import gate, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status import as_json, as_text, read
from medsyn.campaign.tasks import settle
from medsyn.errors import InputProblems
from tests.helpers.trial import Trial

EVALUATE = ("evaluate", "all")


@pytest.fixture
def generated(trial: Trial) -> Campaign:
    """Everything is done but what waits for ratings."""
    campaign = trial.prepare_short(campaign__gate="ratings")
    for planned in campaign.plan.tasks[:-1]:
        trial.work(*planned.key)
    return campaign


def rate(campaign: Campaign, content: bytes = b"sessions") -> None:
    folder = disk.make_directory(campaign.directory.ratings.parent)
    disk.write_atomic(folder / "sessions.parquet", content)
    own_ratings.note(campaign.directory)


def run(campaign: Campaign) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = scheduler.run(campaign, Display(campaign, console, "resume"))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return code, text


def test_it_ends_there_without_a_failure_and_says_what_to_do(trial: Trial, generated: Campaign) -> None:
    code, text = run(generated)
    assert code == 0
    assert "needs ratings of its own images (campaign.gate); evaluate waits for them:" in text
    assert f"    medsyn rate export {trial.root} --out set.html\n" in text
    assert f"    medsyn rate import ANSWERS --key set.key.json --campaign {trial.root}\n" in text
    assert "next      once the ratings are there: resume" in text
    assert "evaluate all" not in trial.calls()


def test_status_says_it_too(trial: Trial, generated: Campaign) -> None:
    status = read.read(generated)
    found = as_json.as_dict(status, str)
    assert found["needs"] == {"what": "ratings", "commands": list(gate.commands(generated.directory))}
    assert (found["exit_code"], found["next"]) == (75, {"why": "once the ratings are there", "command": "resume"})
    assert status.why(EVALUATE) == "waits for ratings"
    assert any("needs ratings" in str(part) for part in as_text.parts(status, str))
    rate(generated)
    assert as_json.as_dict(read.read(generated), str)["needs"] is None


def test_it_needs_none_while_images_are_made(trial: Trial) -> None:
    assert not read.read(trial.prepare_short(campaign__gate="ratings")).needs_ratings


def test_by_hand_it_does_not_run_either(trial: Trial, generated: Campaign) -> None:
    code, output = trial.work(*EVALUATE)
    assert code == 65
    assert "evaluate all: waits for ratings of the campaign's own images (campaign.gate): `medsyn rate export" in output
    with pytest.raises(InputProblems, match="evaluate all waits for ratings"):
        scheduler.run(generated, Display(generated, Console(), "again"), only={EVALUATE})
    rate(generated)
    assert trial.work(*EVALUATE)[0] == 0


def test_ratings_of_images_that_are_no_longer_made_do_not_count(generated: Campaign) -> None:
    rate(generated)
    assert gate.held(generated) == frozenset()
    facts = disk.read_json(generated.directory.campaign_file)
    facts["fingerprints"]["generate"] = "others"
    disk.write_json(generated.directory.campaign_file, facts)
    assert gate.held(generated) == {EVALUATE}


def test_new_ratings_are_evaluated_anew(trial: Trial, generated: Campaign) -> None:
    rate(generated)
    trial.work(*EVALUATE)
    assert EVALUATE in markers.done_keys(generated, generated.plan)
    rate(generated, b"more of them")
    assert EVALUATE not in markers.done_keys(generated, generated.plan)


def test_the_gate_may_be_opened_at_any_time(trial: Trial, generated: Campaign) -> None:
    without = trial.prepare_short()
    assert gate.held(without) == frozenset()
    assert without.fingerprints == generated.fingerprints


def test_the_plan_for_slurm_has_no_job_for_what_waits(trial: Trial) -> None:
    config = trial.config(campaign__gate="ratings", cluster__notify="true")
    nodes = show.jobs(config, trial.prepare_config(config).plan, 1001)
    assert {node.stage for node in nodes} == {"finetune", "rlhf-stage1", "rlhf-stage2", "generate"}
    open_ones = show.jobs(trial.config(), trial.campaign().plan, 1001)
    assert {node.name for node in open_ones} - {node.name for node in nodes} == {"evaluate"}


def test_whoever_asked_to_be_told_hears_of_it_once(trial: Trial, generated: Campaign) -> None:
    told = trial.data / "told.json"
    tree = generated.config.model_dump()
    tree["cluster"]["notify"] = shlex.join(["sh", "-c", 'cat >> "$0"', str(told)])
    campaign = replace(generated, config=type(generated.config).model_validate(tree))
    settled = settle(campaign.plan, {planned.key for planned in campaign.plan} - {EVALUATE}, ())
    for _ in range(2):
        notify.tell(campaign, settled, print)
    facts = json.loads(told.read_text())
    assert (facts["event"], facts["done"]) == ("needs-ratings", 3)
    rate(campaign)
    assert notify.news(settled, gate.held(campaign)) is None
