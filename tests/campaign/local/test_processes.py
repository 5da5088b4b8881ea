"""Forks in place of new processes: nothing that a task can see or a user can do is different."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from medsyn.campaign.local import fork_server, processes
from medsyn.campaign.local.processes import Process, Processes, Program
from tests.helpers.paths import ROOT
from tests.helpers.trial import wait_until

STAGE = "finetune"
THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
DRIVER = """
import mmap, pathlib
path = pathlib.Path(__file__).with_name("libcuda.so.1")
path.write_bytes(b"a driver")
with path.open("rb") as stream:
    loaded = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
"""
LOADS = """
import os, pathlib
from medsyn.campaign import worker
def preload(*asked):
    {then}
    with pathlib.Path(__file__).with_name("loaded").open("a") as stream:
        print(os.getpid(), *asked, file=stream)
worker.preload = preload
"""
MATHS = "import numpy\nnumpy.ones((400, 400)) @ numpy.ones((400, 400))\n"


class Starter:
    """Processes of a test's own that run `tests.helpers.forked`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.started: list[Process] = []
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{folder}")

    def open(self, stage: str = "", threads: int = 1, tasks: int = 2) -> Processes:
        """Processes whose stage is a module with this source."""
        (self.folder / "a_stage.py").write_text(f"{stage}\ndef run(): ...\n")
        program = Program("tests.helpers.forked", (), {STAGE: "a_stage:run"}, {STAGE: "a_stage:preload"})
        return Processes(program, self.said.append, threads, tasks)

    def start(self, opened: Processes, *arguments: str, like: Sequence[str] = (), **environment: str) -> Process:
        wait_until(lambda: opened.is_ready(STAGE, like))
        with (self.folder / "log").open("ab") as log:
            self.started.append(opened.start(arguments, environment, log.fileno()))
        return self.started[-1]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def facts(self, opened: Processes) -> dict[str, Any]:
        """What a process tells of itself, without what differs between any two."""
        process = self.start(opened, "tell", "7", GPU="3")
        assert code(process) == 7
        told: dict[str, Any] = json.loads(self.log().splitlines()[-1])
        return told


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Starter]:
    starter = Starter(tmp_path, monkeypatch)
    yield starter
    for process in starter.started:
        process.send_signal(signal.SIGKILL)
        code(process)


def code(process: Process) -> int:
    wait_until(lambda: process.poll() is not None)
    found = process.poll()
    assert found is not None
    return found


def server(opened: Processes) -> int:
    assert opened._server is not None
    return opened._server.pid


def test_a_fork_is_what_a_new_process_is(starter: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**40, hard))
    try:
        with starter.open() as opened:
            forked = starter.facts(opened)
            assert server(opened)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    monkeypatch.setenv("MEDSYN_FORK", "0")
    with starter.open() as opened:
        assert opened._server is None
        new = starter.facts(opened)
    assert (forked.pop("limit"), new.pop("limit")) == ([2**40, hard], [soft, hard])
    assert forked["environment"].pop("MEDSYN_FORK", None) != new["environment"].pop("MEDSYN_FORK")
    assert forked == new
    assert (new["parent"], new["session"], new["environment"]["GPU"]) == (os.getpid(), True, "3")
    assert new["arguments"] == ["tell", "7", "--parent", str(os.getpid())]


def test_a_fork_waits_for_its_threads_and_does_what_is_left_for_its_end(starter: Starter) -> None:
    with starter.open() as opened:
        assert code(starter.start(opened, "linger", "9")) == 9
    assert starter.log().splitlines() == ["a thread", "at exit"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_a_fork_and_is_its_exit_code(starter: Starter, number: signal.Signals) -> None:
    with starter.open() as opened:
        process = starter.start(opened, "wait")
        wait_until(lambda: starter.log() == "waiting\n")
        assert process.poll() is None
        process.send_signal(number)
        assert code(process) == -number
        process.send_signal(number)  # it has ended, and its id may be another's by now


def test_an_error_of_a_fork_is_in_its_log(starter: Starter) -> None:
    with starter.open() as opened:
        assert code(starter.start(opened, "raise")) == 1
    assert starter.log().startswith("Traceback (most recent call last)")
    assert starter.log().endswith("ValueError: boom\n")


def test_forks_outlive_a_server_that_is_killed_and_new_processes_come_after_them(starter: Starter) -> None:
    with starter.open() as opened:
        first = starter.start(opened, "wait")
        wait_until(lambda: starter.log() == "waiting\n")
        os.kill(server(opened), signal.SIGKILL)
        second = starter.start(opened, "tell", "7")
        assert code(second) == 7
        assert isinstance(second, subprocess.Popen)
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        assert code(first) == -signal.SIGTERM
    assert len(starter.said) == 1


def test_a_server_that_is_killed_while_it_imports_is_not_waited_for(starter: Starter) -> None:
    with starter.open("import time; time.sleep(60)") as opened:
        assert not opened.is_ready(STAGE)
        os.kill(server(opened), signal.SIGKILL)
        assert code(starter.start(opened, "tell", "7")) == 7


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (THREAD, "a library has started threads"),
        (DRIVER, "CUDA has been initialized"),
        ("import no_such_module", "No module named 'no_such_module'"),
    ],
)
def test_what_cannot_be_forked_is_started_anew(starter: Starter, stage: str, reason: str) -> None:
    with starter.open(stage) as opened:
        process = starter.start(opened, "tell", "7")
        assert isinstance(process, subprocess.Popen)
        assert code(process) == 7
    assert [reason in line for line in starter.said] == [True]


def test_what_tasks_have_in_common_is_loaded_once_before_they_are_forked(starter: Starter) -> None:
    with starter.open(LOADS.format(then="")) as opened:
        for like in (("campaign", STAGE, "ct"), ("campaign", STAGE, "ct"), ("campaign", STAGE, "oct"), ()):
            assert code(starter.start(opened, "tell", "7", like=like)) == 7
        asked = [f"{server(opened)} a_stage:preload campaign {STAGE} {name}" for name in ("ct", "oct")]
    assert (starter.folder / "loaded").read_text().splitlines() == asked


@pytest.mark.parametrize(
    ("then", "said"), [("raise ValueError('no weights')", []), (THREAD.replace("\n", "; ")[:-2], ["started threads"])]
)
def test_a_task_is_started_whatever_comes_of_loading(starter: Starter, then: str, said: list[str]) -> None:
    with starter.open(LOADS.format(then=then)) as opened:
        process = starter.start(opened, "tell", "7", like=("campaign", STAGE, "ct"))
        assert code(process) == 7
        assert isinstance(process, subprocess.Popen) == bool(said), "a fork unless that is not safe"
    assert [reason in line for line, reason in zip(starter.said, said, strict=True)] == [True] * len(said)


def test_threads_that_a_library_ends_before_a_fork_do_no_harm(starter: Starter) -> None:
    with starter.open(MATHS, threads=2) as opened:
        told = starter.facts(opened)
        assert (told["threads"], told["environment"]["OMP_NUM_THREADS"]) == (1, "2")
    assert starter.said == []


def refuse(adopt: bool) -> None:
    raise OSError("no such system call")


@pytest.mark.parametrize(
    "hinder",
    [
        lambda monkeypatch: monkeypatch.setenv("MEDSYN_FORK", "0"),
        lambda monkeypatch: monkeypatch.setattr(processes.prctl, "adopt_orphans", refuse),
        lambda monkeypatch: monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN),
    ],
    ids=["not wanted", "no such system call", "ends of children are not reported"],
)
def test_where_there_is_no_forking_every_task_is_a_new_process(
    starter: Starter, monkeypatch: pytest.MonkeyPatch, hinder: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with monkeypatch.context() as hindered:
        hinder(hindered)
        with starter.open() as opened:
            assert (opened._server, opened.is_ready(STAGE)) == (None, True)
    with starter.open(tasks=1) as opened:
        assert opened._server is None


REAL = """
import sys, torch
from medsyn.campaign import worker
from medsyn.campaign.local import fork_server
for stage, function in worker.STAGE_FUNCTIONS.items():
    assert (reason := fork_server._prepare(function, 1)) is None, (stage, reason)
assert not torch.cuda.is_initialized()
assert not (torch.tensor([1e-310], dtype=torch.float64) * 1.0 == 0).any()  # no library has turned off denormals
"""


def test_everything_that_the_stages_import_can_be_forked() -> None:
    result = subprocess.run([sys.executable, "-c", REAL], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_what_a_stage_imports_late_is_imported_before_its_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = types.ModuleType("a_stage")
    stage.__dict__.update(run=print, IMPORTED_LATE=("colorsys",))
    monkeypatch.setitem(sys.modules, "a_stage", stage)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fork_server._prepare("a_stage:run", 1)
    assert "colorsys" in sys.modules
