"""Stages that a test can order about: each task does what `script.json` in the campaign's directory says.

A script maps "STAGE TASK" to a list of actions, one per call; the last one repeats. Tasks not in it do their work.
"""

from __future__ import annotations

import json
import os
import signal
import time

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import STAGES, BadNode, CampaignDirectory, Control, NoProgress, Saved, Task

FUNCTIONS = dict.fromkeys(STAGES, "tests.helpers.fake_stages:run")
STEP_SECONDS = 0.02


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    name = f"{task.stage} {task.name}"
    calls = directory.root / "calls.jsonl"
    number = sum(line["task"] == name for line in disk.read_jsonl(calls))
    disk.append_jsonl(
        calls,
        {
            "task": name,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "pid": os.getpid(),
            "time": time.time(),
            "kept": control.kept.get("tasks", 0),
        },
    )
    control.kept["tasks"] = control.kept.get("tasks", 0) + 1
    script = directory.root / "script.json"
    actions = json.loads(script.read_text()).get(name, ["work"]) if script.is_file() else ["work"]
    action, _, argument = actions[min(number, len(actions) - 1)].partition(":")
    if action == "steps":
        _steps(task, directory, control, int(argument))
    elif action == "crash":
        control.heartbeat(3, 10)
        raise ValueError(f"boom {argument} in <object at {hex(id(task))}>")
    elif action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        control.leave_if_asked()
    elif action == "ask":
        directory.work(*argument.split())
    elif action == "deaf":
        time.sleep(60)
    elif action == "save":
        raise Saved
    elif action == "kill":
        os.kill(os.getpid(), getattr(signal, argument))
        time.sleep(5)
    elif action == "input":
        raise InputError("table.csv", "row 3 is wrong", row=3)
    elif action == "stuck":
        raise NoProgress("the loss is not finite")
    elif action == "bad-node":
        raise BadNode("no GPU is visible")
    elif action == "disk-full":
        with open("/dev/full", "w") as stream:  # noqa: PTH123
            stream.write("x")
    elif action == "disk-full-named":
        model = directory.work(task.stage, task.name) / "model.bin"
        with disk.atomic_directory(model), open("/dev/full", "w") as stream:  # noqa: PTH123
            stream.write("x")
    elif action == "disk-full-abroad":
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    elif action == "quota":
        with disk.writing(directory.work(task.stage, task.name) / "model.bin"):
            raise RuntimeError("Error while serializing: I/O error: Disk quota exceeded (os error 122)")
    elif action == "broken-gpu":
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if action != "nothing":
        _make(config, task, directory)


def _steps(task: Task, directory: CampaignDirectory, control: Control, total: int) -> None:
    """Count to `total`, saving after every step and leaving when asked; every step is on record."""
    saved = directory.work(task.stage, task.name) / "checkpoints" / "step.json"
    start = disk.read_json(saved) if saved.is_file() else 0
    for step in range(start, total):
        time.sleep(STEP_SECONDS)
        disk.append_jsonl(directory.root / "steps.jsonl", {"task": f"{task.stage} {task.name}", "step": step})
        disk.write_json(saved, step + 1)
        control.heartbeat(step + 1, total)
        control.leave_if_asked()


def _make(config: Config, task: Task, directory: CampaignDirectory) -> None:
    if task.blocks is not None and task.modality is not None:
        for mode in config.generation.modes:
            for number in range(*task.blocks):
                block = directory.block(mode, task.modality, number)
                disk.write_atomic(block / "a.png", f"{task.modality} {number}")
                size = (block / "a.png").stat().st_size
                disk.write_atomic(block / "manifest.jsonl", json.dumps({"file": "a.png", "bytes": size}) + "\n")
                disk.write_atomic(block / "attempts.jsonl", "{}\n")
                disk.write_json(block / "timing.json", {"seconds": 0.0})
            for name in ("manifest.parquet", "attempts.parquet"):
                disk.write_atomic(directory.shard(mode, task.modality, task.blocks) / name, "no table")
        return
    if task.stage == "evaluate":
        disk.write_atomic(directory.report, "<p>report</p>")
    disk.write_atomic(directory.work(task.stage, task.name) / "model.bin", f"made by {task.stage} {task.name}")
