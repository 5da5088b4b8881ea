"""What a mode needs from earlier stages: the weights that sample, those that score, and their provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from medsyn.arms import filters
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.generation.write.provenance import Sources, compute_environment
from medsyn.models.compiled import compiled
from medsyn.models.device import choose_device
from medsyn.models.model_folder import scheduler_config
from medsyn.models.scorers import load_policy, load_selector
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic, load_unet


@dataclass(frozen=True)
class Loader(Sources):
    """Loads the models of one modality of a campaign; VAE and text encoder once for all modes."""

    def facts(self, mode: str) -> dict[str, Any]:
        """What is recorded about every image of a mode; loads nothing.

        Raises:
            InputError: one of the models has not been made yet.
        """
        chosen = choose_device(self.config.device)
        return {**super().facts(mode), **compute_environment(chosen.device, chosen.dtype, chosen.compiled)}

    def sampler(self, mode: str, loaded: Mapping[str, ImageSampler] = MappingProxyType({})) -> ImageSampler:
        """Load the models of a mode.

        Args:
            mode: one of the configuration's.
            loaded: samplers of other modes: a UNet or scorers that one of them has are not loaded again.
        """
        recipe = Recipe.of(self.config, self.modality)
        like = next((its for other, its in loaded.items() if self.same_unet(mode, other)), None)
        system = like.system if like else self._system(mode)
        if not filters(mode):
            return ImageSampler(recipe, system)
        scoring = next((its for other, its in loaded.items() if filters(other)), None)
        if scoring is not None:
            return ImageSampler(recipe, system, scoring.selector, scoring.policy)
        selector, policy = (file.parent for file in self.scorers())
        return ImageSampler(recipe, system, load_selector(selector, system.device), load_policy(policy, system.device))

    def same_unet(self, mode: str, other: str) -> bool:
        """Whether two modes sample with the same UNet."""
        return self.config.arm(mode).weights == self.config.arm(other).weights

    def _system(self, mode: str) -> SyntheticSystem:
        trained = self.unet(mode)
        unet = load_unet(self._source, self._shared.device, self._shared.dtype, trained)
        whole = compiled(unet) if self.config.device.compile else None
        return replace(self._shared, unet=unet, whole=whole, scheduler_config=scheduler_config(self._source, trained))

    @property
    def _source(self) -> str:
        return self.config.model_paths.stable_diffusion

    @cached_property
    def _shared(self) -> SyntheticSystem:
        chosen = choose_device(self.config.device)
        return load_synthetic(
            self._source, chosen.device, chosen.dtype, with_unet=False, text_chunks=self.config.data.chunks
        )
