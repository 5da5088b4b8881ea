"""What `launch.py plan` says: stages, tasks, what each waits for, what there is of each modality, and what it costs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from medsyn.campaign import budget, shards
from medsyn.campaign.cost import CostModel
from medsyn.campaign.inputs import Checked
from medsyn.campaign.plan import Plan, PlannedTask
from medsyn.errors import counted

NAMES_SHOWN = 5
COLUMNS = ("images", "rated images", "prompts")  # of the tables' counts


def show(console: Console, checked: Checked) -> None:
    """Print the plan of a campaign as three tables."""
    console.print(f"campaign {checked.config.campaign.name}, {checked.config.campaign.path}", soft_wrap=True)
    console.print(_modalities(checked))
    console.print(_stages(checked))
    for line in dealing(checked):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(budget.table(checked))
    for line in budget.totals(checked):
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
        "generate": {
            "batch_size": checked.config.generation.images_per_batch,
            "blocks_per_shard": checked.blocks_per_shard,
            "shard_minutes": _shard_seconds(checked) / 60,
        },
        "estimate": budget.as_dict(checked),
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
        asked = checked.counts["asked"][modality] * len(checked.config.generation.modes)
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


def dealing(checked: Checked) -> list[str]:
    """How large the parts of the stage generate are: its shards and its batches."""
    tasks = checked.plan.by_stage.get("generate", [])
    is_auto = checked.given.generation.batch_size == "auto"
    if not tasks or (is_auto and any(problem.key == "cluster.gpu_memory_gib" for problem in checked.errors)):
        return []
    minutes, size = _shard_seconds(checked) / 60, checked.config.generation.images_per_batch
    long = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
    chosen = " (generation.batch_size=auto)" if is_auto else ""
    told = f"generate: {counted(len(tasks), 'shard')} of about {long}, in batches of {size}{chosen}"
    model = CostModel(checked.config, checked.counts, checked.estimate.on_gpu)
    ends = {planned.task.modality: planned.task.blocks[1] for planned in tasks if planned.task.blocks}
    blocks = {modality: end for modality, end in ends.items() if modality is not None}
    return [told, *(f"generate: {note}" for note in shards.notes(model, blocks, checked.blocks_per_shard))]


def _shard_seconds(checked: Checked) -> float:
    """What a shard is expected to take on average; 0 where there is none."""
    costs = checked.estimate.of("generate")
    return sum(cost.seconds for cost in costs) / len(costs) if costs else 0.0


def _condition(planned: PlannedTask) -> str:
    """When the task may start; said of its modality, so that it holds for every task of the stage."""
    if planned.after:
        stages = dict.fromkeys(stage for stage, _ in planned.after)
        return f"{', '.join(stages)} is over, something of it done"
    needs = [stage if name == "all" else f"its {stage}" for stage, name in planned.needs]
    return f"{', '.join(needs)} is done" if needs else "at once"
