from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medsyn.campaign.state import locks
from tests.helpers.trial import wait_until


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    assert not locks.is_held(path)
    with locks.exclusive(path):
        assert locks.is_held(path)
        with pytest.raises(locks.Busy), locks.exclusive(path):
            pass
    assert not locks.is_held(path)


@pytest.mark.usefixtures("no_locks")
def test_where_the_file_system_has_no_locks_a_file_stands_in(tmp_path: Path) -> None:
    test_one_at_a_time(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]


@pytest.mark.usefixtures("no_locks")
def test_the_lock_file_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys, time, pathlib\nfrom medsyn.campaign.state import locks\n"
        "with locks._held_lock_file(pathlib.Path(sys.argv[1])) as ours:\n print(ours, flush=True)\n time.sleep(60)"
    )
    lock = path.with_name("ledger.jsonl.lock")
    process = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "True"
    with pytest.raises(locks.Busy), locks.exclusive(path):
        pass
    process.kill()
    process.communicate()
    assert lock.exists()
    with locks.exclusive(path):
        assert locks.is_held(path)


def test_the_lock_file_of_a_silent_machine_goes_stale_and_a_renewed_one_does_not(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text('{"host": "elsewhere", "pid": 1}')
    os.utime(lock, (time.time() - 100, time.time() - 100))
    assert locks._lock_file_is_held(lock, stale_seconds=1000)
    assert not locks._lock_file_is_held(lock, stale_seconds=50)
    with locks._held_lock_file(lock, stale_seconds=50, renew_seconds=0.05) as ours:
        assert ours
        first = lock.stat().st_mtime_ns
        wait_until(lambda: lock.stat().st_mtime_ns > first)


def test_whoever_looks_at_a_lock_does_not_turn_its_taker_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: os.close(looking))
    with locks.exclusive(path):
        assert locks.is_held(path)
