from __future__ import annotations

from pathlib import Path

import pytest

from medsyn import host_memory

GIB = 1 << 30


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_the_memory_of_a_job_is_that_of_the_group_above_its_step(tmp_path: Path) -> None:
    group(tmp_path / "job_7", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=f"anon 7\ninactive_file {GIB}")
    group(tmp_path / "job_7" / "step_0", memory__max="max")
    assert list(host_memory._groups("0::/job_7/step_0", tmp_path)) == [(4 * GIB, 2 * GIB)]


def test_so_it_is_on_systems_with_the_first_kind_of_groups(tmp_path: Path) -> None:
    folder = tmp_path / "memory" / "slurm" / "job_7"
    group(folder, memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=GIB, memory__stat="total_inactive_file 5")
    membership = "7:cpu,cpuacct:/x\n4:memory:/slurm/job_7/step_0\n1:name=systemd:/y"
    assert list(host_memory._groups(membership, tmp_path)) == [(4 * GIB, GIB - 5)]


def test_what_is_left_of_the_smallest_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda path: "MemTotal: 9 kB\nMemAvailable: 4096 kB")
    monkeypatch.setattr(host_memory, "_groups", lambda _: iter([(4 * GIB, 3 * GIB), (5000, 2000), (10, 0)][:2]))
    assert host_memory.available() == 3000
    monkeypatch.setattr(host_memory, "_groups", lambda _: iter([(5, 9)]))
    assert host_memory.available() == 0


def test_this_machine_says_how_much_it_has() -> None:
    assert (host_memory.available() or 0) > 1 << 20


def test_where_nothing_is_said_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "read", lambda path: "")
    assert host_memory.available() is None
