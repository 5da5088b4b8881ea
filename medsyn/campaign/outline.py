"""What `launch.py plan` says: stages, tasks, what each waits for, what there is of each modality, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from medsyn.campaign import capacity
from medsyn.campaign.cost import Estimate, TaskCost
from medsyn.campaign.footprint import GIB
from medsyn.campaign.inputs import Checked
from medsyn.campaign.plan import Key, Plan, PlannedTask
from medsyn.stage import CampaignDirectory

NAMES_SHOWN = 5
COLUMNS = ("images", "rated images", "prompts")  # of the tables' counts


def show(console: Console, checked: Checked) -> None:
    """Print the plan of a campaign as three tables."""
    console.print(f"campaign {checked.config.campaign.name}, {checked.config.campaign.path}", soft_wrap=True)
    console.print(_modalities(checked))
    console.print(_stages(checked))
    console.print(_estimates(checked))
    for line in _totals(checked):
        console.print(line, soft_wrap=True, highlight=False)


def as_dict(checked: Checked) -> dict[str, Any]:
    """The plan for scripts."""
    return {
        "campaign": checked.config.campaign.name,
        "directory": str(checked.config.campaign.path),
        "stages": {stage: len(tasks) for stage, tasks in checked.plan.by_stage.items()},
        "tasks": [
            {
                "stage": planned.task.stage,
                "index": planned.task.index,
                "task": planned.task.name,
                "modality": planned.task.modality,
                "blocks": planned.task.blocks,
                "needs": [list(key) for key in planned.needs],
                "after": sorted({stage for stage, _ in planned.after}),
            }
            for planned in checked.plan
        ],
        "counts": {what: dict(counts) for what, counts in checked.counts.items()},
        "estimate": _estimate_as_dict(checked),
        "problems": [problem.as_dict() for problem in checked.problems],
    }


def _modalities(checked: Checked) -> Table:
    """Rows of each table and what will be made of them; `?` where a table could not be read."""
    table = Table("modality")
    for column in (*COLUMNS, "images to make", "blocks", "shards"):
        table.add_column(column, justify="right")
    known = checked.counts["prompts"]
    for modality in checked.config.data.modalities:
        rows = [str(checked.counts[what][modality]) if checked.counts[what] else "?" for what in COLUMNS]
        shards = [planned.task.blocks for planned in _generate(checked.plan, modality) if planned.task.blocks]
        asked = known[modality] * checked.config.generation.img_num * len(checked.config.generation.modes)
        made = (asked, sum(end - start for start, end in shards), len(shards))
        table.add_row(modality, *rows, *(str(number) if known else "?" for number in made))
    return table


def _generate(plan: Plan, modality: str) -> list[PlannedTask]:
    return [planned for planned in plan.by_stage.get("generate", []) if planned.task.modality == modality]


def _stages(checked: Checked) -> Table:
    table = Table("stage", "tasks", "names", "starts when")
    for stage, tasks in checked.plan.by_stage.items():
        if stage == "evaluate" and not checked.counts["prompts"]:
            table.add_row("generate", "?", "", "the prompt list can be read")
        names = [planned.task.name for planned in tasks]
        shown = ", ".join(names) if len(names) <= NAMES_SHOWN else f"{names[0]} ... {names[-1]}"
        table.add_row(stage, str(len(tasks)), shown, _condition(tasks[0]))
    return table


def _condition(planned: PlannedTask) -> str:
    """When the task may start; said of its modality, so that it holds for every task of the stage."""
    if planned.after:
        stages = dict.fromkeys(stage for stage, _ in planned.after)
        return f"{', '.join(stages)} is over, something of it done"
    needs = [stage if name == "all" else f"its {stage}" for stage, name in planned.needs]
    return f"{', '.join(needs)} is done" if needs else "at once"


def _estimates(checked: Checked) -> Table:
    """What each stage is expected to cost. The longest task counts: a time limit must hold for it."""
    estimate = checked.estimate
    table = Table("stage", title="estimates", title_justify="left")
    for column in ("hours a task", "hours in all", "memory GiB", "disk GiB", "more while it runs"):
        table.add_column(column, justify="right")
    for stage in checked.plan.by_stage:
        tasks = estimate.of(stage)
        memory = max(cost.memory for cost in tasks)
        scratch = sum(cost.scratch for cost in tasks)
        table.add_row(
            stage,
            _hours(max(cost.seconds for cost in tasks)),
            _hours(sum(cost.seconds for cost in tasks)),
            f"{memory / GIB:.1f}" if memory else "",
            _gib(sum(cost.kept for cost in tasks)),
            _gib(scratch) if scratch else "",
        )
    return table


def _totals(checked: Checked) -> list[str]:
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
        lines.append(f"how many candidates ({bounds}) a filtered image takes is known only when it is made")
    if estimate.assumed:
        lines.append("the model's configuration is not on this machine: the sizes are those of Stable Diffusion v1.5")
    return lines


def _range(estimate: Estimate) -> str:
    least, most = _hours(3600 * estimate.hours("least")), _hours(3600 * estimate.hours("most"))
    return _hours(3600 * estimate.hours()) + (f" ({least} to {most})" if least != most else "")


def _done(checked: Checked) -> set[Key]:
    return capacity.marked_done(CampaignDirectory(checked.config.campaign.path))


def _estimate_as_dict(checked: Checked) -> dict[str, Any]:
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
