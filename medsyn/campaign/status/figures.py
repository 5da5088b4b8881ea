"""The figures of a status: images accepted and asked for, time spent, expected and left.

Only `expected_seconds` needs the cost model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from medsyn import disk
from medsyn.campaign.estimate import cost, memory
from medsyn.campaign.plan import machine
from medsyn.campaign.state import attempts as state_attempts
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.status.state import NOTHING_KNOWN, State, Status
from medsyn.campaign.tasks import Key, PlannedTask
from medsyn.efficiency import Efficiency, Record, add_up, summarize

TO_COME: tuple[State, ...] = ("running", "preempted", "pending", "cancelled", "idle", "unknown")


@dataclass(frozen=True)
class StageFigures:
    """One stage in numbers. Seconds spent and expected are GPU-seconds where there are GPUs."""

    tasks: int
    counts: Counter[State]
    attempts: int  # how often its tasks were started
    spent: float  # seconds of all attempts, failed and killed ones included
    expected: float | None  # seconds of the whole stage, by the cost model
    left: float | None  # seconds until nothing is left, at the pace and with the tasks running now


@dataclass(frozen=True)
class ImageFigures:
    """Images that a mode was asked for, and what its done shards have made."""

    asked: int
    made: int
    accepted: int
    candidates: int
    unfamiliar: int  # of those made: unlike all that the Selector has learned from


def stages(status: Status, expected: Mapping[str, float] | None = None) -> dict[str, StageFigures]:
    """The figures of every stage; `expected` are the cost model's seconds of whole stages."""
    expected = expected or {}
    return {
        stage: _stage(status, stage, tasks, expected.get(stage))
        for stage, tasks in status.campaign.plan.by_stage.items()
    }


def _stage(status: Status, stage: str, tasks: list[PlannedTask], expected: float | None) -> StageFigures:
    counts = status.counts[stage]
    gpus = memory.ranks(status.campaign.config.finetune) if stage == "finetune" else 1
    lines = [status.made[planned.key] for planned in tasks if planned.key in status.made]
    took = [float(line.get("spent") or line.get("seconds") or 0.0) for line in lines]
    open_tasks = [planned for planned in tasks if planned.key not in status.made]
    attempts = sum(int(line.get("attempts") or 0) for line in lines)
    attempts += sum(status.evidence.get(planned.key, NOTHING_KNOWN).attempts.begun for planned in open_tasks)
    so_far = [_spent(status, planned) for planned in open_tasks]
    per_task = sum(took) / len(took) if took else expected / gpus / len(tasks) if expected else None
    to_come = [
        seconds for planned, seconds in zip(open_tasks, so_far, strict=True) if status.states[planned.key] in TO_COME
    ]
    left = None
    if per_task and counts["running"]:
        left = sum(max(0.0, per_task - seconds) for seconds in to_come) / counts["running"]
    return StageFigures(len(tasks), counts, attempts, gpus * (sum(took) + sum(so_far)), expected, left)


def _spent(status: Status, planned: PlannedTask) -> float:
    """Seconds of a task's attempts so far; one that was killed counts up to its last heartbeat."""
    its = status.evidence.get(planned.key, NOTHING_KNOWN).attempts
    if not its.is_open:
        return its.seconds
    if status.states[planned.key] == "running":
        return its.spent(status.time)
    heartbeat = state_attempts.progress(status.campaign.directory, planned.key)
    return its.spent(heartbeat.get("time") if heartbeat else None)


def efficiency(status: Status) -> Efficiency:
    """Where the seconds of all tasks went; reads the attempts of those that are not done and have been tried."""
    directory = status.campaign.directory
    records: dict[Key, Record] = {key: line["use"] for key, line in status.made.items() if line.get("use")}
    for key, state in status.states.items():
        if key not in status.made and status.evidence.get(key, NOTHING_KNOWN).attempts.begun:
            lines, heartbeat = disk.read_jsonl(directory.attempts(*key)), state_attempts.progress(directory, key)
            records[key] = summarize(lines, heartbeat, status.time if state == "running" else None)
    return add_up(records, disk.read_jsonl(directory.ledger))


def images(status: Status) -> dict[str, ImageFigures]:
    """Images of each mode: asked of the whole campaign, and made by the shards that are done."""
    campaign = status.campaign
    generates = campaign.plan.by_stage.get("generate", [])
    asked = sum(campaign.counts["asked"].get(modality, 0) for modality in campaign.config.data.modalities)
    counts = {mode: Counter[str]() for mode in campaign.config.generation.modes}
    for planned in generates:
        for mode, made in (status.made.get(planned.key, {}).get("images") or {}).items():
            if mode in counts:
                counts[mode].update(made)
    return {
        mode: ImageFigures(asked, its["made"], its["accepted"], its["candidates"], its["unfamiliar"])
        for mode, its in counts.items()
        if asked
    }


def expected_seconds(campaign: Campaign, here: bool = False) -> dict[str, float]:
    """Seconds of all tasks of each stage, done ones included; empty for a campaign without recorded counts.

    Args:
        campaign: the prepared campaign.
        here: whether its tasks run on this machine.
    """
    if "images" not in campaign.counts:
        return {}
    on_gpu, forks = machine.expects_gpu(campaign.config, here), not machine.is_queued(here)
    found = cost.estimate(campaign.config, campaign.plan, campaign.counts, on_gpu, forks)
    totals = {stage: -found.spared[stage] for stage in campaign.plan.by_stage}
    for (stage, _), its in found.tasks.items():
        totals[stage] += its.gpus * its.seconds
    return totals
