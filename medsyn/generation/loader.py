"""What a mode needs of the earlier stages: which weights paint, which score, and what is on record about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from medsyn import disk
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.generation.painter import Painter, Recipe
from medsyn.models.device import choose_device
from medsyn.models.scorers import WEIGHTS, load_policy, load_selector
from medsyn.models.synthetic import SyntheticSystem, load_synthetic, load_unet
from medsyn.models.weights import model_fingerprint
from medsyn.stage import CampaignDirectory, slug

# what an image depends on, beside its prompt and the weights
_SETTINGS = (
    "campaign.seed",
    "data.resolution",
    "device.precision",
    "generation.scheduler",
    "generation.num_inference_steps",
    "generation.guidance_scale",
    "generation.guidance_interval",
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


@dataclass(frozen=True)
class Loader:
    """One modality of a campaign; the VAE and the text encoder are loaded once for all modes."""

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

    def painter(self, mode: str) -> Painter:
        """The models of a mode, loaded."""
        finetuned = self._finetuned(mode)
        unet = load_unet(self._source, self._shared.device, self._shared.dtype, finetuned)
        system = replace(self._shared, unet=unet, fingerprint=model_fingerprint(self._source, finetuned))
        recipe = Recipe.of(self.config, self.modality)
        if mode == "baseline":
            return Painter(recipe, system)
        selector, policy = (file.parent for file in self._scorers())
        return Painter(recipe, system, load_selector(selector, system.device), load_policy(policy, system.device))

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
        _made(directory / "unet" / "diffusion_pytorch_model.safetensors", f"finetune {slug(self.modality)}")
        return directory


def _made(path: Path, task: str) -> Path:
    if not path.exists():
        raise InputError(path, f"is not there; the task '{task}' makes it")
    return path
