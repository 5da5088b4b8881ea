"""What a task's log says of its progress."""

from __future__ import annotations

import io
import os
import pty
import re
from pathlib import Path

import pytest

from medsyn import progress
from medsyn.progress import Progress
from medsyn.stage import Control


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    @staticmethod
    def strftime(form: str) -> str:
        return "12:00:00"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(stream: io.StringIO) -> list[str]:
    return [line.removeprefix("12:00:00 ") for line in stream.getvalue().splitlines()]


def test_lines_come_by_time_at_checkpoints_and_at_the_end(clock: Clock) -> None:
    log = Progress(stream := io.StringIO())
    for step in range(1, 101):
        log.report(step, 100, "step", {}, now=step == 50)
        clock.now += 1
    assert lines(stream) == [f"step {step} of 100" for step in (1, 31, 50, 80, 100)]


def test_a_line_has_numbers_the_rate_and_what_is_left(clock: Clock) -> None:
    log = Progress(stream := io.StringIO())
    log.report(1, 1000, "step", {"loss": None}, worked=1, samples=8)
    clock.now += 40
    log.report(21, 1000, "step", {"epoch": 3, "loss": 0.123456, "learning_rate": 1e-5}, worked=21, samples=8)
    clock.now += 40
    log.report(41, 1000, "image", {"doing": "judge"})
    assert lines(stream) == [
        "step 1 of 1000",
        "step 21 of 1000: epoch 3, loss 0.1235, learning rate 1e-05, 4 samples/s, 32:38 left",
        "image 41 of 1000: judge",
    ]


def test_the_rate_is_that_of_this_process(clock: Clock) -> None:
    log = Progress(stream := io.StringIO())
    log.report(501, 1000, "step", {}, worked=501)  # an earlier attempt made 500
    clock.now += 50
    log.report(601, 1000, "step", {}, worked=601)
    found = Progress(again := io.StringIO())
    found.report(0, 100, "image", {}, worked=0)
    clock.now += 30
    found.report(80, 100, "image", {}, worked=3)  # 77 were on disk
    assert lines(stream)[-1] == "step 601 of 1000: 2 steps/s, 3:20 left"
    assert lines(again)[-1] == "image 80 of 100: 0.1 images/s, 3:20 left"


def test_what_ends_twice_is_said_once(clock: Clock) -> None:
    log = Progress(stream := io.StringIO())
    for _ in range(3):
        log.report(5, 5, "image", {})
    assert lines(stream) == ["image 5 of 5"]


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        Progress(full).report(1, 2, "step", {})
        with pytest.raises(OSError, match="No space"):
            full.close()
    closed = io.StringIO()
    log = Progress(closed)
    closed.close()
    log.report(1, 2, "step", {})


def test_a_terminal_has_a_bar_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        log = Progress()
        log.report(1, 4, "image", {"accepted": 1})
        log.report(4, 4, "image", {"accepted": 3})
        log.close()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(reader, 100_000).decode())
    os.close(reader)
    assert "━━━ 4/4 accepted 3" in shown
    assert "image 4 of 4" not in shown


def test_a_task_says_what_it_publishes(clock: Clock, tmp_path: Path) -> None:
    control = Control(progress=Progress(stream := io.StringIO()))
    control.heartbeat(1, 9, "step", worked=1, loss=0.5)
    control.heartbeat(2, 9, "step", worked=2, loss=0.4)
    control.heartbeat(3, 9, "step", worked=3, saved=True, loss=0.3)
    assert lines(stream) == ["step 1 of 9: loss 0.5", "step 3 of 9: loss 0.3"]
