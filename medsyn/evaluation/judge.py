"""An independent judge of prompt following: does a phantom-like image show what its prompt asked for?

A small convolutional network, trained in half a minute on phantoms drawn with a seed that no campaign uses. It shares
no weights, images or loss with the generator, the Selector or the Policy. It only knows phantoms: real patients' images
have no such judge, and the report then says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import medsyn
from medsyn import disk, user_cache
from medsyn.data.images.pixels import fit_square
from medsyn.data.phantoms.phantom import (
    CAMPAIGNS,
    FINDINGS,
    KINDS,
    MODALITY_OF,
    Label,
    Protocol,
    draw_phantom,
    parse_caption,
    render,
)
from medsyn.evaluation.metrics import proportion
from medsyn.models.image_features import shrink
from medsyn.seeds import seed

SIDE = 64  # pixels the judge sees
CLASSES = tuple((kind, finding) for kind in KINDS for finding in FINDINGS[kind])
ASPECTS = ("modality", "kind", "finding", "side")
_WEIGHTS, _RECIPE = "model.safetensors", "recipe.json"
_RENDERED = 128  # drawn larger and shrunk, as a campaign's images are


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is trained. The seed is the judge's own, whatever the campaign's is."""

    images_per_kind: int = 132
    epochs: int = 12
    batch_size: int = 48
    learning_rate: float = 3e-3
    width: int = 24
    seed: int = seed("medsyn", "judge")
    protocol: Protocol = CAMPAIGNS  # a reader of A takes the oedema of B for contrast medium

    @property
    def provenance(self) -> dict[str, Any]:
        """What a cached judge must agree on to be used again."""
        return {"format": 1, "side": SIDE, "classes": len(CLASSES), **vars(self)}


RECIPE = JudgeRecipe()


class Judge(nn.Module):
    """Predicts kind and finding (one of 18 classes) and, per kind, the side from 64 px images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width, 4 * width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        features = widths[-1] * (SIDE // 16) ** 2
        self.finding = nn.Linear(features, len(CLASSES))
        self.side = nn.Linear(features, len(KINDS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [N, 18] and right-side logits per kind [N, 6] of pixels [N, 3, 64, 64], values 0..1."""
        features = self.body(pixels * 2 - 1)
        return self.finding(features), self.side(features)


def _to_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 [H, W, 3] images as float [N, 3, 64, 64] in 0..1."""
    stacked = np.stack([shrink(image, SIDE) for image in images])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def draw(images_per_kind: int, draw_seed: int, protocol: Protocol = CAMPAIGNS) -> tuple[list[np.ndarray], list[Label]]:
    """Draw phantoms (uint8 [64, 64, 3]) balanced over kinds, findings and sides; return them and what they show."""
    phantoms = [
        draw_phantom(kind, index, draw_seed, protocol=protocol) for kind in KINDS for index in range(images_per_kind)
    ]
    images = [np.round(fit_square(render(phantom, _RENDERED), SIDE) * 255).astype(np.uint8) for phantom in phantoms]
    return images, [phantom.label for phantom in phantoms]


def _augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random blur, contrast, brightness, noise and shift up to 3 px: a generator's flaws must not confuse the judge."""
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low

    blurred = F.interpolate(F.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear", align_corners=False)
    pixels = torch.lerp(pixels, blurred, uniform(0, 1))
    pixels = (pixels - 0.5) * uniform(0.8, 1.2) + 0.5 + uniform(-0.08, 0.08)
    pixels = pixels + torch.randn(pixels.shape, generator=generator) * uniform(0, 0.04)
    down, right = torch.randint(-3, 4, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (3, 3, 3, 3), mode="replicate")
    return padded[..., 3 + down : 3 + down + SIDE, 3 + right : 3 + right + SIDE].clamp(0, 1)


def train(recipe: JudgeRecipe = RECIPE, progress: Callable[[int, int], None] | None = None) -> Judge:
    """Train a judge on freshly drawn phantoms; the same recipe gives the same judge on one machine.

    Args:
        recipe: sizes, epochs and seed.
        progress: called with (epochs done, epochs in all) after every epoch.
    """
    images, facts = draw(recipe.images_per_kind, recipe.seed, recipe.protocol)
    pixels = _to_tensor(images)
    classes = torch.tensor([CLASSES.index((fact.kind, fact.finding)) for fact in facts])
    kinds = torch.tensor([KINDS.index(fact.kind) for fact in facts])
    rights = torch.tensor([float(fact.side == "right") for fact in facts])
    sided = torch.tensor([fact.side is not None for fact in facts])

    with torch.random.fork_rng(devices=[]):  # initial weights and dropout draw from torch's global generator
        torch.manual_seed(recipe.seed)
        judge = Judge(recipe.width)
        generator = torch.Generator().manual_seed(seed(recipe.seed, "order"))
        optimizer = torch.optim.AdamW(judge.parameters(), lr=recipe.learning_rate, weight_decay=0.02)
        steps = recipe.epochs * -(-len(pixels) // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
        for epoch in range(recipe.epochs):
            for batch in torch.randperm(len(pixels), generator=generator).split(recipe.batch_size):
                class_logits, side_logits = judge(_augment(pixels[batch], generator))
                own_side = side_logits.gather(1, kinds[batch, None]).squeeze(1)
                side_loss = F.binary_cross_entropy_with_logits(own_side, rights[batch], sided[batch].float())
                loss = F.cross_entropy(class_logits, classes[batch], label_smoothing=0.05) + side_loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
            if progress is not None:
                progress(epoch + 1, recipe.epochs)
    return judge.eval()


def load_or_train(
    directory: Path, recipe: JudgeRecipe = RECIPE, progress: Callable[[int, int], None] | None = None
) -> Judge:
    """The judge of a recipe: that of `directory`, else the one that this user's cache has, else a new one.

    A judge that was not in `directory` is saved there; a new one goes to the cache as well, if that can be written.
    """
    if judge := _saved(directory, recipe):
        return judge
    cache = _cache(recipe)
    judge = _saved(cache, recipe) if cache else None
    if judge is None:
        judge = train(recipe, progress)
        if cache:
            with suppress(OSError):  # no home, a full or read-only one: it is trained again next time
                _save(judge, cache, recipe)
    _save(judge, directory, recipe)
    return judge


def _cache(recipe: JudgeRecipe) -> Path | None:
    """Where this user's judge of a recipe is kept, for all campaigns; None if there is no home directory."""
    made_by = [medsyn.__version__, torch.__version__, np.__version__]
    name = f"judge-{disk.fingerprint([recipe.provenance, made_by])[:16]}"
    folder = user_cache.directory()
    return folder and folder / name


def _saved(directory: Path, recipe: JudgeRecipe) -> Judge | None:
    """The judge that `_save` has left, None if there is none, or one of another recipe, or a damaged one."""
    try:
        if disk.read_json(directory / _RECIPE) != recipe.provenance:
            return None
        judge = Judge(recipe.width)
        judge.load_state_dict(load_file(directory / _WEIGHTS))
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return None
    return judge.eval()


def _save(judge: Judge, directory: Path, recipe: JudgeRecipe) -> None:
    provenance = directory / _RECIPE
    provenance.unlink(missing_ok=True)  # written last: while it is absent the weights are nobody's
    tensors = {name: tensor.contiguous() for name, tensor in judge.state_dict().items()}
    disk.write_atomic(directory / _WEIGHTS, save(tensors))
    disk.write_json(provenance, recipe.provenance)


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one image; the side is meaningful only if the image has one."""

    kind: str
    finding: str
    side: str


Seen = Mapping[int, Verdict]  # what the judge saw in pictures, by their `id`


def right(verdict: Verdict, asked: Label) -> dict[str, float]:
    """Whether an image shows what was asked for, 0 or 1: its finding, its side (NaN if none was asked for), and both.

    A finding is right only on the right kind of image, and so is a side.
    """
    kind = verdict.kind == asked.kind
    finding = float(kind and verdict.finding == asked.finding)
    side = float("nan") if asked.side is None else float(kind and verdict.side == asked.side)
    return {"finding": finding, "side": side, "right": finding * (1.0 if asked.side is None else side)}


@torch.no_grad()
def look(judge: Judge, images: Iterable[np.ndarray], batch_size: int = 64) -> list[Verdict]:
    """What `judge` sees in uint8 [H, W, 3] images of any size; holds one batch at a time."""
    verdicts, left = [], iter(images)
    while batch := list(islice(left, batch_size)):
        class_logits, side_logits = judge(_to_tensor(batch))
        for index, sides in zip(class_logits.argmax(1).tolist(), side_logits, strict=True):
            kind, finding = CLASSES[index]
            verdicts.append(Verdict(kind, finding, "right" if sides[KINDS.index(kind)] > 0 else "left"))
    return verdicts


def agreement(verdicts: Sequence[Verdict], asked: Sequence[Label]) -> dict[str, dict[str, float | int] | None]:
    """How often the images show what was asked for, per aspect, each with its 95 % interval and count.

    A finding is right only on the right kind of image. The side counts only if one was requested and the kind is right.
    """
    seen, want = pd.DataFrame(verdicts, columns=ASPECTS[1:]), pd.DataFrame(asked, columns=Label._fields)
    kind = seen.kind == want.kind
    return {
        "modality": proportion(seen.kind.map(MODALITY_OF) == want.kind.map(MODALITY_OF)),
        "kind": proportion(kind),
        "finding": proportion(kind & (seen.finding == want.finding)),
        "side": proportion((seen.side == want.side)[kind & want.side.notna()]),
    }


def labels_of(texts: Sequence[str]) -> list[Label] | None:
    """What phantom captions state, or None unless every one of `texts` is such a caption."""
    facts = [parse_caption(text) for text in texts]
    known = [fact for fact in facts if fact is not None]
    return known if known and len(known) == len(facts) else None
