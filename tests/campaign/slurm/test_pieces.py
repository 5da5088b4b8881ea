"""A job that goes on with other tasks of its array, in this process and with fake stages."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medsyn import disk
from medsyn.campaign.slurm import job, pieces
from medsyn.campaign.slurm.queue import Job, QueueView
from medsyn.campaign.state import attempts, locks, markers
from medsyn.stage import CampaignDirectory
from tests.helpers.fake_stages import FUNCTIONS
from tests.helpers.trial import Trial

RunJob = Callable[..., int]
SHARDS = [f"ct-{number:05d}" for number in range(4)]


@pytest.fixture
def run_job(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunJob]:
    """Run the job of one element of an array of four shards; returns its exit code."""
    trial.write_tables(prompts=8)
    monkeypatch.setattr(markers, "check_inputs", lambda campaign, planned: None)
    monkeypatch.setattr(job, "_write_to", lambda log: None)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}

    def run(element: int, seconds_left: float | None = 3600) -> int:
        array = {"stage": "generate", "tasks": SHARDS, "signal_seconds": 60}
        disk.write_json(CampaignDirectory(trial.root).slurm("array") / job.TASKS, array)
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(element))
        monkeypatch.delenv(pieces.END_VARIABLE, raising=False)
        if seconds_left is not None:
            monkeypatch.setenv(pieces.END_VARIABLE, str(int(time.time() + seconds_left)))
        try:
            job.main(["tasks", str(trial.root), "array"], FUNCTIONS)
        except SystemExit as left:
            assert isinstance(left.code, int)
            return left.code
        return 0

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def generated(trial: Trial) -> list[str]:
    return [task.removeprefix("generate ") for task in trial.calls()]


def done(trial: Trial) -> set[str]:
    return {name.removeprefix("generate ") for name in trial.done()}


def jobs(trial: Trial, shard: str) -> list[str]:
    lines = attempts.attempt_lines(CampaignDirectory(trial.root), ("generate", shard))
    return [line["job"] for line in lines if line["event"] == "start"]


def test_a_job_goes_on_with_the_tasks_of_its_array_from_the_last_one_back(trial: Trial, run_job: RunJob) -> None:
    trial.prepare_short()
    assert run_job(0) == 0
    assert generated(trial) == [SHARDS[0], *reversed(SHARDS[1:])]
    assert done(trial) == set(SHARDS)
    assert [jobs(trial, shard) for shard in SHARDS] == [["7_0"]] * 4
    started = time.monotonic()
    assert run_job(1) == 0
    assert time.monotonic() - started < 1
    assert len(generated(trial)) == 4


@pytest.mark.parametrize("left", [None, 30])
def test_it_does_not_where_too_little_time_is_left_or_slurm_does_not_say(
    trial: Trial, run_job: RunJob, left: float | None
) -> None:
    trial.prepare_short()
    assert run_job(1, seconds_left=left) == 0
    assert generated(trial) == [SHARDS[1]]


def test_a_task_must_fit_into_the_time_that_is_left(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    array = pieces.Array(trial.prepare_short(), "generate", SHARDS, signal_seconds=60)
    monkeypatch.setenv(pieces.END_VARIABLE, str(int(time.time() + 60 + 126)))
    assert array.has_time(100)
    assert not array.has_time(110)
    monkeypatch.setenv(pieces.END_VARIABLE, "NONE")
    assert array.has_time(1e9)


@pytest.mark.parametrize("switched", [{"cluster__continue_in_allocation": False}, {"cluster__claim": True}])
def test_it_does_not_where_that_is_switched_off_or_work_is_stolen(
    trial: Trial, run_job: RunJob, switched: dict[str, bool]
) -> None:
    trial.prepare_short(**switched)
    assert run_job(0) == 0
    assert generated(trial) == [SHARDS[0]]


def test_a_task_that_another_process_works_on_or_that_has_failed_is_passed_by(trial: Trial, run_job: RunJob) -> None:
    directory = trial.prepare_short().directory
    attempts.write_failure(directory, ("generate", SHARDS[2]), {"exit_code": 65})
    with locks.exclusive(directory.attempts("generate", SHARDS[3])):
        assert run_job(0) == 0
    assert generated(trial) == [SHARDS[0], SHARDS[1]]


def test_a_task_that_was_saved_is_gone_on_with_by_the_same_job_or_by_its_own_element(
    trial: Trial, run_job: RunJob
) -> None:
    trial.prepare_short()
    trial.script({f"generate {SHARDS[3]}": ["save", "save", "work"]})
    assert run_job(0) == 75
    assert run_job(0) == 75  # queued again: its own task is done, that one is not
    assert run_job(3) == 0
    assert generated(trial) == [SHARDS[0], *[SHARDS[3]] * 3, SHARDS[2], SHARDS[1]]
    assert jobs(trial, SHARDS[3]) == ["7_0", "7_0", "7_3"]
    assert run_job(0) == 0
    assert done(trial) == set(SHARDS)


def test_a_signal_saves_the_task_that_was_taken(trial: Trial, run_job: RunJob) -> None:
    trial.prepare_short()
    trial.script({f"generate {SHARDS[3]}": ["term", "work"]})
    assert run_job(0) == 75
    assert done(trial) == {SHARDS[0]}
    assert run_job(0) == 0
    assert done(trial) == set(SHARDS)


def test_an_element_leaves_its_task_to_the_job_of_its_array_that_works_on_it(trial: Trial, run_job: RunJob) -> None:
    directory = trial.prepare_short().directory
    path = directory.attempts("generate", SHARDS[1])
    start = {"event": "start", "attempt": 1, "time": time.time(), "host": "n1", "pid": 1, "job": "7_0"}
    disk.append_jsonl(path, start)
    with locks.exclusive(path):
        assert run_job(1) == 0
    assert done(trial) == {SHARDS[0], SHARDS[2], SHARDS[3]}
    view = QueueView({("generate", SHARDS[0]): Job("7_0", "RUNNING", "None")})
    seen = pieces.with_taken(view, trial.campaign())
    assert seen.tasks["generate", SHARDS[1]].id == "7_0"
    assert pieces.with_taken(QueueView(), trial.campaign()).tasks == {}


def test_what_a_stage_keeps_is_there_for_the_next_task_and_its_inputs_are_checked_once(
    trial: Trial, run_job: RunJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial.prepare_short()
    checked: list[str] = []
    monkeypatch.setattr(markers, "check_inputs", lambda campaign, planned: checked.append(planned.task.name))
    assert run_job(0) == 0
    kept = [line["kept"] for line in disk.read_jsonl(Path(trial.root) / "calls.jsonl")]
    assert kept == [0, 1, 2, 3]
    assert checked == [SHARDS[0]]
