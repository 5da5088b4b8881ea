"""Where the seconds of a campaign went: the account of an attempt, and what records of attempts add up to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from medsyn import efficiency, time_use
from medsyn.efficiency import IDLE, KINDS, OTHER, REJECTED, REPEATED, START_UP, UNET_VAE, Efficiency, add_up, summarize
from medsyn.evaluation import report_tables
from medsyn.time_use import LOADING, PAINTING, SCORING, TRAINING, WRITING

KEY = ("generate", "ct-00000")
Lines = list[dict[str, Any]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that accounts see, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    yield now
    time_use.close_account()


def start(at: float, since: float, **facts: Any) -> dict[str, Any]:
    return {"event": "start", "time": at, "since": since, **facts}


def end(at: float, reason: str = "done", **use: Any) -> dict[str, Any]:
    return {"event": "end", "time": at, "reason": reason, "use": use}


def told(lines: Lines, ledger: Lines | None = None, **options: Any) -> Efficiency:
    return add_up({KEY: summarize(lines, **options)}, ledger or [])


def parts(its: Efficiency) -> dict[str, float]:
    return {kind: round(amount, 6) for kind, amount in its.seconds.items() if amount}


def test_every_second_is_of_the_innermost_kind(clock: list[float]) -> None:
    account = time_use.open_account()
    clock[0] = 1.0
    with time_use.of(PAINTING):
        clock[0] = 3.0
        with time_use.of(SCORING):
            clock[0] = 3.5
        clock[0] = 4.0
    clock[0] = 4.25
    time_use.count(places=8, used=5)
    assert account.as_dict() == {
        "seconds": {OTHER: 1.25, PAINTING: 2.5, SCORING: 0.5},
        "unsaved": 3.0,
        "places": 8,
        "used": 5,
    }


def test_what_was_made_before_a_mark_is_kept_once_another_thread_says_so(clock: list[float]) -> None:
    account = time_use.open_account()
    with time_use.of(PAINTING):
        clock[0] = 2.0
    kept = time_use.mark()
    with time_use.of(PAINTING):
        clock[0] = 5.0
    assert account.as_dict()["unsaved"] == 5.0
    writer = threading.Thread(target=kept)
    writer.start()
    writer.join()
    assert account.as_dict()["unsaved"] == 3.0


def test_another_thread_and_no_account_book_nothing(clock: list[float]) -> None:
    account = time_use.open_account()

    def write() -> None:
        with time_use.of(WRITING):
            clock[0] += 1.0
            time_use.count(places=1)

    writer = threading.Thread(target=write)
    writer.start()
    writer.join()
    assert account.as_dict()["seconds"] == {OTHER: 1.0}
    assert "places" not in account.as_dict()
    time_use.close_account()
    with time_use.of(WRITING):
        time_use.mark()()


def test_the_first_of_several_ranks_tells_where_its_time_went(clock: list[float]) -> None:
    account = time_use.open_account()
    account.ranks = 4
    with time_use.of(time_use.RANKS):
        clock[0] = 10.0
    account.told = {"seconds": {TRAINING: 7.0, WRITING: 2.0}, "unsaved": 1.5}
    use = account.as_dict()
    assert use == {"seconds": {TRAINING: 7.0, WRITING: 2.0, OTHER: 1.0}, "unsaved": 1.5, "ranks": 4}
    its = told([start(0, 0), end(10, **use)])
    assert parts(its) == {UNET_VAE: 28.0, WRITING: 2.0, OTHER: 1.0, IDLE: 9.0}, "the others wait while the first saves"
    assert its.allocated == 40.0


def test_the_process_is_as_old_as_it_is() -> None:
    assert 0 < time.time() - time_use.allocated_since() < 86_400


def test_a_job_begins_when_slurm_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(time_use.JOB_START_VARIABLE, "1700000000")
    assert time_use.allocated_since() == 1.7e9


USE = {"seconds": {LOADING: 1.0, PAINTING: 10.0, SCORING: 2.0, WRITING: 0.5}, "places": 16, "used": 12}


def test_an_attempt_is_divided_and_adds_up() -> None:
    its = told([start(103, since=100, waited=1.0), end(118, **USE)])
    assert parts(its) == {
        UNET_VAE: 7.5,
        REJECTED: 2.5,  # 4 of 16 places are no image
        SCORING: 2.0,
        LOADING: 1.0,
        WRITING: 0.5,
        START_UP: 2.0,
        IDLE: 1.0,
        OTHER: 1.5,
    }
    assert its.allocated == 18.0
    assert sum(its.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("by", ["the next start", "its own heartbeat"])
def test_what_a_kill_undid_is_repeated(by: str) -> None:
    beat = {"time": 110.0, "use": {"seconds": {PAINTING: 8.0, LOADING: 1.0}, "unsaved": 2.0, "places": 16, "used": 8}}
    lines, ended = [start(100, since=99)], {"event": "ended", "stage": KEY[0], "task": KEY[1], "time": 113.0}
    if by == "the next start":
        lines += [start(120, since=120, progress=beat), end(122, seconds={PAINTING: 2.0}, places=4, used=4)]
    its = told(lines, [ended], heartbeat=None if by == "the next start" else beat)
    again = 2.0 if by == "the next start" else 0.0
    assert its.seconds[REPEATED] == pytest.approx(2.0 + 3.0), "what was not on disk, and what came after its last word"
    assert its.seconds[UNET_VAE] + its.seconds[REJECTED] == pytest.approx(6.0 + again)
    assert its.allocated == pytest.approx(14 + again)


def test_what_saved_before_it_left_repeats_nothing_and_what_failed_does() -> None:
    lines = [start(0, since=0), end(10, "saved", seconds={PAINTING: 10.0}, unsaved=0.0)]
    assert parts(told(lines)) == {UNET_VAE: 10.0}
    lines = [start(0, since=0), end(10, "ValueError: x", seconds={TRAINING: 10.0}, unsaved=4.0)]
    assert parts(told(lines)) == {UNET_VAE: 6.0, REPEATED: 4.0}
    lines = [start(0, since=0), end(10, "done", seconds={TRAINING: 10.0}, unsaved=4.0)]
    assert parts(told(lines)) == {UNET_VAE: 10.0}, "the model is there: nothing is made again"


def test_a_task_at_work_counts_up_to_its_heartbeat_or_starts_up() -> None:
    beat = {"time": 8.0, "use": {"seconds": {PAINTING: 7.0}, "unsaved": 7.0}}
    assert parts(told([start(1, since=0)], heartbeat=beat, running_at=20.0)) == {UNET_VAE: 7.0, START_UP: 1.0}
    assert parts(told([start(1, since=0)], running_at=20.0)) == {START_UP: 20.0}


def test_records_without_accounts_and_damaged_lines_are_not_lost() -> None:
    lines = [{"event": "start", "time": 5.0}, {"torn": 1}, {"event": "end", "time": 9.0, "reason": "done"}]
    assert parts(told(lines)) == {OTHER: 4.0}


def test_the_end_of_a_process_is_idle_and_waiting_for_a_place_is_apart() -> None:
    ledger: Lines = [
        {"event": "submitted", "time": 10.0},
        {"event": "ended", "stage": KEY[0], "task": KEY[1], "time": 41.0},
        {"event": "submitted", "time": 90.0},
        {"event": "ended", "stage": KEY[0], "task": KEY[1], "time": 111.0},
    ]
    lines = [
        start(30, since=30, ready=25.0),  # 5 s after what it needs was done
        end(40, "saved", seconds={PAINTING: 10.0}),
        start(100, since=100, ready=25.0),  # 10 s after it was submitted again
        end(110, seconds={PAINTING: 10.0}),
    ]
    its = told(lines, ledger)
    assert parts(its) == {UNET_VAE: 20.0, IDLE: 2.0}
    assert its.queued == 15.0


def test_a_job_array_is_queued_when_the_ledger_says() -> None:
    ledger: Lines = [{"event": "queued", "kind": "tasks", "stage": KEY[0], "tasks": [KEY[1]], "time": 10.0}]
    lines = [start(30, since=29), end(40, seconds={PAINTING: 10.0})]
    assert told(lines, ledger).queued == 19.0
    assert told(lines, []).queued == 0.0, "nobody knows"


@pytest.mark.parametrize("seconds", [{UNET_VAE: 1.0, OTHER: 2.0}, {UNET_VAE: 1.0, OTHER: 1.0, IDLE: 1.0}, {}])
def test_whole_percents_add_up(seconds: dict[str, float]) -> None:
    its = Efficiency(dict.fromkeys(KINDS, 0.0) | seconds, 0.0)
    assert sum(its.whole_percents.values()) == (100 if seconds else 0)


def test_the_reports_table_has_the_largest_part_first() -> None:
    its = Efficiency(dict.fromkeys(KINDS, 0.0) | {OTHER: 1.0, UNET_VAE: 3.0}, queued=5.0)
    rows = [(row["name"], row["share"], row["width"]) for row in report_tables.spent(its.as_dict())]
    assert rows == [("UNet and VAE", "75 %", "100.0%"), ("other", "25 %", "33.3%")]


def test_stages_and_kinds_have_names() -> None:
    assert set(efficiency._HEADING.values()) <= set(KINDS)
