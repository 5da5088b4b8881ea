"""Read and encode each image of a table's rows once, and report every row that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache, image_key
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import Image, read_image
from medsyn.data.tables.pairs import PairImage
from medsyn.data.tables.read import ImageRow, RatingRow
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import Control

Row = TypeVar("Row", ImageRow, RatingRow, PairImage)


def encode_rows(
    config: Config,
    table: str,
    rows: Sequence[Row],
    hashes: Mapping[Path, str],
    encode: Callable[[Image, Tensor], dict[str, Tensor]],
    cache: TensorCache,
    control: Control,
    allow_synthetic: bool,
    variant: Sequence[Any] = (),
) -> tuple[list[tuple[str, Row]], int]:
    """Encode the images that the cache lacks, and read the next ones meanwhile; several rows may share an image.

    Args:
        config: of the campaign.
        table: what problems name as their source.
        rows: of the table.
        hashes: SHA-256 of every row's file, '' where it could not be read.
        encode: turns an image as read and its pixels [1, 3, R, R] in 0..1 into an entry of the cache.
        cache: where the results are kept.
        control: receives progress; a stop request is obeyed between images.
        allow_synthetic: whether images marked as generated may be used.
        variant: distinguishes these entries from others of the same images.

    Returns:
        (cache key, row) of every usable row, and how many images were encoded.

    Raises:
        InputProblems: all images that cannot be used, if `data.strict` or if none can.
        Saved: a stop was requested.
    """
    resolution, weights = config.data.resolution, weights_fingerprint(config.model_paths.stable_diffusion)

    def key_of(row: Row) -> str:
        file = hashes[row.path] or str(row.path)
        key = image_key(file, row.modality, row.volume, resolution, weights, allow_synthetic)
        return disk.fingerprint([*variant, key]) if variant else key

    def read(row: Row) -> tuple[Image, Tensor]:
        if not hashes[row.path]:
            raise InputError(row.path, "cannot be read")
        image = read_image(row.path, row.modality, row.volume)
        if image.synthetic and not allow_synthetic:
            reason = f"is marked as generated ({image.mark}); data.allow_synthetic=true allows training on it"
            raise InputError(row.path, reason)
        pixels = np.ascontiguousarray(fit_square(image.pixels, resolution).transpose(2, 0, 1))
        return image, torch.from_numpy(pixels)[None]

    keyed = [(key_of(row), row) for row in rows]
    encoded, failures = cache.fill(
        dict(keyed), read, lambda made: encode(*made), control, "image", config.device.cpu_threads
    )
    problems = [
        Problem(table, f"{row.file}: {failures[key].problem.reason}", row.row) for key, row in keyed if key in failures
    ]
    if problems and (config.data.strict or len(problems) == len(rows)):
        raise InputProblems(problems)
    return [(key, row) for key, row in keyed if key not in failures], encoded
