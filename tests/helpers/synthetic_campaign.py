"""Synthetic campaigns: what the stages before evaluation would leave, without running them."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsyn import disk
from medsyn.arms import filters
from medsyn.config import Config, validate
from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import Phantom, draw_phantom, parse_caption, render
from medsyn.data.prompts import write
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.data.prompts.store import open_lists
from medsyn.generation.block_store import BlockContent, Blocks, commit_block
from medsyn.models.scores import Card, Evidence, Interval, Threshold
from medsyn.stage import CampaignDirectory, slug

TWO_KINDS = ("OCT", "Chest CT")
WRONG = {"baseline": 2, "pretrained": 2}  # one of so many shows something else


def phantom_pixels(phantom: Phantom, size: int, noise: float = 0.0, number: int = 0) -> np.ndarray:
    """uint8 [size, size, 3]."""
    pixels = fit_square(render(phantom, size), size)
    pixels = pixels + np.random.default_rng(number).normal(0, noise, pixels.shape[:2])[..., None] if noise else pixels
    return np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


@dataclass
class Builder:
    """Writes one campaign; the tests damage what it wrote."""

    root: Path
    kinds: tuple[str, ...] = TWO_KINDS
    images_per_kind: int = 12
    prompts_per_kind: int = 3
    size: int = 64
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory = CampaignDirectory(self.root / "campaign")
        self.data = disk.make_directory(self.root / "data")
        self.modalities = list(dict.fromkeys(draw_phantom(kind, 0, 1).modality for kind in self.kinds))
        tree: dict[str, dict[str, Any]] = {
            "campaign": {"name": "demo", "dir": str(self.directory.root)},
            "data": {
                "table": str(self.data / "metadata.csv"),
                "prompts": str(self.directory.root / "inputs" / "prompts"),
                "modalities": self.modalities,
                "resolution": self.size,
                "held_out_fraction": 0.4,
            },
            "generation": {"batch_size": 2, "batches_per_block": 1, "blocks_per_shard": 1},
            "evaluation": {"kid_subsets": 4, "kid_subset_size": 20, "sheet_columns": 4, "copies": False},
        }
        for section, values in self.overrides.items():
            tree.setdefault(section, {}).update(values)
        self.config: Config = validate(tree, "test")

    def everything(self) -> Builder:
        """A whole campaign."""
        self.tables()
        self.models()
        self.curves()
        self.summaries()
        self.attempts()
        for mode in self.config.generation.modes:
            for modality in self.modalities:
                self.blocks(mode, modality)
        return self

    def tables(self) -> None:
        rows, prompts = [], []
        for kind in self.kinds:
            for index in range(self.images_per_kind):
                phantom = draw_phantom(kind, index, 1)
                file = f"{slug(kind)}-{index:03d}.png"
                (self.data / file).write_bytes(png(phantom_pixels(phantom, self.size)))
                rows.append((file, phantom.caption, phantom.modality, f"patient-{slug(kind)}-{index}"))
            for index in range(self.prompts_per_kind):
                phantom = draw_phantom(kind, 1000 + index, 1, quality=3)
                prompts.append((f"{slug(kind)}-{index}", phantom.caption, phantom.modality))
        write_csv(self.data / "metadata.csv", ("path", "Text", "modality", "patient_id"), rows)
        write_csv(self.data / "prompts.csv", ("id", "prompt", "modality"), prompts)
        self.prepare_prompts()

    def prepare_prompts(self) -> None:
        """What preparing a campaign makes of the prompt list."""
        path = self.data / "prompts.csv"
        write.resolve(PromptSource.file(path), new_faults(path), Path(str(self.config.data.prompts)))
        disk.write_json(self.directory.campaign_file, {"blocks_per_shard": dict.fromkeys(self.modalities, 1)})

    def models(self) -> None:
        evidence = Evidence(auroc=Interval(value=0.83, low=0.75, high=0.9, n=120), calibration_error=0.04)
        threshold = Threshold(threshold=0.6, good=80, poor=40, good_passing=0.95, poor_passing=0.1)
        thresholds = dict.fromkeys(self.modalities, threshold)
        card = Card(modalities=self.modalities, thresholds=thresholds, evidence=evidence)
        for place in (self.directory.selector(), *map(self.directory.selector, self.modalities)):
            disk.write_json(disk.make_directory(place) / "config.json", {"card": card.model_dump()})
            (place / "model.safetensors").write_bytes(b"")
        disk.make_directory(self.directory.policy())
        for modality in self.modalities:
            (disk.make_directory(self.directory.policy(modality)) / "model.safetensors").write_bytes(b"")
            disk.make_directory(self.directory.finetuned_unet(modality) / "unet")

    def curves(self) -> None:
        rng = np.random.default_rng(0)
        for modality in self.modalities:
            path = self.directory.work("finetune", slug(modality)) / "metrics.jsonl"
            for step in range(1, 81):
                loss = 0.4 * math.exp(-step / 30) + 0.12 + rng.normal(0, 0.02)
                disk.append_jsonl(path, {"step": step, "loss": loss, "learning_rate": 2e-4, "samples_per_second": 40.0})
            for epoch in range(1, 21):
                disk.append_jsonl(
                    self.directory.work("rlhf-stage2", slug(modality)) / "metrics.jsonl",
                    {
                        "epoch": epoch,
                        "policy_loss": 0.5 / epoch,
                        "policy_auroc": 0.9 - 0.3 / epoch,
                        "reward_good": 0.5 + 0.3 * (1 - 1 / epoch),
                        "reward_poor": 0.5 - 0.2 * (1 - 1 / epoch),
                        "pass_rate": 0.8,
                        "learning_rate": 3e-4,
                    },
                )
        for epoch in range(1, 21):
            line = {"epoch": epoch, "selector_loss": 0.7 / epoch**0.5, "policy_loss": 0.8 / epoch**0.5}
            line |= {"selector_auroc": 0.93 - 0.4 / epoch, "policy_auroc": 0.85 - 0.3 / epoch}
            line |= {"reward_good": 0.8 - 0.3 / epoch, "reward_poor": 0.2 + 0.3 / epoch, "learning_rate": 1e-3}
            disk.append_jsonl(self.directory.work("rlhf-stage1", "all") / "metrics.jsonl", line)

    def summaries(self) -> None:
        scorer = {"auroc": 0.91, "auroc_by_modality": {self.modalities[0]: 0.93, self.modalities[-1]: None}}
        first = self.directory.work("rlhf-stage1", "all") / "summary.json"
        disk.write_json(first, {"ratings": 200, "selector": scorer, "policy": scorer})
        for modality in self.modalities:
            path = self.directory.work("rlhf-stage2", slug(modality)) / "summary.json"
            gain = {"value": 0.08, "low": 0.02, "high": 0.13, "n": 30}
            reason = "better on images that its members had not seen"
            its = {"kept": "stage 2", "reason": reason, "gain": gain, "gain_on_sampled": gain | {"value": 0.25}}
            rejected = {"kept": "stage 1", "reason": "too few ratings passed the Selector"}
            disk.write_json(path, {**its, "selector": its} if modality == self.modalities[0] else rejected)

    def attempts(self) -> None:
        for number, (stage, seconds) in enumerate((("finetune", 61.0), ("rlhf-stage1", 24.5), ("generate", 95.0))):
            path = self.directory.attempts(stage, "one")
            start = {"event": "start", "attempt": 1, "time": 1000.0 * number}
            disk.append_jsonl(path, start)
            disk.append_jsonl(path, start | {"event": "end", "time": 1000.0 * number + seconds, "exit_code": 0})

    def prompt_blocks(self, modality: str) -> Blocks:
        prompts = open_lists(Path(str(self.config.data.prompts)))[modality]
        return Blocks(prompts, self.config.generation.img_num, self.config.generation.block_size)

    def blocks(self, mode: str, modality: str) -> None:
        """Blocks whose images show what was asked for, in some modes (`WRONG`) not always."""
        blocks = self.prompt_blocks(modality)
        for number in range(blocks.count):
            images, manifest, attempts = {}, [], []
            for position, item in enumerate(blocks.items(number)):
                serial = 100 * number + position
                rng = np.random.default_rng([serial, len(mode)])
                facts = parse_caption(item.prompt)
                wrong = serial % WRONG.get(mode, serial + 2) == 1
                kind = self.kinds[serial % len(self.kinds)] if wrong or facts is None else facts.kind
                finding, side = (None, None) if wrong or facts is None else (facts.finding, facts.side)
                phantom = draw_phantom(kind, 5000 + serial, 9, quality=3, finding=finding, side=side)
                picture = phantom_pixels(phantom, self.size, noise=0.15 if mode in WRONG else 0.04, number=serial)
                accepted = not filters(mode) or position != 1 or number != 0
                line = self._line(
                    item, mode, modality, accepted, float(rng.uniform(0.62, 0.95)), float(rng.uniform(0.3, 0.9))
                )
                if line["file"]:
                    images[line["file"]] = png(picture)
                    line["bytes"] = len(images[line["file"]])
                    line["sha256"] = hashlib.sha256(images[line["file"]]).hexdigest()
                manifest.append(line)
                attempts += self._attempts(item, line, rng)
            timing = {
                "seconds": 2.5 * len(manifest),
                "device": "cpu",
                "batches": 1,
                "unet_evaluations": 60 * len(attempts),
            }
            commit_block(self.directory.block(mode, modality, number), BlockContent(images, manifest, attempts, timing))

    def _line(
        self, item: Any, mode: str, modality: str, accepted: bool, selector: float, policy: float
    ) -> dict[str, Any]:
        filtered = filters(mode)
        return {
            "id": item.prompt_id,
            "prompt": item.prompt,
            "replicate": item.replicate,
            "extra": dict(item.extra),
            "modality": modality,
            "mode": mode,
            "accepted": accepted,
            "reason": ("accepted" if accepted else "exhausted-skipped") if filtered else "unfiltered",
            "attempts": (2 if accepted else 6) if filtered else 1,
            "attempt": (1 if filtered else 0) if accepted else None,
            "seed": 7,
            "selector": selector if filtered and accepted else None,
            "policy": policy if filtered and accepted else None,
            "file": f"{item.prompt_id}_{item.replicate}.png" if accepted else None,
            "bytes": None,
        }

    def _attempts(self, item: Any, line: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
        if not filters(line["mode"]):
            return [self._attempt(item, 0, None, True, None)]
        last = line["attempts"] - 1
        made = [
            self._attempt(item, k, float(rng.uniform(0.1, 0.58)), False, "selector-below-threshold")
            for k in range(last)
        ]
        made.append(self._attempt(item, last, line["selector"] or 0.4, line["accepted"], None))
        return [*made, self._attempt(item, last + 1, 0.9, True, "surplus")]

    @staticmethod
    def _attempt(item: Any, attempt: int, selector: float | None, passed: bool, reason: str | None) -> dict[str, Any]:
        facts = {"id": item.prompt_id, "replicate": item.replicate, "attempt": attempt, "seed": attempt}
        return facts | {"selector": selector, "policy": selector, "passed": passed, "reason": reason, "chosen": passed}
