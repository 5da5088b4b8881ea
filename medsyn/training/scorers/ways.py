"""Ways of sampling badly on purpose: what a generator's own faults look like, for pairs whose order is known.

Three families. `Resampled` runs the sampler again with something wrong in it: too few steps, no or too much guidance,
weights with noise in them. `Stopped` decodes a run before its end. `Spoilt` changes the latents of a good image before
they are decoded, which costs no run of the UNet.

How far each image is spoilt is drawn from a range, so that a way is not one setting that can be learnt by heart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from medsyn.seeds import seed

Change = Callable[[Tensor, Tensor, float, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Way:
    """One way of sampling badly."""

    severe: bool  # so bad that any expert would call the image poor
    weakest: float  # the range that the strength is drawn from, evenly; in the way's own unit
    strongest: float

    def strength(self, rng: np.random.Generator) -> float:
        """How far one image is spoilt."""
        return float(rng.uniform(self.weakest, self.strongest))


@dataclass(frozen=True)
class Spoilt(Way):
    """A good image has other latents: (its own [c, h, w], another image's, strength, random) -> changed ones."""

    change: Change
    needs_other: bool = False


@dataclass(frozen=True)
class Stopped(Way):
    """A good run is decoded before its end; the strength is the share of its steps that are left out."""


@dataclass(frozen=True)
class Wish:
    """What the sampler is asked for, in one row."""

    prompt: str
    negative: str
    guidance: float
    noise: float = 1.0  # standard deviation of the noise that it begins with


@dataclass(frozen=True)
class Resampled(Way):
    """The sampler runs again, from the same noise, for every n-th image: it costs a run."""

    ask: Callable[[Wish, float], Wish] = lambda wish, _: wish  # row by row: (the good image's wish, strength)
    steps: float = 0.4  # share of the campaign's, which look nearly the same and cost less; from 1, how many
    every: int = 1
    spoil: Callable[[nn.Module, float, int], AbstractContextManager[None]] | None = (
        None  # all rows: (UNet, strength, seed)
    )


def _noisy(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(latents)
    return latents + strength * latents.std() * noise


def _scaled(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """As with another VAE's scaling factor: too small or too large."""
    return latents * (1 / strength if rng.random() < 0.5 else strength)


def _shifted(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """As with another VAE's mean: one direction in every channel."""
    direction = torch.from_numpy(rng.standard_normal(len(latents), dtype=np.float32)).to(latents)
    return latents + strength * latents.std() * (direction / direction.norm() * len(latents) ** 0.5)[:, None, None]


def _blurred(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    smooth = functional.avg_pool2d(functional.pad(latents[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
    return latents + strength * (smooth - latents)


def _coarse(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """As if sampled at a fraction of the resolution."""
    size = [max(2, round(side / strength)) for side in latents.shape[-2:]]
    small = functional.interpolate(latents[None], size=size, mode="area")
    return functional.interpolate(small, size=latents.shape[-2:], mode="nearest")[0]


def _stitched(latents: Tensor, other: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """A part of the picture is of another image, and does not fit."""
    dim = int(rng.integers(1, 3))
    cut = round((1 - strength) * latents.shape[dim])
    other = _out_of_place(other, 3 - dim, rng)
    return torch.cat([latents.narrow(dim, 0, cut), other.narrow(dim, cut, latents.shape[dim] - cut)], dim=dim)


def _doubled(latents: Tensor, other: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Two images in one, as strong together as one alone."""
    other = _out_of_place(other, int(rng.integers(1, 3)), rng)
    return ((1 - strength) * latents + strength * other) / ((1 - strength) ** 2 + strength**2) ** 0.5


def _out_of_place(latents: Tensor, dim: int, rng: np.random.Generator) -> Tensor:
    """Rolled by a quarter to a half: images of one modality often look so alike that they would fit."""
    size = latents.shape[dim]
    return latents.roll(int(rng.integers(size // 4, size // 2 + 1)), dims=dim)


def _shuffled(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """Tiles are exchanged, `strength` of them to a side."""
    side = latents.shape[-1] // round(strength)
    tiles = latents.unfold(1, side, side).unfold(2, side, side)
    down, across = tiles.shape[1:3]
    mixed = tiles.flatten(1, 2)[:, rng.permutation(down * across)].unflatten(1, (down, across))
    found = latents.clone()
    found[:, : down * side, : across * side] = mixed.permute(0, 1, 3, 2, 4).flatten(1, 2).flatten(2, 3)
    return found


def _wrapped(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """What leaves the picture on one side comes in on the other."""
    dim = int(rng.integers(1, 3))
    return latents.roll(round(strength * latents.shape[dim]), dims=dim)


def _flipped(latents: Tensor, _: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    """One channel has lost its sign."""
    found = latents.clone()
    found[int(rng.integers(len(latents)))] *= -strength
    return found


@contextmanager
def noisy_weights(unet: nn.Module, strength: float, key: int) -> Iterator[None]:
    """Noise on every matrix, `strength` of its own standard deviation; exactly as before afterwards."""
    matrices = {name: weight for name, weight in unet.named_parameters() if weight.dim() > 1}
    kept = {name: weight.detach().to("cpu", copy=True) for name, weight in matrices.items()}  # not twice on a card
    try:
        with torch.no_grad():
            for name, weight in matrices.items():
                drawn = torch.Generator().manual_seed(seed(key, name))
                noise = torch.randn(weight.shape, generator=drawn).to(weight.device)
                weight.add_(strength * weight.float().std() * noise)
        yield
    finally:
        with torch.no_grad():
            for name, weight in matrices.items():
                weight.copy_(kept[name])


@contextmanager
def wrong_timesteps(unet: nn.Module, strength: float, _: int) -> Iterator[None]:
    """The UNet is told that there is less noise than there is, as with another model's noise schedule."""
    hook = unet.register_forward_pre_hook(lambda _, given: (given[0], given[1] * strength, *given[2:]))
    try:
        yield
    finally:
        hook.remove()


def _too_much(wish: Wish, strength: float) -> Wish:
    return replace(wish, guidance=1 + strength * max(wish.guidance - 1, 1.0))


def _away(wish: Wish, strength: float) -> Wish:
    """Pushed away from its prompt: the negative prompt and the prompt have changed places."""
    return replace(wish, prompt=wish.negative, negative=wish.prompt, guidance=max(wish.guidance, strength))


def _noise(wish: Wish, strength: float) -> Wish:
    return replace(wish, noise=strength)


def _unguided(wish: Wish, _: float) -> Wish:
    return replace(wish, guidance=1.0)


WAYS: dict[str, Way] = {
    "two steps": Resampled(False, 1, 1, steps=2),
    "few steps, no guidance": Resampled(False, 1, 1, _unguided, steps=3),
    "no guidance": Resampled(False, 1, 1, _unguided, every=2),
    "too much guidance": Resampled(False, 8, 14, _too_much, every=6),
    "away from the prompt": Resampled(False, 2, 4, _away, every=6),
    "too much noise": Resampled(False, 1.6, 2.2, _noise, every=6),
    "noisy weights": Resampled(False, 0.4, 0.8, spoil=noisy_weights, every=2),
    "wrong timesteps": Resampled(False, 0.5, 0.7, spoil=wrong_timesteps, every=2),
    "stopped early": Stopped(True, 0.3, 0.6),
    "noisy latents": Spoilt(False, 0.3, 0.8, _noisy),
    "wrong scale": Spoilt(False, 1.6, 2.4, _scaled),
    "wrong mean": Spoilt(False, 0.8, 1.5, _shifted),
    "blurred latents": Spoilt(True, 0.7, 1.0, _blurred),
    "coarse latents": Spoilt(True, 1.6, 3.0, _coarse),
    "stitched": Spoilt(False, 0.3, 0.7, _stitched, needs_other=True),
    "two in one": Spoilt(False, 0.4, 0.6, _doubled, needs_other=True),
    "shuffled": Spoilt(True, 2, 4, _shuffled),
    "wrapped around": Spoilt(False, 0.2, 0.5, _wrapped),
    "channel flipped": Spoilt(False, 0.7, 1.0, _flipped),
}
