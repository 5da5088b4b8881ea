"""Images as members see them in training: slightly changed copies, and the quality metrics of those same copies.

A member learns from what its metrics say, so the metrics vary as the pixels do. There are a few versions of an image,
not a new one in every epoch: measuring costs more than a small network's step, and is done once.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.models.image_encoder import MeasuredImage
from medsyn.models.quality import FEATURES, METRICS
from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey
from medsyn.training.scorers.remembered import Remembered

GAIN, OFFSET = 0.05, 0.03  # how far augmentation changes contrast and brightness: less than a rater would notice
SHIFT = 1 / 16  # of the picture's side
VERSIONS = 4  # of a rated image, the first of which is the image itself
VERSIONS_COMPARED = 2  # of an image that was made for comparisons: there are many of them
TOGETHER = 64  # images scored or measured at once


def augment(pixels: Tensor, key: RandomKey, version: int, groups: Sequence[str]) -> Tensor:
    """A version of pixels [N, 3, R, R] in 0..1, each a function of (key, version, its group).

    Brightness, contrast and position change a little; uncovered borders repeat the edge. Images of one group change
    alike, so that a damaged copy still differs from its original by the damage alone. Version 0 is unchanged.
    """
    if version == 0:
        return pixels
    side = pixels.shape[-1]
    reach, along = round(SHIFT * side), torch.arange(side, device=pixels.device)
    copies = []
    for picture, group in zip(pixels, groups, strict=True):
        gain, offset, down, right = _change(key, version, str(group), reach)
        copy = picture[:, (along + down).clamp(0, side - 1)][:, :, (along + right).clamp(0, side - 1)]
        copies.append((copy * gain + offset).clamp(0, 1))
    return torch.stack(copies)


@functools.lru_cache(maxsize=1 << 16)  # asked for again in every epoch, and by all images of a group
def _change(key: RandomKey, version: int, group: str, reach: int) -> tuple[float, float, int, int]:
    """Gain, offset, and pixels down and to the right."""
    rng = np.random.default_rng(seed(*key, "augment", version, group))
    gain, offset = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-OFFSET, OFFSET)
    down, right = rng.integers(-reach, reach + 1, 2).tolist()
    return gain, offset, down, right


def versions_key(key: RandomKey) -> RandomKey:
    """What versions of images depend on in a run with this key: the seed, so that they are the same in all stages."""
    return key[:1]


class MeasuredImages:
    """I images on the CPU, and the metrics of a few versions of each, where they are scored."""

    def __init__(
        self,
        pixels: Tensor,
        groups: np.ndarray,
        versions: np.ndarray,
        encoder: MeasuredImage,
        key: RandomKey,
        device: torch.device,
        remembered: Remembered | None = None,
    ) -> None:
        """Measure images as an encoder sees them.

        Args:
            pixels: uint8 [I, 3, R, R].
            groups: str [I].
            versions: int [I], how many there are of each.
            encoder: any one of those that will see them.
            key: what the versions depend on.
            device: where they are scored.
            remembered: where metrics are, and are put, once they are measured.
        """
        self._pixels, self._groups, self._encoder, self._key, self._device = pixels, groups, encoder, key, device
        self.versions = versions
        self.metrics = torch.zeros(int(versions.max(initial=1)), len(pixels), len(FEATURES), device=device)
        for version in range(len(self.metrics)):
            images = np.flatnonzero(versions > version)
            if remembered is not None:
                images = self._recall(remembered, images, version)
            for chunk in np.split(images, range(TOGETHER, len(images), TOGETHER)):
                if len(chunk):
                    self.metrics[version, chunk] = encoder.measure(self._version(chunk, version))
                    if remembered is not None:
                        for image in chunk.tolist():
                            remembered.put(self._name(image, version), self.metrics[version, image])
        if remembered is not None:
            remembered.save()  # at once: what is measured together may depend on what else is, to the last bit

    def _recall(self, remembered: Remembered, images: np.ndarray, version: int) -> np.ndarray:
        """Fill in the metrics that are remembered; the other images, int64."""
        unknown = []
        for image in images.tolist():
            known = remembered.get(self._name(image, version))
            if known is None:
                unknown.append(image)
            else:
                self.metrics[version, image] = known.to(self._device)
        return np.array(unknown, dtype=np.int64)

    def _name(self, image: int, version: int) -> str:
        """Of the metrics of an image's version: of all that they depend on."""
        pixels, side = self._pixels[image], self._pixels.shape[-1]
        content = hashlib.sha256(pixels.numpy().tobytes()).hexdigest()
        change = _change(self._key, version, str(self._groups[image]), round(SHIFT * side)) if version else None
        return disk.fingerprint(["metrics", METRICS, list(FEATURES), self._encoder.image_size, content, side, change])

    def training(self, images: np.ndarray, epoch: int, look: bool = True) -> tuple[Tensor, Tensor]:
        """Pixels and metrics of images [N], as for `seen`, each in the version that an epoch shows."""
        return self.seen(images, epoch % self.versions[images], look)

    def seen(self, images: np.ndarray, versions: np.ndarray | int = 0, look: bool = True) -> tuple[Tensor, Tensor]:
        """Pixels [N, 3, S, S] and metrics [N, metrics] of images [N], each in one of its versions (int64 [N]).

        Unless somebody will `look` at them, there are no pixels: [N, 3, 0, 0].
        """
        versions = np.broadcast_to(versions, images.shape).copy()
        if not look:
            return self.metrics.new_empty(len(images), 3, 0, 0), self.metrics[versions, images]
        pixels = None
        for version in np.unique(versions).tolist():
            places = np.flatnonzero(versions == version)
            part = self._encoder.resize(self._version(images[places], version))
            if pixels is None:
                pixels = part.new_empty((len(images), *part.shape[1:]))
            pixels[torch.from_numpy(places).to(self._device)] = part
        assert pixels is not None
        return pixels, self.metrics[versions, images]

    def _version(self, images: np.ndarray, version: int) -> Tensor:
        pixels = self._pixels[torch.from_numpy(images)].to(self._device).float() / 255
        return augment(pixels, self._key, version, self._groups[images].tolist())
