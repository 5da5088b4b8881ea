"""What the tests of whole shards share: a campaign as the earlier stages leave it, and ways to disturb its tasks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medsyn import config as configuration
from medsyn import disk
from medsyn.config import Config
from medsyn.generation import block_store, stage
from medsyn.generation.block_store import Item
from medsyn.generation.sample import batch as sample_batch
from medsyn.models import tiny
from medsyn.models.policy import Policy
from medsyn.models.selector import Selector
from medsyn.stage import CampaignDirectory, Control, Task

PROMPTS = {
    "CT": ["CT: normal", "CT: nodule, left", "CT: effusion, right", "CT: nodule, right"],
    "Fundus": ["Fundus: drusen"],
}
SCORER = configuration.ScorerSection(
    image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16, members=1
)
CPU = torch.device("cpu")
BLOCKS = 7  # of the campaigns with many


@dataclass(frozen=True)
class Campaign:
    """The inputs of generation, and where its results go."""

    config: Config
    directory: CampaignDirectory

    def run(
        self,
        modality: str = "CT",
        blocks: tuple[int, int] | None = None,
        control: Control | None = None,
        name: str = "x",
    ) -> None:
        stage.run(self.config, Task("generate", 0, name, modality, blocks), self.directory, control or Control())

    def override(self, **generation: Any) -> Campaign:
        section = self.config.generation.model_copy(update=generation)
        return Campaign(self.config.model_copy(update={"generation": section}), self.directory)

    def block(self, mode: str, number: int = 0, modality: str = "CT") -> Path:
        return self.directory.block(mode, modality, number)

    def read(self, name: str, mode: str, modality: str = "CT") -> list[dict[str, Any]]:
        blocks = sorted(self.block(mode, 0, modality).parent.parent.glob("part-*/block-*"))
        return [record for block in blocks for record in disk.read_jsonl(block / name)]

    def blocks(self) -> dict[str, str]:
        """The snapshot of what a reader of blocks sees."""
        return {path: value for path, value in self.snapshot().items() if "/." not in f"/{path}"}

    def snapshot(self) -> dict[str, str]:
        """Hash of every file that generation made, temporary ones too, but for those that hold timings."""
        made = self.directory.root / "work" / "generate"
        files = [
            path
            for path in made.rglob("*")
            if path.is_file() and path.name != block_store.TIMING and path.suffix != ".parquet"
        ]
        return {str(path.relative_to(made)): disk.sha256_file(path) for path in files}


@dataclass(frozen=True)
class Maker:
    """New campaigns with the same inputs."""

    config: Config
    inputs: Path

    def new(self, root: Path) -> Campaign:
        (root / "work").mkdir(parents=True)
        for made in (self.inputs / "work").iterdir():
            (root / "work" / made.name).symlink_to(made)
        return Campaign(self.config, CampaignDirectory(root))


Sampled = tuple[str, str, int, int]  # mode, prompt, replicate, attempt


def tell_sampled(pipe: int, name: str = "-", before: Callable[[], None] = lambda: None) -> None:
    """From now on, in this process, write a line into `pipe` at the start of every batch: whose, and what it is of."""
    real = sample_batch.ImageSampler.begin

    def begin(
        self: sample_batch.ImageSampler, wanted: Sequence[tuple[Item, int]], *meanwhile: Any
    ) -> sample_batch.Begun:
        before()
        mode = "baseline" if self.selector is None else "filtered"
        candidates = [(mode, item.prompt_id, item.replicate, attempt) for item, attempt in wanted]
        os.write(pipe, json.dumps([name, candidates]).encode() + b"\n")
        return real(self, wanted, *meanwhile)

    sample_batch.ImageSampler.begin = begin  # type: ignore[method-assign]


def told(lines: str) -> list[tuple[str, list[Sampled]]]:
    """What `tell_sampled` wrote: of each batch the name and the candidates."""
    read = (json.loads(line) for line in lines.splitlines())
    return [
        (name, [(mode, prompt, replicate, attempt) for mode, prompt, replicate, attempt in of]) for name, of in read
    ]


def on_record(campaign: Campaign) -> set[Sampled]:
    """The candidates that the filter needed, of all blocks."""
    return {
        (mode, line["id"], line["replicate"], line["attempt"])
        for mode in ("baseline", "filtered")
        for line in campaign.read("attempts.jsonl", mode)
    }


def standardise(model: Selector | Policy, scores: list[float | None]) -> None:
    """Random scorers say nearly the same of every image; give the logits behind `scores` mean 0 and deviation 1."""
    logits = torch.tensor(scores, dtype=torch.float64).logit()
    model.calibration.slope.fill_(1 / logits.std())
    model.calibration.shift.fill_(-logits.mean() / logits.std())


def random_scorers(
    sampler_of: Callable[[Selector, Policy], sample_batch.ImageSampler], seed: int
) -> tuple[Selector, Policy]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        selector, policy = Selector(SCORER), Policy(SCORER, tiny.TEXT_WIDTH)
    items = [(Item(f"c{i}", PROMPTS["CT"][i % 4], 0), 0) for i in range(12)]
    made = [sampler_of(selector, policy).sample(items[start : start + 3]).candidates for start in range(0, 12, 3)]
    standardise(selector, [candidate.selector for batch in made for candidate in batch])
    standardise(policy, [candidate.policy for batch in made for candidate in batch])
    return selector, policy


class StopAfter(Control):
    """A control that is asked to stop after some beats; it keeps what it was told."""

    def __init__(self, beats: int) -> None:
        super().__init__()
        self.left = beats
        self.told: list[tuple[int, int, str]] = []
        self.numbers: list[dict[str, Any]] = []

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        self.told.append((step, total, unit))
        self.numbers.append(numbers)
        self.left -= 1
        if self.left == 0:
            self.request_stop()
