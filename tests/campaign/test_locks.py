from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from medsyn.campaign import locks


def test_a_file_system_without_locks_is_a_warning_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locks.exclusive(tmp_path / "ledger.jsonl"):
        assert not locks.is_held(tmp_path / "ledger.jsonl")
    assert "has no locks" in caplog.text
