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

from medsyn import lease
from medsyn.campaign.state import locks
from tests.helpers.processes import fork, wait
from tests.helpers.trial import wait_until

PROCESSES = 6
ELSEWHERE = '{"task": null, "host": "elsewhere", "pid": 1, "token": "t"}'
OF_OLD = '{"host": "elsewhere", "pid": 1}'  # medsyn 0.1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave_silent(path: Path, seconds: float, content: str = ELSEWHERE) -> Path:
    """A lock file that nobody has renewed for some time."""
    lock = path.with_name(f"{path.name}.lock")
    lock.write_text(content)
    os.utime(lock, (time.time() - seconds, time.time() - seconds))
    return lock


def hold(path: Path, told: int, begin: tuple[int, int], end: tuple[int, int]) -> None:
    """When the one pipe is closed, say whether this process holds the lock; hold it until the other is closed."""
    for pipe in (begin, end):
        os.close(pipe[1])
    os.read(begin[0], 1)
    try:
        with locks.exclusive(path):
            os.write(told, b"1")
            os.read(end[0], 1)
    except locks.Busy:
        os.write(told, b"0")


def test_one_at_a_time(path: Path) -> None:
    assert not locks.is_held(path)
    with locks.exclusive(path):
        assert locks.is_held(path)
        with pytest.raises(locks.Busy), locks.exclusive(path):
            pass
        assert locks.is_held(path)
    assert not locks.is_held(path)


def test_what_is_no_lack_of_locks_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path.touch()
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"):
        locks.is_held(path)
    with pytest.raises(OSError, match="Input/output error"), locks.exclusive(path):
        pass
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("no_locks")
def test_where_the_file_system_has_no_locks_a_file_stands_in(path: Path) -> None:
    test_one_at_a_time(path)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("no_locks")
def test_the_lock_file_of_a_dead_process_is_taken_over(path: Path) -> None:
    begin, told, end = os.pipe(), os.pipe(), os.pipe()
    child = fork(partial(hold, path, told[1], begin, end))
    os.close(begin[1])
    assert os.read(told[0], 1) == b"1"
    with pytest.raises(locks.Busy), locks.exclusive(path):
        pass
    os.kill(child, signal.SIGKILL)
    wait(child)
    assert path.with_name("ledger.jsonl.lock").exists()
    assert not locks.is_held(path)
    with locks.exclusive(path):
        assert locks.is_held(path)
    for one in (begin[0], *told, *end):
        os.close(one)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("content", [ELSEWHERE, OF_OLD, "", '{"host": "else', "[]"])
def test_the_lock_file_of_a_silent_machine_expires(path: Path, content: str) -> None:
    path.touch()
    leave_silent(path, lease.LEASE_SECONDS - 20, content)
    assert locks.is_held(path)
    with pytest.raises(locks.Busy), locks.exclusive(path):
        pass
    lock = leave_silent(path, lease.LEASE_SECONDS + 20, content)
    assert not locks.is_held(path)
    with locks.exclusive(path):
        assert lock.read_text() != content
        assert locks.is_held(path)


@pytest.mark.usefixtures("no_locks")
def test_a_lock_file_is_renewed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with locks.exclusive(path):
        lock = path.with_name("ledger.jsonl.lock")
        first = lock.stat().st_mtime_ns
        wait_until(lambda: lock.stat().st_mtime_ns > first)


@pytest.mark.usefixtures("no_locks")
def test_one_of_many_processes_takes_a_silent_lock_file_over(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.jsonl"
        leave_silent(path, 1000.0)
        begin, told, end = os.pipe(), os.pipe(), os.pipe()
        children = [fork(partial(hold, path, told[1], begin, end)) for _ in range(PROCESSES)]
        for one in (*begin, end[0]):
            os.close(one)  # they begin
        assert b"".join(os.read(told[0], 1) for _ in children).count(b"1") == 1
        os.close(end[1])
        assert [wait(child) for child in children] == [0] * PROCESSES
        for one in told:
            os.close(one)
    assert {file.suffix for file in tmp_path.iterdir()} == {".jsonl"}


@pytest.mark.usefixtures("no_locks")
def test_a_holder_that_seemed_dead_leaves_its_successors_lock_file_alone(path: Path) -> None:
    with locks.exclusive(path):
        lock = path.with_name("ledger.jsonl.lock")
        lock.unlink()
        lock.write_text(ELSEWHERE)
    assert lock.read_text() == ELSEWHERE


@pytest.mark.usefixtures("no_locks")
def test_one_who_may_only_read_sees_whether_a_lock_is_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path.touch()
    monkeypatch.setattr(Path, "touch", refuse)
    leave_silent(path, lease.LEASE_SECONDS - 20)
    assert locks.is_held(path)
    leave_silent(path, lease.LEASE_SECONDS + 20)
    assert not locks.is_held(path)


def test_looking_makes_no_file(path: Path) -> None:
    assert not locks.is_held(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("umask, mode", [(0o022, 0o640), (0o077, 0o600), (0o002, 0o640)])
@pytest.mark.usefixtures("no_locks")
def test_files_are_as_private_as_the_user_wants_them(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with locks.exclusive(path):
            assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
                "ledger.jsonl": mode,
                "ledger.jsonl.lock": mode,
            }
    finally:
        os.umask(before)


def test_the_message_names_the_newest_records_process(path: Path) -> None:
    path.write_text("".join(json.dumps({"host": host, "pid": 7}) + "\n" for host in ("old", "new")))
    with locks.exclusive(path), pytest.raises(locks.Busy) as busy, locks.exclusive(path, "ct-00001"):
        pass
    assert str(busy.value) == "another process (new, process 7) is at work on ct-00001"


def test_whoever_looks_at_a_lock_does_not_turn_its_taker_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: os.close(looking))
    with locks.exclusive(path):
        assert locks.is_held(path)
