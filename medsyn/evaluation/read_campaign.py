"""What evaluation reads from disk: real and generated images, learning curves, timings, and what is missing.

Nothing here fails because a part of the campaign failed: what exists is read, what is missing is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medsyn import disk
from medsyn.config import TOGETHER, Config
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.data.prompts.store import PromptList, open_lists
from medsyn.data.tables.read import ImageRow, dataset_of
from medsyn.data.tables.split import by_lot, groups, hold_out
from medsyn.efficiency import Efficiency, Record, add_up, summarize
from medsyn.errors import InputError, InputProblems
from medsyn.evaluation.generated import GeneratedImages, Missing, Picture, Tick, picture, read_generated, spread
from medsyn.generation.block_store import Item
from medsyn.modality_names import in_order
from medsyn.seeds import seed
from medsyn.stage import STAGES, CampaignDirectory, slug

ALL_MODALITIES = "all modalities"


@dataclass
class RealImages:
    """The data set's images, training and held-out ones separately."""

    training: list[Picture] = field(default_factory=list)
    held_out: list[Picture] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # rows of each modality
    patients_known: bool = False  # whether the split is by patient
    unreadable: int = 0
    left_out: int = 0  # beyond evaluation.max_images


@dataclass
class Gathered:
    """Everything on disk that the report is about."""

    real: RealImages
    prompts: dict[str, PromptList]  # by modality
    made: dict[str, dict[str, GeneratedImages]]  # by modality, then by mode, in the order of the steps to them
    missing: list[Missing]
    chosen: dict[str, list[Item]] = field(default_factory=dict)  # prompts of the contact sheets, by modality

    @property
    def modalities(self) -> list[str]:
        """The modalities that have real images or prompts, in a fixed order."""
        return in_order({*self.real.counts, *self.prompts})


def gather(config: Config, directory: CampaignDirectory, tick: Tick) -> Gathered:
    """Read everything; `tick` is called before each block and image."""
    real, missing = read_real(config, tick)
    missing += missing_models(config, directory)
    prompts = prompts_by_modality(config)
    chosen = {modality: spread(rows, config.evaluation.sheet_columns) for modality, rows in prompts.items()}
    made: dict[str, dict[str, GeneratedImages]] = {}
    for modality, rows in prompts.items():
        made[modality] = {}
        for arm in sorted(config.arms, key=lambda arm: arm.step):
            its = read_generated(config, directory, arm.mode, modality, rows, chosen[modality], tick)
            made[modality][arm.mode], lost = its
            missing += lost
    return Gathered(real, prompts, made, missing, chosen)


def read_agreement(config: Config) -> dict[str, Any] | None:
    """How far the ratings can be trusted (`medsyn.rating.report`); None for ratings that no import has written."""
    from medsyn.rating.report import assess
    from medsyn.rating.sessions import SESSIONS_TABLE, ratings_beside, read_sessions

    if config.data.ratings_file is None:
        return None
    ratings = Path(str(config.data.ratings_file))
    table = ratings.with_name(SESSIONS_TABLE)
    if not table.is_file():
        return None
    try:
        sessions = read_sessions(table)
        return assess(sessions).as_dict() if ratings_beside(table) == ratings.name else None
    except InputError:  # it was moved or replaced: the ratings themselves have been checked
        return None


def read_real(config: Config, tick: Tick) -> tuple[RealImages, list[Missing]]:
    """The data set's images as the models saw them, at most `max_images` per modality and split."""
    real, data = RealImages(), config.data
    try:
        rows = dataset_of(data).rows
    except (InputError, InputProblems):
        return real, [Missing("the data set", "its table cannot be read")]
    real.patients_known = all(row.patient_id is not None for row in rows)
    is_held_out = hold_out(rows, data.held_out_fraction, config.campaign.seed)
    patients, missing = groups(rows), []
    for modality in config.data.modalities:
        images = {(row.path, row.volume): row for row in reversed(rows) if row.modality == modality}  # its first row
        members = sorted(images.values(), key=lambda row: row.row)
        if not members:
            missing.append(Missing("the data set", f"it has no images of {modality}"))
            continue
        real.counts[modality] = len(members)
        for held_out, pictures in ((False, real.training), (True, real.held_out)):
            part = [row for row in members if is_held_out(row) == held_out]
            pictures += _read_rows(config, part, patients, real, tick)
    return real, missing


def _read_rows(
    config: Config, rows: Sequence[ImageRow], patients: Mapping[str, str], real: RealImages, tick: Tick
) -> Iterator[Picture]:
    """The pictures of readable rows; unreadable and surplus ones are counted."""
    kept = _sample(rows, config.evaluation.max_images, config.campaign.seed)
    real.left_out += len(rows) - len(kept)
    for row in kept:
        tick()
        try:
            pixels = fit_square(read_image(row.path, row.modality, row.volume).pixels, config.data.resolution)
        except InputError:
            real.unreadable += 1
            continue
        name = row.file if row.volume is None else f"{row.file} (volume {row.volume})"
        yield picture(np.round(pixels * 255).astype(np.uint8), row.modality, row.text, name, patients[row.file])


def _sample(rows: Sequence[ImageRow], most: int, campaign_seed: int) -> Sequence[ImageRow]:
    """At most `most` of `rows`, chosen independent of their order; in table order."""
    if len(rows) <= most:
        return rows
    return by_lot(rows, most, lambda row: seed(campaign_seed, "evaluate", row.file))


def prompts_by_modality(config: Config) -> dict[str, PromptList]:
    """The campaign's prompts; empty where the list is absent or unreadable, which generation has reported already."""
    try:
        lists = open_lists(Path(config.data.prompts)) if config.data.prompts else {}
    except InputError:
        lists = {}
    return {modality: lists[modality] for modality in config.data.modalities if modality in lists}


def _finetuned(config: Config) -> dict[str, str]:
    """The fine-tuning tasks, by what each is for: a modality, or all of them."""
    if config.finetune.together:
        return {ALL_MODALITIES: TOGETHER}
    return {modality: config.finetune.task_for(modality) for modality in in_order(config.data.modalities)}


def missing_models(config: Config, directory: CampaignDirectory) -> list[Missing]:
    """The models that training should have made but did not."""
    expected = {
        f"finetune {slug(task)}": (directory.finetuned_unet(task) / "unet", f"the fine-tuned UNet of {of}")
        for of, task in _finetuned(config).items()
    }
    expected["rlhf-stage1 all"] = (directory.policy(), "the Selector and the Policy")
    if config.training.stage == 2:
        for modality in config.data.modalities:
            name = f"rlhf-stage2 {slug(modality)}"
            expected[name] = (directory.policy(modality), f"the Policy of {modality}")
    for modality in config.data.modalities if config.align.enabled else ():
        expected[f"align {slug(modality)}"] = (directory.aligned_unet(modality), f"the aligned UNet of {modality}")
    return [Missing(task, what) for task, (path, what) in expected.items() if not path.is_dir()]


def _read_curve(path: Path, unit: str) -> pd.DataFrame:
    """A metrics file indexed by ascending step or epoch; of one done twice (a resumed run) the later record counts."""
    records = {record[unit]: record for record in disk.read_jsonl(path) if unit in record}
    return pd.DataFrame.from_dict(records, orient="index").sort_index()


@dataclass(frozen=True)
class Curves:
    """The metrics that training wrote, by modality where there is one model per modality."""

    finetune: dict[str, pd.DataFrame]  # by step; of `ALL_MODALITIES` where one model is for all
    stage1: pd.DataFrame  # by epoch, as the next
    stage2: dict[str, pd.DataFrame]


def read_curves(config: Config, directory: CampaignDirectory) -> Curves:
    """Read every learning curve that exists."""

    def of_tasks(stage: str, tasks: Mapping[str, str], unit: str) -> dict[str, pd.DataFrame]:
        metrics = {of: directory.work(stage, slug(task)) / "metrics.jsonl" for of, task in tasks.items()}
        return {of: curve for of, path in metrics.items() if len(curve := _read_curve(path, unit))}

    return Curves(
        finetune=of_tasks("finetune", _finetuned(config), "step"),
        stage1=_read_curve(directory.work("rlhf-stage1", "all") / "metrics.jsonl", "epoch"),
        stage2=of_tasks("rlhf-stage2", {name: name for name in in_order(config.data.modalities)}, "epoch"),
    )


def read_summaries(config: Config, directory: CampaignDirectory) -> dict[str, Any]:
    """The RLHF stages' summaries of their scorers: stage 1's or None, and stage 2's by modality."""

    def summary(stage: str, name: str) -> dict[str, Any] | None:
        path = directory.work(stage, name) / "summary.json"
        return disk.read_json(path) if path.is_file() else None

    second = {modality: summary("rlhf-stage2", slug(modality)) for modality in config.data.modalities}
    return {"stage1": summary("rlhf-stage1", "all"), "stage2": {name: its for name, its in second.items() if its}}


@dataclass(frozen=True)
class StageTime:
    """What one stage took: tasks, attempts (more than tasks if some were rerun) and the seconds of all of them."""

    stage: str
    tasks: int
    attempts: int
    unfinished: int  # attempts without a recorded end: killed, or running
    seconds: float


def read_efficiency(directory: CampaignDirectory, but: str) -> Efficiency:
    """Where the seconds of the campaign's tasks went, but for those of one stage."""
    paths = [(stage, path) for stage in STAGES for path in directory.attempts(stage, "any").parent.glob("*.jsonl")]
    records: dict[tuple[str, str], Record] = {}
    for stage, path in paths:
        if stage != but:
            heartbeat = directory.heartbeat(stage, path.stem)
            beat = disk.read_json(heartbeat) if heartbeat.is_file() else None
            records[stage, path.stem] = summarize(disk.read_jsonl(path), beat)
    return add_up(records, disk.read_jsonl(directory.ledger))


def stage_times(directory: CampaignDirectory) -> list[StageTime]:
    """Task seconds per stage from the recorded attempts; stages without a record are left out."""
    paths = [(stage, path) for stage in STAGES for path in directory.attempts(stage, "any").parent.glob("*.jsonl")]
    events = pd.DataFrame(
        [{"stage": stage, "task": path.stem, **event} for stage, path in paths for event in disk.read_jsonl(path)],
        columns=["stage", "task", "attempt", "event", "time"],
    )
    attempts = events.pivot_table("time", ["stage", "task", "attempt"], "event", "last").reindex(
        columns=["start", "end"]
    )
    attempts["seconds"] = attempts.end - attempts.start
    begun = attempts.dropna(subset="start").reset_index()
    return [
        StageTime(stage, its.task.nunique(), len(its), int(its.end.isna().sum()), sum(its.seconds.dropna()))
        for stage in STAGES
        if len(its := begun[begun.stage == stage])
    ]
