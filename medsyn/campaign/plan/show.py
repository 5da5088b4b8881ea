"""What `medsyn plan` prints: stages, tasks, what each waits for, counts per modality, and estimated costs.

Costs are hours, memory and disk, all of them estimates.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from medsyn.campaign.estimate import memory, workload
from medsyn.campaign.estimate.cost import CostModel, Estimate
from medsyn.campaign.plan import capacity, inputs, shards
from medsyn.campaign.plan.blocks import USUAL
from medsyn.campaign.plan.inputs import Checked
from medsyn.campaign.tasks import Key, Plan, PlannedTask
from medsyn.errors import Problem
from medsyn.stage import CampaignDirectory
from medsyn.text import GIB, counted, gib, span

NAMES_SHOWN = 5
COLUMNS = ("images", "rated images", "prompts")  # of the tables' counts


def show(console: Console, checked: Checked, done: Collection[Key] = ()) -> None:
    """Print the plan of a campaign as three tables, and how much of it is done."""
    console.print(f"campaign {checked.config.campaign.name}, {checked.config.campaign.path}", soft_wrap=True)
    console.print(_modalities(checked))
    console.print(_stages(checked))
    for line in (*converting(checked), *sharding(checked), *together(checked), *validating(checked), *sharing(checked)):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(cost_table(checked))
    for line in (*cost_totals(checked), *_so_far(checked, done)):
        console.print(line, soft_wrap=True, highlight=False)


def _so_far(checked: Checked, done: Collection[Key]) -> Iterator[str]:
    """How many of the tasks are done, if any."""
    estimate, shares = checked.estimate, {s: len(tasks) for s, tasks in checked.plan.by_stage.items()}
    left = [
        estimate.tasks[key].seconds - estimate.spared[key[0]] / shares[key[0]]
        for key in checked.plan.by_key
        if key not in done
    ]
    if not left:
        yield f"all {counted(len(done), 'task')} are done: nothing is left to do"
    elif done:
        others = f"{span(sum(left))} of the time is for the others"
        yield f"{len(done)} of {len(checked.plan.tasks)} tasks are done; {others}"


def as_dict(checked: Checked, done: Collection[Key] = ()) -> dict[str, Any]:
    """The plan for scripts."""
    return {
        "campaign": checked.config.campaign.name,
        "directory": str(checked.config.campaign.path),
        "stages": {stage: len(tasks) for stage, tasks in checked.plan.by_stage.items()},
        "done": len(done),
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
            "batches_per_block": checked.config.generation.batches_per_block,
            "blocks_per_shard": checked.blocks_per_shard,
            "shard_minutes": _shard_seconds(checked) / 60,
        },
        "estimate": cost_as_dict(checked),
        "problems": [problem.as_dict() for problem in checked.problems],
    }


def _modalities(checked: Checked) -> Table:
    """Rows of each table and what will be made from them; `?` where a table could not be read."""
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


def sharding(checked: Checked) -> list[str]:
    """How large the shards and batches of the generate stage are."""
    tasks = checked.plan.by_stage.get("generate", [])
    is_auto = checked.given.generation.batch_size == "auto"
    if not tasks or (is_auto and any(problem.key == "cluster.gpu_memory_gib" for problem in checked.errors)):
        return []
    minutes, size = _shard_seconds(checked) / 60, checked.config.generation.images_per_batch
    long = f"{minutes:.0f} minutes" if minutes >= 2 else f"{60 * minutes:.0f} seconds"
    chosen = " (generation.batch_size=auto)" if is_auto else ""
    sizes = f"generate: {counted(len(tasks), 'shard')} of about {long}, in batches of {size}{chosen}"
    model = CostModel(checked.config, checked.counts, checked.estimate.on_gpu)
    ends = {planned.task.modality: planned.task.blocks[1] for planned in tasks if planned.task.blocks}
    blocks = {modality: end for modality, end in ends.items() if modality is not None}
    if (told := _large_blocks(checked)) is not None:
        sizes = f"{sizes}, {told}"
    return [sizes, *(f"generate: {note}" for note in shards.notes(model, blocks, checked.blocks_per_shard))]


def _large_blocks(checked: Checked) -> str | None:
    """How large the blocks are, where there are so many images that larger ones than usual were chosen."""
    section = checked.config.generation
    if checked.given.generation.batches_per_block != "auto" or section.batches_per_block == USUAL:
        return None
    return f"{section.block_size} images in a block (generation.batches_per_block={section.batches_per_block})"


def converting(checked: Checked) -> Iterator[str]:
    """That a model in one file will be converted, and to what."""
    if inputs.is_to_convert(checked.given, checked.config):
        file = Path(checked.given.model_paths.stable_diffusion)
        made = checked.config.model_paths.stable_diffusion
        yield f"model: {file} is converted once, to {made} ({gib(file.stat().st_size)} GiB)"


def together(checked: Checked) -> Iterator[str]:
    """What one model for all modalities means for each of them."""
    section = checked.config.finetune
    if not section.together:
        return
    line = "finetune: one model for all modalities (finetune.together)"
    images = {modality: checked.counts["images"][modality] for modality in checked.config.data.modalities}
    if (total := sum(images.values())) and section.rare_captions is None:
        shares = ", ".join(f"{100 * count / total:.0f} % {modality}" for modality, count in images.items())
        line += f"; the samples of its {counted(section.max_train_steps, 'step')} are {shares}"
    yield line


def validating(checked: Checked) -> Iterator[str]:
    """How much of the longest fine-tuning goes into watching it."""
    config, costs = checked.config, checked.estimate.of("finetune")
    if config.finetune.validate_every is None or not costs:
        return
    model = CostModel(config, checked.counts, checked.estimate.on_gpu)
    works = [workload.volume(config, planned.task, checked.counts) for planned in checked.plan.by_stage["finetune"]]
    cost, work = max(zip(costs, works, strict=True), key=lambda one: one[0].seconds)
    images = memory.validated(config.finetune, work)
    drawn = min(config.finetune.validation_images or 0, images)
    what = f"the loss of {counted(images, 'held-out image')}" + (f" and {counted(drawn, 'sample')}" if drawn else "")
    yield (
        f"finetune: {what} every {counted(config.finetune.validate_every, 'step')} "
        f"(finetune.validate_every), {span(model.finetuning(work).validating)} of {span(cost.seconds)}"
    )


def sharing(checked: Checked) -> Iterator[str]:
    """How the GPUs of a fine-tuning task share its work, and where all but one of them wait."""
    section, costs = checked.config.finetune, checked.estimate.of("finetune")
    what = "GPU" if checked.config.device.use_cuda else "rank"
    if section.gpus == "auto":
        yield "finetune: as many GPUs as a task can see (finetune.gpus=auto); times are those of one"
        return
    if section.gpus == 1 or not costs:
        return
    whole, rest = divmod(section.global_batch, section.gpus)
    parts = f"{whole + 1} on {rest} and {whole} on {section.gpus - rest} of them" if rest else f"{whole} on each"
    longest = max(costs, key=lambda cost: cost.seconds)
    others = "the other waits" if section.gpus == 2 else f"the other {section.gpus - 1} wait"
    yield (
        f"finetune: {section.gpus} {what}s share each batch of {section.global_batch}, {parts}; "
        f"{others} while the first encodes and saves, {span(longest.waiting)} of {span(longest.seconds)}"
    )
    if len(costs) > 1:
        yield f"finetune: with finetune.gpus=1 the {len(costs)} tasks would run side by side, and no {what} would wait"


def _last_checkpoints(checked: Checked) -> Iterator[str]:
    """How much of the disk finished fine-tunings leave for more steps, where that is worth a line."""
    networks = CostModel(checked.config, checked.counts, checked.estimate.on_gpu).networks
    each, tasks = memory.last_checkpoint_bytes(checked.config, networks), len(checked.estimate.of("finetune"))
    if each * tasks >= GIB:
        yield (
            f"of it {gib(each * tasks)} GiB are the last checkpoint of {counted(tasks, 'fine-tuning')}, to go on from "
            "with more finetune.max_train_steps; finetune.keep_last_checkpoint=false removes it"
        )


def _shard_seconds(checked: Checked) -> float:
    """What a shard is expected to take on average; 0 where there is none."""
    costs = checked.estimate.of("generate")
    return sum(cost.seconds for cost in costs) / len(costs) if costs else 0.0


def _condition(planned: PlannedTask) -> str:
    """When the task may start, in words that hold for every task of the stage."""
    if planned.after:
        stages = dict.fromkeys(stage for stage, _ in planned.after)
        return f"{', '.join(stages)} is over, and some of it done"
    needs = [stage if name == "all" else f"its {stage}" for stage, name in planned.needs]
    return f"{', '.join(needs)} is done" if needs else "at once"


def cost_table(checked: Checked) -> Table:
    """What each stage is expected to cost. The longest task counts: a time limit must hold for it."""
    estimate = checked.estimate
    shown = Table("stage", title="estimates", title_justify="left")
    for column in ("longest task", "in all", "memory GiB", "disk GiB", "more while all run"):
        shown.add_column(column, justify="right")
    for stage in checked.plan.by_stage:
        tasks = estimate.of(stage)
        memory = max(cost.memory for cost in tasks)
        scratch = sum(cost.scratch for cost in tasks)
        shown.add_row(
            stage,
            span(max(cost.seconds for cost in tasks)),
            span(estimate.in_all(stage)),
            gib(memory) if memory else "",
            gib(sum(cost.kept for cost in tasks)),
            gib(scratch) if scratch else "",
        )
    return shown


def cost_totals(checked: Checked) -> list[str]:
    """Totals of the campaign, and what the estimates assume."""
    config, estimate = checked.config, checked.estimate
    if estimate.on_gpu:
        usual = (
            "" if config.cluster.tflops else ", the usual rate of the slowest cards; medsyn calibrate measures yours"
        )
        time = f"estimated GPU time: {_range(estimate)}, at {estimate.tflops:.3g} TFLOP/s{usual}; evaluate needs no GPU"
    else:
        time = f"estimated computing time: {_range(estimate)}, on {config.device.cpu_threads} CPU thread(s) a task"
    done, free = _done(checked), capacity.disk_free(config)
    at_once = config.cluster.max_parallel
    least, most = (capacity.disk_needed(estimate, done, parallel) for parallel in (at_once, None))
    lines = [
        time,
        f"estimated disk for what is not done: {gib(least)} GiB with {at_once} tasks at once, {gib(most)} GiB with "
        f"all at once; free: {'unknown' if free is None else f'{gib(free)} GiB'}",
        *_last_checkpoints(checked),
    ]
    section = config.generation
    if section.filters and estimate.of("generate"):
        bounds = f"{section.num_candidates} to {section.max_attempts}"
        lines.append(f"a filtered image takes {bounds} candidates; {estimate.candidates:g} are assumed")
    if estimate.assumed:
        lines.append("the model's configuration is not on this machine: the sizes are those of Stable Diffusion v1.5")
    return lines


def _range(estimate: Estimate) -> str:
    least, most = (span(3600 * estimate.hours(which)) for which in ("least", "most"))
    return span(3600 * estimate.hours()) + (f" ({least} to {most})" if least != most else "")


def verdict(problems: Sequence[Problem]) -> str:
    """Whether a campaign with these problems can be submitted, in one line."""
    errors = sum(problem.severity == "error" for problem in problems)
    warnings = len(problems) - errors
    told = f"{counted(warnings, 'warning')} above" if warnings else ""
    if errors:
        return f"not ready: {counted(errors, 'error')} above" + (
            f", and {counted(warnings, 'warning')}" if warnings else ""
        )
    return f"ready, with {told}" if told else "ready"


def _done(checked: Checked) -> set[Key]:
    return capacity.marked_done(CampaignDirectory(checked.config.campaign.path))


def cost_as_dict(checked: Checked) -> dict[str, Any]:
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
        "stages": {stage: _stage_as_dict(estimate, stage) for stage in checked.plan.by_stage},
    }


def _stage_as_dict(estimate: Estimate, stage: str) -> dict[str, float]:
    tasks = estimate.of(stage)
    return {
        "hours": estimate.in_all(stage) / 3600,
        "longest_task_hours": max(cost.seconds for cost in tasks) / 3600,
        "memory": max(cost.memory for cost in tasks),
        "disk_kept": sum(cost.kept for cost in tasks),
        "disk_scratch": sum(cost.scratch for cost in tasks),
    }
