from __future__ import annotations

import shlex
import threading
from collections.abc import Mapping
from dataclasses import asdict

import pytest

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.slurm import graph, sbatch
from medsyn.campaign.slurm import job as slurm_job
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.graph import Graph, Node, Queued
from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.state import attempts
from medsyn.campaign.tasks import Key, Plan, build
from medsyn.models.scores import Card, Evidence, Interval
from medsyn.stage import CampaignDirectory
from tests.helpers.trial import Trial

CT, OCT = ("finetune", "ct"), ("finetune", "oct")
STAGE1 = ("rlhf-stage1", "all")


def plan(shards: int = 2, stage: int = 2) -> Plan:
    tree = {
        "data": {"modalities": ["CT", "OCT"]},
        "training": {"stage": stage},
        "generation": {"batch_size": 1, "batches_per_block": 1, "blocks_per_shard": 1},
    }
    return build(configuration.validate(tree, "test"), {"CT": [shards], "OCT": [shards]}, {"CT": 1, "OCT": 1})


def nodes(built: Graph) -> dict[str, Node]:
    return {node.name: node for node in built.nodes}


def blocked_jobs(trial: Trial, gate: str, **latency: float) -> dict[str, list[str]]:
    campaign = trial.campaign()
    return slurm_job.blocked_jobs(campaign, slurm_job.settled_at(campaign, gate, **latency))


def everything(of: Plan) -> set[Key]:
    return {planned.key for planned in of}


def test_a_modality_waits_for_its_own_gate_only() -> None:
    built = nodes(graph.build(plan(), set(), Queued(), 1001))
    assert built["finetune"].tasks == ("ct", "oct")
    assert built["gate-finetune-ct"].after == ("finetune",)
    assert built["rlhf-stage1"].gates == ()
    assert built["generate-ct"].gates == ("gate-finetune-ct", "gate-rlhf-stage1", "gate-rlhf-stage2-ct")
    assert built["rlhf-stage2-ct"].gates == ("gate-rlhf-stage1", "gate-finetune-ct")
    assert built["gate-rlhf-stage2-ct"].tasks == ("ct",)
    assert {"gate-generate-ct", "gate-generate-oct"} <= set(built["evaluate"].gates)


def test_where_somebody_wants_to_hear_of_the_end_a_gate_comes_after_the_last_stage_too() -> None:
    built = nodes(graph.build(plan(), set(), Queued(), 1001, to_the_end=True))
    assert built["gate-evaluate"].after == ("evaluate",)
    assert built.keys() - {"gate-evaluate"} == nodes(graph.build(plan(), set(), Queued(), 1001)).keys()


def test_each_node_comes_after_everything_it_refers_to() -> None:
    seen: set[str] = set()
    for node in graph.build(plan(), set(), Queued(), 1001).nodes:
        assert {*node.gates, *node.after} <= seen
        seen.add(node.name)


@pytest.mark.parametrize(("shards", "arrays"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_shards_are_cut_into_arrays_that_the_cluster_takes(shards: int, arrays: int) -> None:
    of = plan(shards)
    built = graph.build(of, set(), Queued(), chunk=3)
    cut = [node for node in built.nodes if node.name.startswith("generate-ct")]
    assert len(cut) == arrays
    assert max(len(node.tasks) for node in cut) <= 3
    assert [task for node in cut for task in node.tasks] == [f"ct-{number:05d}" for number in range(shards)]
    assert nodes(built)["gate-generate-ct"].after == tuple(node.name for node in cut)


def test_the_number_of_jobs_does_not_depend_on_the_number_of_shards() -> None:
    assert len(graph.build(plan(900), set(), Queued(), 1001).nodes) == len(
        graph.build(plan(1), set(), Queued(), 9).nodes
    )


def test_without_stage_2_generation_waits_for_stage_1() -> None:
    built = nodes(graph.build(plan(stage=1), set(), Queued(), 1001))
    assert "gate-rlhf-stage1" in built["generate-ct"].gates
    assert not any("stage2" in name for name in built)


def test_only_what_is_missing_is_queued_and_waits_for_what_is_missing() -> None:
    of = plan()
    done = everything(of) - {STAGE1, ("rlhf-stage2", "oct"), ("evaluate", "all")}
    built = nodes(graph.build(of, done, Queued(), 1001))
    assert set(built) == {"rlhf-stage1", "gate-rlhf-stage1", "rlhf-stage2-oct", "gate-rlhf-stage2-oct", "evaluate"}
    assert built["rlhf-stage2-oct"].gates == ("gate-rlhf-stage1",)


def test_nothing_is_missing_and_nothing_is_queued() -> None:
    of = plan()
    assert graph.build(of, everything(of), Queued(), 1001).nodes == ()


def test_what_is_in_the_queue_is_waited_for_by_its_gate_there() -> None:
    of = plan()
    built = nodes(graph.build(of, set(), Queued({STAGE1: "7"}, {STAGE1: "8"}), 1001))
    assert "rlhf-stage1" not in built
    stage2 = built["rlhf-stage2-ct"]
    assert (stage2.gates, stage2.queued_gates) == (("gate-finetune-ct",), ("8",))


def test_a_task_whose_gate_was_cancelled_gets_another() -> None:
    built = nodes(graph.build(plan(), set(), Queued({CT: "7_0", OCT: "7_1"}), 1001))
    assert built["gate-finetune-ct-again"].queued_tasks == ("7_0",)
    assert built["generate-ct"].gates[0] == "gate-finetune-ct-again"


def submitted(job: str, kind: on_record.Kind, stage: str, *tasks: str) -> Submission:
    return Submission(f"medsyn-x-{job}", kind, stage, tasks, job)


def test_a_gate_does_not_count_for_what_was_queued_after_it() -> None:
    submissions = [
        submitted("1", "tasks", "finetune", "ct", "oct"),
        submitted("2", "gate", "finetune", "ct", "oct"),
        submitted("3", "tasks", "finetune", "ct"),
    ]
    tasks: Mapping[Key, str] = {CT: "3", OCT: "1_1"}
    found = graph.queued(submissions, tasks, {"medsyn-x-2"})
    assert found.gates == {OCT: "2"}
    newest = on_record.newest(submissions)
    assert slurm_job.over(submissions[1], 1, newest) == {OCT}


def test_a_whole_array_is_cancelled_by_its_own_id() -> None:
    submissions = [submitted("5", "tasks", "generate", "a", "b"), submitted("6", "tasks", "generate", "c", "d")]
    newest = on_record.newest(submissions)
    keys = [("generate", name) for name in ("a", "b", "d")]
    assert slurm_job.ids(submissions, keys, newest) == {"medsyn-x-5": ["5"], "medsyn-x-6": ["6_1"]}


def record(directory: CampaignDirectory, *submissions: Submission) -> None:
    for one in submissions:
        disk.append_jsonl(directory.ledger, {"event": on_record.QUEUED, "round": "r", **asdict(one)})


def test_what_comes_after_several_stages_is_blocked_once_all_of_them_have_failed(trial: Trial) -> None:
    told = trial.data / "told.json"
    directory = trial.prepare_short(cluster__notify=shlex.join(["sh", "-c", 'cat >> "$0"', str(told)])).directory
    gates = [submitted("3", "gate", "finetune", "ct"), submitted("4", "gate", "rlhf-stage1", "all")]
    record(
        directory,
        submitted("1", "tasks", "finetune", "ct"),
        submitted("2", "tasks", "rlhf-stage1", "all"),
        *gates,
        submitted("5", "tasks", "generate", "ct-00000"),
        submitted("6", "tasks", "evaluate", "all"),
    )
    trial.script({"finetune ct": ["input"], "rlhf-stage1 all": ["input"]})
    trial.work("finetune", "ct")
    assert blocked_jobs(trial, gates[0].name) == {"medsyn-x-5": ["5"]}
    slurm_job.run_gate(str(trial.root), gates[0].name)
    trial.work("rlhf-stage1", "all")
    assert blocked_jobs(trial, gates[1].name) == {"medsyn-x-5": ["5"], "medsyn-x-6": ["6"]}
    assert not told.exists()
    for _ in range(2):
        slurm_job.run_gate(str(trial.root), gates[1].name)
    facts = disk.read_json(told)
    assert [facts[name] for name in ("event", "failed", "blocked")] == ["failed", 2, 2]


def test_a_gate_takes_out_what_a_selector_without_evidence_would_choose(trial: Trial) -> None:
    directory = trial.prepare(training__stage=1).directory
    record(
        directory,
        submitted("1", "tasks", "rlhf-stage1", "all"),
        submitted("2", "gate", "rlhf-stage1", "all"),
        submitted("3", "tasks", "generate", "ct-00000"),
        submitted("4", "tasks", "generate", "oct-00000"),
        submitted("5", "tasks", "evaluate", "all"),
    )
    trial.work("rlhf-stage1", "all")
    proven, guessing = Interval(value=0.9, low=0.8, high=1, n=40), Interval(value=0.5, low=0.4, high=0.6, n=40)
    evidence = Evidence(auroc=proven, by_modality={"CT": guessing, "OCT": proven})
    card = Card(modalities=["CT", "OCT"], evidence=evidence).model_dump()
    for scorer in (directory.selector(), directory.policy()):
        disk.write_json(disk.make_directory(scorer) / "config.json", {"card": card})
        (scorer / "model.safetensors").write_bytes(b"")
    slurm_job.run_gate(str(trial.root), "medsyn-x-2")
    listed = directory.slurm("medsyn-x-2") / sbatch.CANCEL_LIST
    assert listed.read_text() == "medsyn-x-3 3\n", "OCT goes on, and so does the report"
    failure = attempts.read_failure(directory, ("generate", "ct-00000"))
    assert failure is not None and failure["exit_code"] == 65 and "selector.require_auroc" in failure["message"]
    assert not directory.failed("generate", "oct-00000").exists()


def test_a_gate_waits_for_a_marker_that_the_file_system_shows_late(trial: Trial) -> None:
    trial.prepare()
    directory = trial.campaign().directory
    record(
        directory,
        submitted("1", "tasks", "finetune", "ct", "oct"),
        submitted("2", "gate", "finetune", "ct", "oct"),
        submitted("3", "tasks", "generate", "ct-00000", "oct-00000"),
    )
    trial.work("finetune", "ct")
    trial.work("finetune", "oct")
    marker = directory.done("finetune", "ct")
    hidden = marker.with_suffix(".late")
    marker.rename(hidden)
    assert blocked_jobs(trial, "medsyn-x-2", latency_seconds=0) == {"medsyn-x-3": ["3_0"]}
    late = threading.Timer(1.0, hidden.rename, [marker])
    late.start()
    assert blocked_jobs(trial, "medsyn-x-2") == {}
    late.join()
