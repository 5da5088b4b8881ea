"""What evaluation reads from disk: real and generated images, learning curves, timings, and what is missing.

Nothing here fails because a part of the campaign did: what is not there is named, what is there is read. Images are
kept small (at most 128 px and one feature vector each), so a large campaign fits into memory.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images import read_image
from medsyn.data.prompt_lists import PromptList, open_lists
from medsyn.data.split import is_held_out
from medsyn.data.square import fit_square
from medsyn.data.tables import MODALITIES, ImageRow, read_dataset
from medsyn.errors import InputError, InputProblems
from medsyn.evaluation.features import describe, shrink
from medsyn.generation.filter import SURPLUS
from medsyn.generation.shard import ATTEMPTS, TIMING, Blocks, plan_shards, read_image_bytes, read_manifest
from medsyn.seeds import seed
from medsyn.stage import STAGES, CampaignDirectory, slug

PICTURE_SIDE = 128  # most pixels a side that are kept of an image
PICTURES_PER_SET = 1000  # most images of one modality in one set (training, held out, baseline, filtered)

Tick = Callable[[], None]  # called before each image is read; may raise `Saved`


@dataclass(frozen=True)
class Picture:
    """One image, small enough to keep thousands."""

    modality: str
    text: str
    pixels: np.ndarray  # uint8 [S, S, 3], S at most PICTURE_SIDE
    features: np.ndarray  # float32 [D]


@dataclass(frozen=True)
class Missing:
    """A part of the campaign that is not there, by the name of the task that makes it."""

    task: str
    what: str


@dataclass
class RealImages:
    """The data set's images, those that were trained on apart from those that were held out."""

    training: list[Picture] = field(default_factory=list)
    held_out: list[Picture] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # rows of each modality
    patients_known: bool = False  # whether the split is by patient
    unreadable: int = 0
    left_out: int = 0  # beyond PICTURES_PER_SET


@dataclass
class GeneratedImages:
    """Everything one mode made of one modality: the records, and the pictures of those that have one."""

    manifest: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[dict[str, Any]] = field(default_factory=list)  # candidates that were looked at, in order
    timing: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[tuple[str, int], Picture] = field(default_factory=dict)  # (prompt id, replicate)

    def accepted(self) -> list[Picture]:
        """The pictures of accepted items, in the order of the prompts."""
        keys = [(line["id"], line["replicate"]) for line in self.manifest if line["accepted"]]
        return [self.pictures[key] for key in keys if key in self.pictures]


@dataclass
class Gathered:
    """Everything a campaign has on disk that the report is about."""

    real: RealImages
    prompts: dict[str, PromptList]  # by modality
    made: dict[str, dict[str, GeneratedImages]]  # by modality, then by mode
    missing: list[Missing]

    @property
    def modalities(self) -> list[str]:
        """The modalities that have real images or prompts, in one order everywhere."""
        return [modality for modality in MODALITIES if modality in self.real.counts or modality in self.prompts]


def gather(config: Config, directory: CampaignDirectory, tick: Tick) -> Gathered:
    """Read everything; `tick` is called before each image."""
    real, missing = read_real(config, tick)
    missing += missing_models(config, directory)
    prompts = prompts_by_modality(config)
    made: dict[str, dict[str, GeneratedImages]] = {}
    for modality, rows in prompts.items():
        made[modality] = {}
        for mode in config.generation.modes:
            made[modality][mode], lost = read_generated(config, directory, mode, modality, rows, tick)
            missing += lost
    return Gathered(real, prompts, made, missing)


def _picture(pixels: np.ndarray, modality: str, text: str) -> Picture:
    small = shrink(pixels, min(PICTURE_SIDE, pixels.shape[0]))
    return Picture(modality, text, small, describe(pixels))


def read_real(config: Config, tick: Tick) -> tuple[RealImages, list[Missing]]:
    """The data set's images as the models saw them, at most `PICTURES_PER_SET` per modality and split."""
    real = RealImages()
    try:
        rows = read_dataset(Path(config.data.table), config.data.root, config.data.modality_column).rows
    except (InputError, InputProblems):
        return real, [Missing("the data set", "its table cannot be read")]
    real.patients_known = all(row.patient_id is not None for row in rows)
    missing = []
    for modality in config.data.modalities:
        files = {row.path: row for row in reversed(rows) if row.modality == modality}  # a file's first row
        members = sorted(files.values(), key=lambda row: row.row)
        if not members:
            missing.append(Missing("the data set", f"it has no image of {modality}"))
            continue
        real.counts[modality] = len(members)
        for held_out, pictures in ((False, real.training), (True, real.held_out)):
            pictures += _read_rows(config, [row for row in members if _held_out(config, row) == held_out], real, tick)
    return real, missing


def _held_out(config: Config, row: ImageRow) -> bool:
    return is_held_out(row.patient_id or row.file, config.data.held_out_fraction, config.campaign.seed)


def _read_rows(config: Config, rows: Sequence[ImageRow], real: RealImages, tick: Tick) -> Iterator[Picture]:
    """The pictures of the rows that can be read; those that cannot, or are too many, are counted."""
    kept = _sample(rows, config.campaign.seed)
    real.left_out += len(rows) - len(kept)
    for row in kept:
        tick()
        try:
            pixels = fit_square(read_image(row.path, row.modality).pixels, config.data.resolution)
        except InputError:
            real.unreadable += 1
            continue
        yield _picture(np.round(pixels * 255).astype(np.uint8), row.modality, row.text)


def _sample(rows: Sequence[ImageRow], campaign_seed: int) -> Sequence[ImageRow]:
    """At most `PICTURES_PER_SET` of `rows`, whatever their order; in table order."""
    if len(rows) <= PICTURES_PER_SET:
        return rows
    lowest = sorted(rows, key=lambda row: seed(campaign_seed, "evaluate", row.file))[:PICTURES_PER_SET]
    return sorted(lowest, key=lambda row: row.row)


def prompts_by_modality(config: Config) -> dict[str, PromptList]:
    """The campaign's prompts; empty where the list is absent or unreadable, which generation has told already."""
    try:
        lists = open_lists(Path(config.data.prompts)) if config.data.prompts else {}
    except InputError:
        lists = {}
    return {modality: lists[modality] for modality in config.data.modalities if modality in lists}


def read_generated(
    config: Config, directory: CampaignDirectory, mode: str, modality: str, prompts: PromptList, tick: Tick
) -> tuple[GeneratedImages, list[Missing]]:
    """What one mode made of one modality, block by block; absent or damaged blocks are named by their task."""
    made = GeneratedImages()
    lost: dict[str, int] = {}
    blocks = Blocks(prompts, config.generation.img_num, config.generation.block_size)
    for shard, numbers in enumerate(plan_shards(blocks.count, config.generation.blocks_per_shard)):
        for number in range(*numbers):
            block = directory.block(mode, modality, number)
            manifest = read_manifest(block)
            if manifest is None:
                task = f"generate {slug(modality)}-{shard:05d}"
                lost[task] = lost.get(task, 0) + blocks.count_items([number])
                continue
            made.manifest += manifest
            made.attempts += [line for line in disk.read_jsonl(block / ATTEMPTS) if line["reason"] != SURPLUS]
            if (block / TIMING).is_file():
                made.timing.append(disk.read_json(block / TIMING))
            for line in manifest:
                if line["file"] is None or len(made.pictures) >= PICTURES_PER_SET:
                    continue
                tick()
                with Image.open(io.BytesIO(read_image_bytes(block, line))) as image:
                    pixels = np.asarray(image.convert("RGB"))
                made.pictures[line["id"], line["replicate"]] = _picture(pixels, modality, line["prompt"])
    return made, [
        Missing(task, f"{count} {mode} image{'s' * (count != 1)} of {modality}") for task, count in lost.items()
    ]


def missing_models(config: Config, directory: CampaignDirectory) -> list[Missing]:
    """The models that training should have left and did not."""
    expected = {
        f"finetune {slug(modality)}": (
            directory.finetuned_unet(modality) / "unet",
            f"the fine-tuned UNet of {modality}",
        )
        for modality in config.data.modalities
    }
    expected["rlhf-stage1 all"] = (directory.policy(), "the Selector and the Policy")
    if config.training.stage == 2:
        for modality in config.data.modalities:
            name = f"rlhf-stage2 {slug(modality)}"
            expected[name] = (directory.policy(modality), f"the Policy of {modality}")
    return [Missing(task, what) for task, (path, what) in expected.items() if not path.is_dir()]


def _read_curve(path: Path, key: str) -> list[dict[str, Any]]:
    """A metrics file's records by ascending `key`; of a step that was done twice (a resumed run) the later record."""
    records = {record[key]: record for record in disk.read_jsonl(path) if key in record}
    return [records[step] for step in sorted(records)]


@dataclass(frozen=True)
class Curves:
    """The metrics that training left, by modality where there is one model per modality."""

    finetune: dict[str, list[dict[str, Any]]]
    stage1: list[dict[str, Any]]
    stage2: dict[str, list[dict[str, Any]]]


def read_curves(config: Config, directory: CampaignDirectory) -> Curves:
    """Every learning curve that is there."""

    def by_modality(stage: str, key: str) -> dict[str, list[dict[str, Any]]]:
        found = {name: _read_curve(directory.work(stage, slug(name)) / "metrics.jsonl", key) for name in MODALITIES}
        return {name: records for name, records in found.items() if records and name in config.data.modalities}

    return Curves(
        finetune=by_modality("finetune", "step"),
        stage1=_read_curve(directory.work("rlhf-stage1", "all") / "metrics.jsonl", "epoch"),
        stage2=by_modality("rlhf-stage2", "epoch"),
    )


def read_summaries(config: Config, directory: CampaignDirectory) -> dict[str, Any]:
    """What the RLHF stages say of their scorers: of stage 1 its summary or None, of stage 2 one per modality."""

    def summary(stage: str, name: str) -> dict[str, Any] | None:
        path = directory.work(stage, name) / "summary.json"
        return disk.read_json(path) if path.is_file() else None

    second = {modality: summary("rlhf-stage2", slug(modality)) for modality in config.data.modalities}
    return {"stage1": summary("rlhf-stage1", "all"), "stage2": {name: facts for name, facts in second.items() if facts}}


@dataclass(frozen=True)
class StageTime:
    """What one stage took: tasks, attempts (more than tasks if some were run again) and seconds over all of them."""

    stage: str
    tasks: int
    attempts: int
    unfinished: int  # attempts without an end on record: killed, or running
    seconds: float


def stage_times(directory: CampaignDirectory) -> list[StageTime]:
    """Task seconds per stage from the attempts on record; stages without a record are left out."""
    times = []
    for stage in STAGES:
        tasks = sorted(directory.attempts(stage, "any").parent.glob("*.jsonl"))
        spans = [_attempt_seconds(disk.read_jsonl(path)) for path in tasks]
        ended = [seconds for task in spans for seconds in task if seconds is not None]
        attempts = sum(len(task) for task in spans)
        if attempts:
            times.append(StageTime(stage, len(tasks), attempts, attempts - len(ended), sum(ended)))
    return times


def _attempt_seconds(events: Iterable[dict[str, Any]]) -> list[float | None]:
    """Seconds of every attempt of one task, in order; None where no end is on record."""
    seconds: dict[int, float | None] = {}
    started: dict[int, float] = {}
    for event in events:
        number = event["attempt"]
        if event["event"] == "start":
            started[number], seconds[number] = event["time"], None
        elif number in started:
            seconds[number] = event["time"] - started[number]
    return list(seconds.values())
