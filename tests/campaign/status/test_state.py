"""Which state follows from which evidence."""

from __future__ import annotations

import pytest

from medsyn.campaign.slurm.queue import NEVER, Job
from medsyn.campaign.state.attempts import Attempts, in_words, summarize
from medsyn.campaign.status.state import Evidence, judge

TRIED = Attempts(begun=1)
RUNNING, COMPLETING, CONFIGURING = (Job("7_1", state, "None") for state in ("RUNNING", "COMPLETING", "CONFIGURING"))
WAITING = Job("7_1", "PENDING", "Resources")
STUCK = Job("7_1", "PENDING", NEVER)
REQUEUED = Job("7_1", "PENDING", "BeginTime")


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({}, "5/20 step"),
        ({"round": 1, "rounds": 1}, "5/20 step"),
        ({"round": 2, "rounds": 3}, "round 2 of 3, 5/20 step"),
    ],
)
def test_a_running_task_says_how_far_it_is_and_in_which_round(about: dict[str, int], words: str) -> None:
    assert in_words({"step": 5, "total": 20, "unit": "step", **about}) == words


@pytest.mark.parametrize(
    ("evidence", "state", "state_if_blocked"),
    [
        (Evidence(), "idle", "blocked"),
        (Evidence(done=True), "done", "done"),
        (Evidence(done=True, job=RUNNING, locked=True), "done", "done"),
        (Evidence(locked=True), "running", "running"),
        (Evidence(job=RUNNING), "running", "running"),
        (Evidence(job=COMPLETING, attempts=TRIED), "running", "running"),
        (Evidence(job=CONFIGURING), "running", "running"),
        (Evidence(job=WAITING), "pending", "blocked"),
        (Evidence(job=REQUEUED, attempts=TRIED), "preempted", "blocked"),
        (Evidence(job=REQUEUED, attempts=TRIED, is_lost=True), "preempted", "blocked"),
        (Evidence(job=REQUEUED, attempts=TRIED, failed=True), "preempted", "blocked"),  # it is tried again
        (Evidence(job=STUCK), "blocked", "blocked"),
        (Evidence(job=STUCK, attempts=TRIED), "blocked", "blocked"),
        (Evidence(failed=True, attempts=TRIED), "failed", "failed"),
        (Evidence(failed=True, locked=True), "running", "running"),
        (Evidence(is_lost=True, attempts=TRIED), "failed", "failed"),
        (Evidence(unbegun="7_1"), "idle", "blocked"),
        (Evidence(unbegun="7_1", word="CANCELLED"), "idle", "blocked"),
        (Evidence(unbegun="7_1", word="NODE_FAIL"), "failed", "failed"),
        (Evidence(unbegun="7_1", job=WAITING), "pending", "blocked"),
        (Evidence(unbegun="7_1", stumbled=True), "failed", "failed"),
        (Evidence(unbegun="7_1", is_cancelled=True), "cancelled", "blocked"),
        (Evidence(unbegun="7_1", is_cancelled=True, word="CANCELLED"), "cancelled", "blocked"),
        (Evidence(is_lost=True, is_cancelled=True, attempts=TRIED, word="CANCELLED"), "cancelled", "blocked"),
        (Evidence(is_lost=True, is_cancelled=True, attempts=TRIED, word="OUT_OF_MEMORY"), "failed", "failed"),
        (Evidence(unbegun="7_1", is_cancelled=True, stumbled=True), "failed", "failed"),
        (Evidence(is_cancelled=True, failed=True, attempts=TRIED), "failed", "failed"),
        (Evidence(is_cancelled=True, job=WAITING), "pending", "blocked"),
        (Evidence(is_cancelled=True, is_taken_care_of=True), "pending", "blocked"),
        (Evidence(is_cancelled=True, is_known=False), "unknown", "blocked"),
        (Evidence(attempts=TRIED), "idle", "blocked"),  # saved and cancelled, or stopped by Ctrl-C
        (Evidence(is_taken_care_of=True), "pending", "blocked"),
        (Evidence(is_taken_care_of=True, attempts=TRIED), "preempted", "blocked"),
        (Evidence(is_known=False), "unknown", "blocked"),
        (Evidence(is_known=False, is_lost=True, attempts=TRIED), "unknown", "blocked"),
        (Evidence(is_known=False, failed=True), "unknown", "blocked"),  # it may be in the queue again
        (Evidence(is_known=False, failed=True, is_final=True), "failed", "failed"),
        (Evidence(is_known=False, locked=True), "running", "running"),
        (Evidence(is_known=False, done=True), "done", "done"),
    ],
)
def test_a_state_follows_from_the_evidence(evidence: Evidence, state: str, state_if_blocked: str) -> None:
    assert (judge(evidence, is_blocked=False), judge(evidence, is_blocked=True)) == (state, state_if_blocked)


def start(time: float, beat: float | None = None, **more: object) -> dict[str, object]:
    return {"event": "start", "time": time, "progress": {"time": beat} if beat is not None else None, **more}


def end(time: float) -> dict[str, object]:
    return {"event": "end", "time": time, "reason": "saved"}


@pytest.mark.parametrize(
    ("lines", "begun", "seconds", "open_since"),
    [
        ([], 0, 0, None),
        ([start(10)], 1, 0, 10),
        ([start(10), end(25)], 1, 15, None),
        ([start(10), end(25), start(30), end(31)], 2, 16, None),
        ([start(10), start(100, beat=40), end(105)], 2, 35, None),  # killed at about 40
        ([start(10), start(100)], 2, 0, 100),  # killed before it said anything
        ([start(10), end(25), start(30, beat=24)], 2, 15, 30),  # the beat is of the attempt that has an end
        ([end(5), {"event": "start"}, start(10), end(11)], 1, 1, None),  # damaged lines
    ],
)
def test_the_time_of_attempts_ends_with_the_last_sign_of_life(
    lines: list[dict[str, object]], begun: int, seconds: float, open_since: float | None
) -> None:
    found = summarize(lines)
    assert (found.begun, found.seconds, found.open_since) == (begun, seconds, open_since)


def test_the_newest_attempt_says_which_job_it_was() -> None:
    found = summarize([start(1, job="7_1", host="n1"), end(2), start(3, job="9_0", host="n2")])
    assert (found.job, found.host, found.reason) == ("9_0", "n2", None)
    assert found.spent(until=10) == 1 + 7
