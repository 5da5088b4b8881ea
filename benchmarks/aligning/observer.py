"""Who looks at images of the world: a network that knows what phantoms show, their side and their quality.

There are two of them in a run, of other phantoms and another seed each: the raters see through the eyes of one, the
other one counts. Neither shares an image, a weight or a loss with the campaign.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import Label, draw_phantom, render
from medsyn.models.stable_diffusion import SyntheticSystem
from medsyn.seeds import seed

SIDE = 64  # pixels that it sees
FIRST_INDEX = 3_000_000  # of the phantoms that it knows, beyond those of every table; a multiple of six
PHANTOMS = 360  # of each kind, a third of each quality
EPOCHS, BATCH, RATE, WIDTH = 20, 32, 3e-3, 24


@dataclass(frozen=True)
class Sight:
    """What an observer sees in N images."""

    right: np.ndarray  # [N], probability that finding and side are those that were asked for
    quality: np.ndarray  # [N, 3], probabilities of poor, acceptable, excellent
    features: np.ndarray  # [N, D], what distances are measured in

    @property
    def is_right(self) -> np.ndarray:
        """bool [N]: the most probable finding and side are those that were asked for."""
        return self.right >= 0.5

    @property
    def is_good(self) -> np.ndarray:
        """bool [N]: right, and not poor."""
        return self.is_right & (self.quality[:, 0] < 0.5)


class _Network(nn.Module):
    """Classes (kind, finding, side) and quality of 64 px images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
        wide = widths[-1] * (SIDE // 16) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(wide, 64), nn.ReLU())
        self.classes, self.quality = nn.Linear(64, classes), nn.Linear(64, 3)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits [N, C], quality logits [N, 3] and features [N, 64] of pixels [N, 3, 64, 64] in 0..1."""
        features = self.body(pixels * 2 - 1)
        return self.classes(features), self.quality(features), features


class Observer:
    """Knows the phantoms of some kinds."""

    def __init__(self, kinds: Sequence[str], own_seed: int, system: SyntheticSystem, kept: Path) -> None:
        """Learn from phantoms, as drawn and as the generator's autoencoder shows them: no sampler does better.

        Args:
            kinds: of phantoms.
            own_seed: of its phantoms, its first weights and its order.
            system: whose autoencoder it is.
            kept: file that its weights are kept in; one that is there already is read.
        """
        self._classes = _classes(kinds)
        self._network = _Network(len(self._classes))
        if kept.exists():
            self._network.load_state_dict(load_file(kept))
            self._network.eval()
            return
        facts, pixels = phantoms(kinds, PHANTOMS, own_seed)
        both = torch.cat([pixels, through_autoencoder(system, pixels)])
        target = torch.tensor([self._classes.index(_what(fact)) for fact in facts] * 2)
        quality = torch.tensor([fact.quality - 1 for fact in facts] * 2)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed("observer", own_seed))
            self._network = _Network(len(self._classes))
            self._learn(both, target, quality, torch.Generator().manual_seed(own_seed))
        self._network.eval()
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._network.state_dict(), kept)

    def _learn(self, pixels: Tensor, target: Tensor, quality: Tensor, generator: torch.Generator) -> None:
        optimizer = torch.optim.AdamW(self._network.parameters(), lr=RATE, weight_decay=0.02)
        steps = EPOCHS * -(-len(pixels) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(pixels), generator=generator).split(BATCH):
                classes, of_quality, _ = self._network(_moved(pixels[batch], generator))
                loss = functional.cross_entropy(classes, target[batch], label_smoothing=0.05)
                loss = loss + functional.cross_entropy(of_quality, quality[batch], label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def look(self, pixels: Tensor, asked: Sequence[Label]) -> Sight:
        """What it sees in uint8 [N, 3, 64, 64], each of which was asked for as a phantom that a label describes."""
        parts: Iterator[tuple[Tensor, ...]] = (self._network(part.float() / 255) for part in pixels.split(64))
        classes, quality, features = (torch.cat(column) for column in zip(*parts, strict=True))
        places = torch.tensor([self._classes.index(_what(label)) for label in asked])
        right = classes.softmax(1).gather(1, places[:, None]).squeeze(1)
        return Sight(right.numpy(), quality.softmax(1).numpy(), features.numpy())


def phantoms(
    kinds: Sequence[str], count: int, own_seed: int, qualities: Sequence[int] = (1, 2, 3)
) -> tuple[list[Label], Tensor]:
    """`count` phantoms of each kind, of these qualities in turn: what they show, and uint8 [N, 3, 64, 64]."""
    drawn = [
        draw_phantom(kind, FIRST_INDEX + number, own_seed, quality=qualities[number // 6 % len(qualities)])
        for kind in kinds
        for number in range(count)
    ]
    pictures = np.stack([fit_square(render(phantom, 2 * SIDE), SIDE) for phantom in drawn])
    pixels = torch.from_numpy(np.round(pictures.transpose(0, 3, 1, 2) * 255).astype(np.uint8))
    return [phantom.label for phantom in drawn], pixels.expand(-1, 3, -1, -1)


def through_autoencoder(system: SyntheticSystem, pixels: Tensor) -> Tensor:
    """uint8 [N, 3, R, R] after one pass through the generator's VAE."""
    parts = [system.decode(system.encode(part.float() / 255)[0]) for part in pixels.split(32)]
    return (torch.cat(parts) * 255).round().to(torch.uint8)


def _classes(kinds: Sequence[str]) -> list[tuple[str, str, str | None]]:
    """What images of these kinds can show, in a fixed order; twelve phantoms show all of it."""
    return sorted({_what(draw_phantom(kind, number, 0).label) for kind in kinds for number in range(12)}, key=str)


def _what(label: Label) -> tuple[str, str, str | None]:
    return label.kind, label.finding, label.side


def _moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 2 px, a little brighter or darker; float in 0..1 of uint8 [N, 3, R, R]."""
    values = pixels.float() / 255 + (torch.rand(len(pixels), 1, 1, 1, generator=generator) - 0.5) * 0.08
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    padded = functional.pad(values, (2, 2, 2, 2), mode="replicate")
    return padded[..., 2 + down : 2 + down + SIDE, 2 + right : 2 + right + SIDE].clamp(0, 1)
