"""What `launch.py plan` says about cost: hours, memory and disk, all of them estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from medsyn.campaign import capacity
from medsyn.campaign.cost import Estimate, TaskCost
from medsyn.campaign.footprint import GIB
from medsyn.campaign.inputs import Checked
from medsyn.campaign.plan import Key
from medsyn.stage import CampaignDirectory


def table(checked: Checked) -> Table:
    """What each stage is expected to cost. The longest task counts: a time limit must hold for it."""
    estimate = checked.estimate
    shown = Table("stage", title="estimates", title_justify="left")
    for column in ("hours a task", "hours in all", "memory GiB", "disk GiB", "more while all run"):
        shown.add_column(column, justify="right")
    for stage in checked.plan.by_stage:
        tasks = estimate.of(stage)
        memory = max(cost.memory for cost in tasks)
        scratch = sum(cost.scratch for cost in tasks)
        shown.add_row(
            stage,
            _hours(max(cost.seconds for cost in tasks)),
            _hours(sum(cost.seconds for cost in tasks)),
            f"{memory / GIB:.1f}" if memory else "",
            _gib(sum(cost.kept for cost in tasks)),
            _gib(scratch) if scratch else "",
        )
    return shown


def totals(checked: Checked) -> list[str]:
    """The campaign as a whole, and what the estimates take for granted."""
    config, estimate = checked.config, checked.estimate
    if estimate.on_gpu:
        hours = f"estimated GPU-hours: {_range(estimate)}, at {estimate.tflops:.3g} TFLOP/s; evaluate needs no GPU"
    else:
        hours = f"estimated hours of computing: {_range(estimate)}, on {config.device.cpu_threads} CPU thread(s) a task"
    done, free = _done(checked), capacity.disk_free(config)
    at_once = config.cluster.max_parallel
    least, most = (capacity.disk_needed(estimate, done, parallel) for parallel in (at_once, None))
    lines = [
        hours,
        f"estimated disk for what is not done: {_gib(least)} GiB with {at_once} tasks at once, {_gib(most)} GiB with "
        f"all at once; free: {'unknown' if free is None else f'{_gib(free)} GiB'}",
    ]
    section = config.generation
    if "filtered" in section.modes and estimate.of("generate"):
        bounds = f"{section.num_candidates} to {section.max_attempts}"
        lines.append(f"a filtered image takes {bounds} candidates; {estimate.candidates:g} are assumed")
    if estimate.assumed:
        lines.append("the model's configuration is not on this machine: the sizes are those of Stable Diffusion v1.5")
    return lines


def _range(estimate: Estimate) -> str:
    least, most = _hours(3600 * estimate.hours("least")), _hours(3600 * estimate.hours("most"))
    return _hours(3600 * estimate.hours()) + (f" ({least} to {most})" if least != most else "")


def _done(checked: Checked) -> set[Key]:
    return capacity.marked_done(CampaignDirectory(checked.config.campaign.path))


def as_dict(checked: Checked) -> dict[str, Any]:
    """Everything about cost for scripts: hours, and bytes."""
    estimate = checked.estimate
    done = _done(checked)
    return {
        "on_gpu": estimate.on_gpu,
        "tflops": estimate.tflops,
        "model_assumed": estimate.assumed,
        "hours": {"expected": estimate.hours(), "least": estimate.hours("least"), "most": estimate.hours("most")},
        "disk": {
            "needed": capacity.disk_needed(estimate, done, checked.config.cluster.max_parallel),
            "needed_all_at_once": capacity.disk_needed(estimate, done),
            "free": capacity.disk_free(checked.config),
        },
        "stages": {stage: _stage_as_dict(estimate.of(stage)) for stage in checked.plan.by_stage},
    }


def _stage_as_dict(tasks: Sequence[TaskCost]) -> dict[str, float]:
    return {
        "hours": sum(cost.seconds for cost in tasks) / 3600,
        "longest_task_hours": max(cost.seconds for cost in tasks) / 3600,
        "memory": max(cost.memory for cost in tasks),
        "disk_kept": sum(cost.kept for cost in tasks),
        "disk_scratch": sum(cost.scratch for cost in tasks),
    }


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.3f}"


def _gib(amount: float) -> str:
    return f"{amount / GIB:.0f}" if amount >= 10 * GIB else f"{amount / GIB:.2f}"
