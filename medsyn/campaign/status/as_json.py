"""The status for scripts: `status --json`, described in docs/status.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from medsyn.campaign.state import attempts
from medsyn.campaign.status import figures, logs
from medsyn.campaign.status.state import NOTHING_KNOWN, STATES, State, Status
from medsyn.campaign.tasks import Key

SCHEMA = 1
LISTED: tuple[State, ...] = ("running", "preempted", "failed", "blocked", "cancelled", "unknown")


def as_dict(
    status: Status, command: Callable[[str], str], expected: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The status as a JSON-ready mapping.

    Args:
        status: what was found.
        command: what the user types for a command.
        expected: the cost model's seconds of whole stages.
    """
    directory, step = status.campaign.directory, status.next_step
    return {
        "schema": SCHEMA,
        "time": status.time,
        "campaign": status.campaign.config.campaign.name,
        "directory": str(directory.root),
        "report": str(directory.report) if directory.report.is_file() else None,
        "cluster": "slurm" if status.on_slurm else "local",
        "exit_code": status.exit_code,
        "stages": {stage: _stage(its) for stage, its in figures.stages(status, expected).items()},
        "images": {mode: asdict(its) for mode, its in figures.images(status).items()},
        "efficiency": figures.efficiency(status).as_dict(),
        "tasks": [
            _task(status, key)
            for state, keys in status.by_state.items()
            for key in keys
            if state in LISTED or status.is_held(key)
        ],
        "notes": list(status.notes),
        "next": {"why": step.why, "command": command(step.command) if step.command else None},
    }


def _stage(its: figures.StageFigures) -> dict[str, Any]:
    return {
        "tasks": its.tasks,
        "states": {state: its.counts[state] for state in STATES},
        "attempts": its.attempts,
        "seconds": {"spent": its.spent, "expected": its.expected, "left": its.left},
    }


def _task(status: Status, key: Key) -> dict[str, Any]:
    directory, evidence = status.campaign.directory, status.evidence.get(key, NOTHING_KNOWN)
    state, log = status.states[key], status.log(key)
    entry: dict[str, Any] = {
        "stage": key[0],
        "task": key[1],
        "state": state,
        "why": status.why(key),
        "attempts": evidence.attempts.begun,
        "job": evidence.job.id if evidence.job else None,
        "log": str(log) if log else None,
    }
    if state == "running":
        entry["progress"] = attempts.progress(directory, key)
    elif state == "failed":
        entry["failure"] = attempts.read_failure(directory, key)
        entry["last_line"] = next(iter(logs.last_lines(log, 1)), None) if log else None
    elif state == "blocked":
        entry["by"] = [{"stage": stage, "task": task} for stage, task in status.blocked_by.get(key, ())]
    return entry
