"""The stage `generate`: one shard's blocks of one modality, in every mode, each block committed whole.

Blocks that are there are left alone, so the files are the same whatever the shards, the order and the interruptions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.config import Config
from medsyn.data.prompt_lists import PromptList, open_lists
from medsyn.errors import InputError
from medsyn.generation.filter import FAILED
from medsyn.generation.generator import Generator
from medsyn.generation.shard import Blocks, commit_block, finished_block
from medsyn.models.device import choose_device
from medsyn.models.scorers import WEIGHTS, load_policy, load_selector
from medsyn.models.synthetic import SyntheticSystem, load_synthetic, load_unet
from medsyn.models.weights import model_fingerprint
from medsyn.stage import CampaignDirectory, Control, NoProgress, Task, slug

# what a block's files depend on, beside the prompts and the weights
_SETTINGS = (
    "campaign.seed",
    "data.resolution",
    "device.precision",
    "generation.scheduler",
    "generation.num_inference_steps",
    "generation.guidance_scale",
    "generation.negative_prompt",
    "generation.batch_size",
    "generation.on_exhausted",
)
_MODE_SETTINGS = {
    "baseline": ("generation.baseline_model",),
    "filtered": (
        "training.stage",
        "generation.num_candidates",
        "generation.quality_threshold",
        "generation.min_policy_score",
        "generation.max_attempts",
    ),
}


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Make those of the blocks `task.blocks` of `task.modality` that are not there yet, mode by mode.

    Raises:
        InputError: an earlier stage's result is missing, or blocks of other settings are in the way.
        NoProgress: prompts spent their attempts and `on_exhausted` is `fail`; their blocks are on disk all the same.
        Saved: a stop was requested; the blocks that were complete are on disk.
    """
    modality = task.modality
    assert modality is not None, "a generate task has a modality"
    blocks = read_blocks(config, modality)
    numbers = range(*(task.blocks or (0, blocks.count)))
    if numbers.stop > blocks.count:
        reason = f"has {blocks.count} blocks of {modality}, the task was planned for {numbers.stop}: plan again"
        raise InputError(str(config.data.prompts), reason)
    loader = _Loader(config, modality, directory)
    facts = {mode: loader.facts(mode) for mode in config.generation.modes}
    for mode in facts:  # never later: the task may be running a second time by then
        for number in numbers:
            block = directory.block(mode, modality, number)
            disk.sweep_temporaries(block.parent, of=block.name)
    total = len(facts) * blocks.sizes(numbers)
    done = 0
    failed: dict[str, None] = {}  # prompt ids, in order and once

    def between_batches(settled: int) -> None:
        control.leave_if_asked()  # costs the batches of one block
        control.beat(done + settled, total, "image")

    for mode in facts:
        generator = None
        for number in numbers:
            block, items = directory.block(mode, modality, number), blocks.items(number)
            manifest: Sequence[Mapping[str, Any]] | None = finished_block(block, items, facts[mode])
            if manifest is None:
                generator = generator or loader.generator(facts[mode])
                content = generator.block(items, between_batches)
                commit_block(block, content)
                manifest = content.manifest
            done += len(items)
            control.beat(done, total, "image")
            failed |= dict.fromkeys(record["id"] for record in manifest if record["reason"] == FAILED)
    if failed:
        raise NoProgress(_exhausted(list(failed)))


def read_blocks(config: Config, modality: str) -> Blocks:
    """The blocks of a modality of the campaign's prompt list."""
    if config.data.prompts is None:
        raise InputError("configuration", "there is no prompt list to generate from", key="data.prompts")
    directory = Path(config.data.prompts)
    prompts = open_lists(directory).get(modality, PromptList(directory, ()))
    return Blocks(prompts, config.generation.img_num, config.generation.batch_size)


def _exhausted(prompt_ids: Sequence[str]) -> str:
    shown = ", ".join(prompt_ids[:10]) + (f" and {len(prompt_ids) - 10} more" if len(prompt_ids) > 10 else "")
    return f"no acceptable image after generation.max_attempts for prompts {shown} (generation.on_exhausted is 'fail')"


@dataclass(frozen=True)
class _Loader:
    """What a mode needs of the earlier stages; the VAE and the text encoder are loaded once for all modes."""

    config: Config
    modality: str
    directory: CampaignDirectory

    def facts(self, mode: str) -> dict[str, str]:
        """What is on record about every image of a mode; nothing is loaded for it.

        Raises:
            InputError: the task that makes one of the models has not.
        """
        facts = {
            "modality": self.modality,
            "mode": mode,
            "model_fingerprint": model_fingerprint(self._source, self._finetuned(mode)),
            "config_fingerprint": self.config.section_fingerprint(*_SETTINGS, *_MODE_SETTINGS[mode]),
        }
        if mode == "filtered":
            facts["scorers_fingerprint"] = disk.fingerprint([disk.sha256_file(file) for file in self._scorers()])
        return facts

    def generator(self, facts: dict[str, str]) -> Generator:
        """The models of the mode that `facts` are about."""
        unet = load_unet(self._source, self._shared.device, self._shared.dtype, self._finetuned(facts["mode"]))
        system = replace(self._shared, unet=unet, fingerprint=facts["model_fingerprint"])
        if facts["mode"] == "baseline":
            return Generator(self.config, facts, system)
        selector, policy = (file.parent for file in self._scorers())
        device = system.device
        return Generator(self.config, facts, system, load_selector(selector, device), load_policy(policy, device))

    @property
    def _source(self) -> str:
        return self.config.model_paths.stable_diffusion

    @cached_property
    def _shared(self) -> SyntheticSystem:
        chosen = choose_device(self.config.device)
        return load_synthetic(self._source, chosen.device, chosen.dtype, with_unet=False)

    def _scorers(self) -> tuple[Path, Path]:
        """The weights of the Selector and of the Policy."""
        first, last = "rlhf-stage1 all", f"rlhf-stage2 {slug(self.modality)}"
        selector = _made(self.directory.selector() / WEIGHTS, first)
        if self.config.training.stage == 1:
            return selector, _made(self.directory.policy() / WEIGHTS, first)
        return selector, _made(self.directory.policy(self.modality) / WEIGHTS, last)

    def _finetuned(self, mode: str) -> Path | None:
        """Directory of the fine-tuned `unet/` that a mode paints with, None for the pretrained one."""
        if mode == "baseline" and self.config.generation.baseline_model == "pretrained":
            return None
        directory = self.directory.finetuned_unet(self.modality)
        _made(_unet_file(directory), f"finetune {slug(self.modality)}")
        return directory


def _unet_file(directory: Path) -> Path:
    return directory / "unet" / "diffusion_pytorch_model.safetensors"


def _made(path: Path, task: str) -> Path:
    if not path.exists():
        raise InputError(path, f"is not there; the task '{task}' makes it")
    return path
