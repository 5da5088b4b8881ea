"""The benchmark of what training waits for: it measures, and its estimates are the plan's."""

from __future__ import annotations

import importlib

import pytest


def test_it_measures_what_is_outside_of_passes_and_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = importlib.import_module("finetune_waits")
    args = benchmark.arguments(["--resolution", "32", "--batch-size", "1", "--steps", "2", "--every", "1"])
    outside, seconds, tflops = benchmark.measure("averages and checkpoints", args)
    assert 0 < outside < 1 and seconds > 0 and tflops > 0


def test_what_is_planned_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark = importlib.import_module("finetune_waits")
    monkeypatch.setattr("sys.argv", ["finetune_waits.py", "--plan"])
    benchmark.main()
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if "yaml" in line]
    assert [line[1].strip() for line in lines] == ["sd15-pascal.yaml", *["sd15.yaml"] * 3]
    assert all(float(line[-2].strip().rstrip("%")) < 3 for line in lines)
