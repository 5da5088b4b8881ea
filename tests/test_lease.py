"""Leases: one holder, renewed while it lives, taken over by one when it is dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from medsyn import disk, lease
from medsyn.lease import LeaseLost, Leases, lease_file
from tests.helpers.processes import fork, wait
from tests.helpers.trial import wait_until

PROCESSES = 6


@pytest.fixture
def expires_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)


@pytest.fixture
def frequent_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    return tmp_path / "part-000" / "block-000000"


def leave_dead(block: Path, **facts: object) -> None:
    """A lease that nobody renews."""
    file = lease_file(block)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"task": "dead", "host": "elsewhere", "pid": 1, "token": "t", **facts}))


def winners(block: Path, looks: int = 1) -> int:
    """How many of several processes hold the block's lease after the last of `looks`, each made at one moment."""
    stages = [os.pipe() for _ in range(looks + 1)]
    told = os.pipe()

    def body(number: int) -> None:
        for _, end in stages:
            os.close(end)
        leases = Leases(f"task-{number}")
        os.write(told[1], b".")
        for begin, _ in stages[:-1]:
            os.read(begin, 1)  # returns when the parent closes the other end
            os.write(told[1], b"1" if leases.take(block) else b"0")
        os.read(stages[-1][0], 1)  # nobody leaves before everybody has tried

    children = [fork(partial(body, number)) for number in range(PROCESSES)]
    result = b""
    for _, end in stages:
        result = b"".join(os.read(told[0], 1) for _ in children)
        os.close(end)
    assert [wait(child) for child in children] == [0] * PROCESSES
    for end in (*told, *(begin for begin, _ in stages)):
        os.close(end)
    return result.count(b"1")


def test_one_of_many_processes_gets_a_lease(tmp_path: Path) -> None:
    for number in range(10):
        assert winners(tmp_path / f"block-{number:06d}") == 1


@pytest.mark.usefixtures("expires_at_once")
def test_one_of_many_processes_takes_an_expired_lease_over(tmp_path: Path) -> None:
    for number in range(20):
        block = tmp_path / f"block-{number:06d}"
        leave_dead(block)
        assert winners(block, looks=2) == 1
    assert not list(tmp_path.glob(".*.tmp-*"))


@pytest.mark.usefixtures("expires_at_once")
def test_one_takes_over_where_the_file_system_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    block = tmp_path / "block-000000"
    leave_dead(block)
    assert winners(block, looks=2) == 1
    assert not list(tmp_path.glob(".*.tmp-*"))


@pytest.mark.usefixtures("expires_at_once")
def test_one_who_is_killed_while_taking_over_is_succeeded(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_dead(block)

    def take_and_die() -> None:
        monkeypatch.setattr(Path, "unlink", lambda *arguments, **options: os.kill(os.getpid(), signal.SIGKILL))
        killed = Leases("killed")
        killed.take(block)
        killed.take(block)

    assert os.WIFSIGNALED(wait(fork(take_and_die)))
    assert len(list(block.parent.iterdir())) == 2
    observer = Leases("observer")
    assert not observer.take(block)
    assert observer.take(block)
    assert list(block.parent.iterdir()) == [lease_file(block)]


def test_a_living_lease_is_respected_and_a_returned_one_is_free(block: Path) -> None:
    with Leases("one") as one, Leases("two") as two:
        assert one.take(block)
        assert not one.take(block), "it has it already"
        assert not two.take(block)
        one.require(block)
        two.give_back(block)
        assert lease_file(block).exists()
        one.give_back(block)
        assert two.take(block)
    assert list(block.parent.iterdir()) == []


@pytest.mark.usefixtures("expires_at_once")
def test_a_lease_that_is_renewed_never_expires(block: Path) -> None:
    leave_dead(block)
    observer = Leases("observer")
    for renewal in range(1, 20):
        os.utime(lease_file(block), (renewal, renewal))  # by a clock that is decades late
        assert not observer.take(block)
    assert observer.take(block)


def test_a_lease_lasts_its_time_by_the_clock_of_the_observer(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    leave_dead(block)
    observer = Leases("observer")
    began = time.monotonic()
    while not observer.take(block):
        time.sleep(0.02)
    assert time.monotonic() - began > 0.5


@pytest.mark.usefixtures("frequent_heartbeats")
def test_the_holder_renews_its_lease(block: Path) -> None:
    with Leases("one") as one:
        assert one.take(block)
        before = lease_file(block).stat().st_mtime_ns
        wait_until(lambda: lease_file(block).stat().st_mtime_ns > before)


@pytest.mark.usefixtures("expires_at_once")
@pytest.mark.parametrize("content", ["", '{"task": "x"', "[]", '{"task": "x"}'])
def test_a_lease_that_says_nothing_expires_like_any_other(block: Path, content: str) -> None:
    leave_dead(block)
    lease_file(block).write_text(content)  # killed between making and writing the file
    observer = Leases("observer")
    assert not observer.take(block)
    assert observer.take(block)


def test_the_lease_of_an_earlier_attempt_of_the_task_is_taken_over_at_once(block: Path) -> None:
    leave_dead(block, task="same")
    assert Leases("same").take(block)


def test_leases_of_no_task_are_not_taken_for_one_anothers(block: Path) -> None:
    leave_dead(block, task=None)
    assert not Leases().take(block)


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(block: Path) -> None:
    assert wait(fork(lambda: Leases("dead").take(block) or None)) == 0  # type: ignore[arg-type,return-value]
    assert lease_file(block).exists()
    assert Leases("another").take(block)


def test_process_ids_of_another_container_on_this_host_say_nothing(block: Path) -> None:
    gone = fork(lambda: None)
    wait(gone)
    leave_dead(block, host=f"{os.uname().nodename} 1", pid=gone)  # 1 is no space of process ids that Linux gives
    assert not Leases("another").take(block)


@pytest.mark.usefixtures("frequent_heartbeats")
def test_a_holder_whose_lease_was_taken_over_learns_of_it_and_leaves_the_new_one_alone(block: Path) -> None:
    with Leases("one") as one:
        assert one.take(block)
        lease_file(block).unlink()
        leave_dead(block, task="two")

        def is_lost() -> bool:
            try:
                one.require(block)
            except LeaseLost:
                return True
            return False

        wait_until(is_lost)
        one.give_back(block)
    assert disk.read_json(lease_file(block))["task"] == "two"


def test_all_leases_end_with_their_task(block: Path) -> None:
    with pytest.raises(RuntimeError), Leases("one") as one:
        assert one.take(block)
        raise RuntimeError
    assert list(block.parent.iterdir()) == []
