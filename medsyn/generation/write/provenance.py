"""The provenance of every image of a mode: that it is synthetic, what made it, and in which environment.

All images of a mode share it. No torch here, except to find out this process's environment.

A campaign's environment is recorded once; a task that would compute in a different one refuses to run.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import medsyn
from medsyn import disk
from medsyn.arms import filters
from medsyn.config import Config, GenerationSection
from medsyn.errors import InputError
from medsyn.models.cards import read_card, threshold_of
from medsyn.models.weights import SCORER_WEIGHTS, UNET_WEIGHTS, model_fingerprint, recorded_sha256, weights_sha256
from medsyn.records import ENVIRONMENT
from medsyn.stage import CampaignDirectory, slug

if TYPE_CHECKING:
    import torch


IMAGE_VARIABLE = "MEDSYN_IMAGE"  # names the container a task runs in: sha256:..., or an image's name with its digest
_PACKAGES = ("torch", "diffusers", "transformers", "pillow")  # their versions change the bytes of a file

# what an image depends on besides its prompt and the weights
_SETTINGS = (
    "campaign.seed",
    "data.resolution",
    "data.text_chunks",
    "device.precision",
    "generation.scheduler",
    "generation.num_inference_steps",
    "generation.guidance_scale",
    "generation.guidance_interval",
    "generation.fast",
    "generation.deep_cache_every",
    "generation.text_attention_until",
    "generation.negative_prompt",
    "generation.batch_size",
    "generation.on_exhausted",
)
_OF_BASELINE = ("generation.baseline_model",)
_OF_FILTER = (
    "training.stage",
    "generation.num_candidates",
    "generation.quality_threshold",
    "generation.min_policy_score",
    "generation.max_attempts",
)

ENVIRONMENT_FILE = "made-with.json"


def config_fingerprint(config: Config, mode: str) -> str:
    """Fingerprint of every setting that an image of a mode depends on."""
    own = _OF_FILTER if filters(mode) else _OF_BASELINE if mode == "baseline" else ()
    return config.section_fingerprint(*_SETTINGS, *own)


def common(config: Config, modality: str, mode: str, model: str) -> dict[str, Any]:
    """The part of the provenance that follows from the configuration and the fingerprint of the model."""
    return {
        "synthetic": True,
        "modality": modality,
        "mode": mode,
        "model_fingerprint": model,
        "config_fingerprint": config_fingerprint(config, mode),
        "scheduler": config.generation.scheduler,
        "batch_size": config.generation.batch_size,
    }


def sampling(section: GenerationSection) -> dict[str, Any]:
    """What scores depend on besides the weights: a scorer that has seen images of other settings may be at a loss."""
    names = ("scheduler", "num_inference_steps", "guidance_scale")
    return {name: getattr(section, name) for name in names}


def settings(section: GenerationSection) -> dict[str, Any]:
    """What holds for every prompt that does not override it."""
    return {
        "num_inference_steps": section.num_inference_steps,
        "guidance_scale": section.guidance_scale,
        "negative_prompt": section.negative_prompt,
    }


def quality_threshold(config: Config, selector: Path, modality: str) -> float:
    """The Selector score that an image of a modality needs: what is configured, or what the Selector itself says.

    Raises:
        InputError: its folder says nothing of that modality.
    """
    configured = config.generation.quality_threshold
    if configured != "auto":
        return configured
    card = read_card(selector)
    if (own := threshold_of(card, modality)) is not None:
        return own.threshold
    has = f"it has some for {', '.join(card.thresholds)}" if card.thresholds else "no image was rated acceptable"
    reason = f"has no threshold of its own for {modality} ({has}): rate some of its images, or give the number as "
    raise InputError(selector, f"{reason}generation.quality_threshold")


def software() -> str:
    """The versions of medsyn and of the packages that change an image's bytes, in one line."""
    versions = [f"medsyn {medsyn.__version__}"]
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return ", ".join(versions)


def compute_environment(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> dict[str, Any]:
    """The environment of this process, as far as it can be chosen: dtype, kernels, container image and software.

    `compiled` says whether the UNet is.

    The container is the value of MEDSYN_IMAGE (a digest, say), or None.
    """
    from medsyn.models.device import kernels

    return {
        "dtype": str(dtype).removeprefix("torch."),
        "attention": ", ".join([_attention(device), *kernels(device, dtype, compiled)]),
        "container": os.environ.get(IMAGE_VARIABLE) or None,
        "software": software(),
    }


def device_name(device: torch.device) -> str:
    """A device as the records name it: the model of the GPU, or `cpu`."""
    if device.type != "cuda":
        return device.type
    from torch.cuda import get_device_name

    return get_device_name(device)


def _attention(device: torch.device) -> str:
    """PyTorch's own attention, and on a GPU which of its kernels are enabled."""
    if device.type != "cuda":
        return "sdpa"
    from torch.backends import cuda

    kernels = {
        "flash": cuda.flash_sdp_enabled,
        "efficient": cuda.mem_efficient_sdp_enabled,
        "math": cuda.math_sdp_enabled,
    }
    return f"sdpa ({' '.join(name for name, enabled in kernels.items() if enabled())})"


@dataclass(frozen=True)
class Sources:
    """What one modality is generated with: the results of a campaign's earlier stages."""

    config: Config
    modality: str
    directory: CampaignDirectory
    trusts_markers: bool = True  # whether a hash may be taken from the done marker of the task that made the weights

    def facts(self, mode: str) -> dict[str, Any]:
        """The provenance that is the same in any environment.

        Raises:
            InputError: one of the models has not been made yet.
        """
        folder, made = self.unet(mode), self._unet(mode)
        unet = None if made is None else self._sha256(made)
        model = model_fingerprint(self.config.model_paths.stable_diffusion, unet, folder)
        found = common(self.config, self.modality, mode, model)
        if filters(mode):
            found["scorers_fingerprint"] = disk.fingerprint([self._sha256(made) for made in self._scorers])
            found["quality_threshold"] = quality_threshold(self.config, self.scorers()[0].parent, self.modality)
        return found

    def scorers(self) -> tuple[Path, Path]:
        """The weights of the Selector and of the Policy."""
        selector, policy = self._scorers
        return selector.file(), policy.file()

    def unet(self, mode: str) -> Path | None:
        """Directory of the trained `unet/` that a mode samples with, None for the pretrained one."""
        made = self._unet(mode)
        return None if made is None else made.file().parent.parent

    def _unet(self, mode: str) -> _Made | None:
        weights = self.config.arm(mode).weights
        if weights == "pretrained":
            return None
        if weights == "aligned":
            folder, task = self.directory.aligned_unet(self.modality), ("align", slug(self.modality))
        else:
            trained = self.config.finetune.task_for(self.modality)
            folder, task = self.directory.finetuned_unet(trained), ("finetune", slug(trained))
        return _Made(folder / "unet" / UNET_WEIGHTS, *task)

    @property
    def _scorers(self) -> tuple[_Made, _Made]:
        if self.config.training.stage == 1:
            modality, task = None, ("rlhf-stage1", "all")
        else:
            modality, task = self.modality, ("rlhf-stage2", slug(self.modality))
        selector, policy = self.directory.selector(modality), self.directory.policy(modality)
        return _Made(selector / SCORER_WEIGHTS, *task), _Made(policy / SCORER_WEIGHTS, *task)

    def _sha256(self, made: _Made) -> str:
        path, recorded = made.file(), None
        if self.trusts_markers:
            recorded = recorded_sha256(path, self.directory.done(made.stage, made.name), self.directory.root)
        return recorded or weights_sha256(path)


class _Made(NamedTuple):
    """Weights, and the task that makes them."""

    path: Path
    stage: str
    name: str

    def file(self) -> Path:
        """Where they are; raises InputError if they have not been made."""
        if not self.path.exists():
            raise InputError(self.path, f"is missing; the task '{self.stage} {self.name}' makes it")
        return self.path


def read_environment(path: Path) -> dict[str, Any] | None:
    """The environment of a campaign's images, or None if nothing is recorded; raises ValueError if damaged."""
    try:
        found = disk.read_json(path)
    except FileNotFoundError:
        return None
    if not isinstance(found, dict) or found.keys() != set(ENVIRONMENT):
        raise ValueError(f"does not have exactly the keys {', '.join(ENVIRONMENT)}")
    return found


def require_same_environment(path: Path, facts: Mapping[str, Any], keep: bool) -> None:
    """Raise InputError if the campaign's images were made in a different environment from this process's.

    Args:
        path: the record of their environment.
        facts: the provenance this process would give them.
        keep: record it if nothing is recorded; of several processes the first one wins.
    """
    ours = {key: facts[key] for key in ENVIRONMENT if key in facts}
    try:
        theirs = read_environment(path)
        if theirs is None and keep and len(ours) == len(ENVIRONMENT):
            write_environment(path, ours)
            theirs = read_environment(path)
    except ValueError as error:
        reason = f"is damaged ({error}); `medsyn verify --repair` rewrites it"
        raise InputError(path, reason) from None
    differing = [
        f"{key} {theirs[key]!r}, here it is {value!r}" for key, value in ours.items() if theirs and theirs[key] != value
    ]
    if differing:
        way_out = "match them (device.precision, the container, the software), or choose another campaign.dir"
        raise InputError(path, f"this campaign's images are made with {'; '.join(differing)}: {way_out}")


def write_environment(path: Path, facts: Mapping[str, Any]) -> None:
    """Record the environment of the campaign's images, unless another process has."""
    disk.make_directory(path.parent)
    temporary = disk.temporary_sibling(path)
    disk.write_json(temporary, {key: facts[key] for key in ENVIRONMENT})
    try:
        path.hardlink_to(temporary)  # unlike a rename it fails if there is one already
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
