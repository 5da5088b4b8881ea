"""Expert ratings as tensors: what each row's image looks like, what its prompt says, and how it is trained on.

A rated image is seen as it is, resized to the campaign's resolution: a passage through the generator's autoencoder
would hide the very damage that raters saw (`raters.match_decoder` still makes it). A good real image is also shown as
the decoder gives it back, as a good one too, so that a scorer does not learn to tell a camera from a decoder. A
generated image has been through a decoder already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medsyn.config import Config
from medsyn.data.images.latent_cache import TensorCache, caption_key
from medsyn.data.images.read import Image
from medsyn.data.tables.pairs import PairImage, PairRow, pairs_of
from medsyn.data.tables.read import ImageRow, RatingRow, ratings_of
from medsyn.errors import InputError
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import Control
from medsyn.training.encode_rows import encode_rows
from medsyn.training.scorers.remembered import Remembered

if TYPE_CHECKING:
    from medsyn.models.stable_diffusion import SyntheticSystem

AnyRow = TypeVar("AnyRow", ImageRow, RatingRow, PairImage)
GOOD = 2  # ratings from here up are good: the Selector's positive class


@dataclass(frozen=True)
class RatedSet:
    """N rated rows; rows of several raters share an image, rows of several images share a prompt."""

    pixels: Tensor  # uint8 [images, 3, R, R]: of the rows, of rated pairs, and as the decoder gives them back
    image_modality: np.ndarray  # str [images]
    image_group: np.ndarray  # str [images], see `medsyn.data.tables.split.groups`
    generated: np.ndarray  # bool [images], as their files say; not those that only the decoder made
    decoded: np.ndarray  # int64, into pixels: good images as the decoder gives them back
    pooled: Tensor  # float32 [prompts, D]
    line: np.ndarray  # int64 [N], of the table: identifies a row in every stage
    image: np.ndarray  # int64 [N], into pixels
    prompt: np.ndarray  # int64 [N], into pooled
    rating: np.ndarray  # int64 [N], 1 to 3
    weight: np.ndarray  # float32 [N], mean 1
    modality: np.ndarray  # str [N]
    prompt_modality: np.ndarray  # str [prompts]
    counts: dict[str, int]  # for the summary

    @property
    def good(self) -> np.ndarray:
        """bool [N]: rated acceptable or excellent."""
        return self.rating >= GOOD

    @property
    def reward(self) -> np.ndarray:
        """float32 [N]: the rating as 0, 0.5 or 1."""
        return ((self.rating - 1) / 2).astype(np.float32)


@dataclass(frozen=True)
class RatedPairs:
    """P comparisons by experts, between images of a `RatedSet`; the first of a pair is the better one."""

    a: np.ndarray  # int64 [P], into pixels
    b: np.ndarray  # int64 [P], into pixels
    prompt: np.ndarray  # int64 [P], into pooled
    preference: np.ndarray  # float64 [P], 1 where a is better, 0.5 where both are the same
    neither: np.ndarray  # bool [P]: both are bad

    @classmethod
    def none(cls) -> RatedPairs:
        """No comparisons."""
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing, np.zeros(0), np.zeros(0, dtype=bool))


def rated_rows(config: Config) -> list[RatingRow]:
    """The rows of the ratings table that belong to the campaign's modalities.

    Raises:
        InputProblems: the table has bad rows (`data.strict`) or none.
        InputError: none is of the campaign's modalities.
    """
    source = str(config.data.ratings_file)
    rows = [
        row for row in ratings_of(config.data).require(config.data.strict) if row.modality in config.data.modalities
    ]
    if not rows:
        reason = f"has no ratings for {', '.join(config.data.modalities)}"
        raise InputError(source, reason, key="data.modalities")
    return rows


def rated_pairs(config: Config) -> list[PairRow]:
    """The rows of the table of pairs that belong to the campaign's modalities; none without a table.

    Raises:
        InputProblems: the table has bad rows (`data.strict`) or none.
    """
    if config.data.pairs_file is None:
        return []
    rows = pairs_of(config.data).require(config.data.strict)
    return [row for row in rows if row.modality in config.data.modalities]


@dataclass(frozen=True)
class Loading:
    """Where images and prompts become tensors."""

    config: Config
    hashes: Mapping[Path, str]
    load_system: Callable[[], SyntheticSystem]  # called only if something must be computed
    cache: TensorCache
    control: Control
    remembered: Remembered

    def pictures(
        self, table: str, rows: Sequence[AnyRow], what: str, decoded: bool = False, allow_synthetic: bool = True
    ) -> list[tuple[str, AnyRow]]:
        """(key, row) of every usable row, after computing what the cache lacks; errors as for `encode_rows`.

        `decoded` are pictures as the decoder gives them back; a generated image has been there already.
        """

        def read(image: Image, pixels: Tensor) -> dict[str, Tensor]:
            if decoded and not image.synthetic:
                system = self.load_system()
                pixels = system.decode(system.encode(pixels)[0])  # one at a time: other images in a batch change bits
            return {"pixels": pixels[0], "real": torch.tensor([not image.synthetic])}

        kept, _ = encode_rows(
            *(self.config, table, rows, self.hashes, read, self.cache, self.control),
            allow_synthetic=allow_synthetic,
            variant=(what, decoded),
        )
        return kept

    def pixels(self, keys: Iterable[str]) -> Tensor:
        """uint8 [N, 3, R, R]: 8-bit pictures, as candidates are scored; also a quarter of the memory."""
        side = self.config.data.resolution
        read = [(self.cache.read(key, "pixels").float() * 255).round().to(torch.uint8) for key in keys]
        return torch.stack(read) if read else torch.zeros(0, 3, side, side, dtype=torch.uint8)

    def texts(self, prompts: Iterable[str]) -> Tensor:
        """Pooled text features, float32 [N, D]."""
        weights = weights_fingerprint(self.config.model_paths.stable_diffusion)
        keys = {caption_key(prompt, weights, self.config.data.chunks): prompt for prompt in prompts}

        def embed(prompt: str) -> dict[str, Tensor]:
            return {"pooled": self.load_system().embed(prompt)[1]}

        self.cache.fill(keys, str, embed, self.control, "prompt")
        return torch.stack([self.cache.read(key, "pooled").float() for key in keys])


def load_rated(
    loading: Loading,
    rows: Sequence[RatingRow],
    pairs: Sequence[PairRow],
    prompts_of: Mapping[str, str],
    group_of: Mapping[str, str],
) -> tuple[RatedSet, RatedPairs]:
    """Load the rated images, those of pairs, and the prompts, computing what the cache lacks.

    Errors are those of `encode_rows`.

    Args:
        loading: where to.
        rows: of the ratings table.
        pairs: of the table of pairs.
        prompts_of: the modality of each prompt of the campaign: any of them may serve as a wrong one.
        group_of: the group of every file.
    """
    config = loading.config
    as_decoded = config.raters.match_decoder
    kept = loading.pictures(str(config.data.ratings_file), rows, "rated", as_decoded)
    again: list[tuple[str, RatingRow]] = []
    if not as_decoded:
        good = [row for _, row in kept if row.rating >= GOOD]
        again = loading.pictures(str(config.data.ratings_file), good, "rated", decoded=True) if good else []
    sides = [image for row in pairs for image in (row.a, row.b)]
    shown = loading.pictures(str(config.data.pairs_file), sides, "rated", as_decoded) if sides else []
    plain: dict[str, RatingRow | PairImage] = {**dict(kept), **dict(shown)}
    copies = {key: row for key, row in again if loading.cache.read(key, "real").item()}
    of_image: dict[str, RatingRow | PairImage] = {**plain, **copies}
    place = {key: number for number, key in enumerate(of_image)}
    table = pd.DataFrame([row for _, row in kept])
    level = table.expert_level.to_numpy(np.float32) if config.raters.expert_weights else np.ones(len(kept), np.float32)
    prompt_place = {prompt: number for number, prompt in enumerate(prompts_of)}
    rated = RatedSet(
        pixels=loading.pixels(of_image),
        image_modality=np.array([row.modality for row in of_image.values()]),
        image_group=np.array([group_of[row.file] for row in of_image.values()]),
        generated=np.array([not loading.cache.read(key, "real").item() for key in of_image], dtype=bool),
        decoded=np.array([place[key] for key in copies], dtype=np.int64),
        pooled=loading.texts(prompts_of),
        line=table.row.to_numpy(),
        image=np.array([place[key] for key, _ in kept]),
        prompt=table.prompt.map(prompt_place).to_numpy(),
        rating=table.rating.to_numpy(),
        weight=level / level.mean(),
        modality=table.modality.to_numpy(str),
        prompt_modality=np.array(list(prompts_of.values())),
        counts={
            "ratings": len(kept),
            "images": len({key for key, _ in kept}),
            "prompts": len(prompts_of),
            "pairs": len(pairs),
            "skipped": len(rows) - len(kept),
        },
    )
    key_of = {id(row): key for key, row in shown}
    return rated, _pairs([row for row in pairs if {id(row.a), id(row.b)} <= key_of.keys()], key_of, place, prompt_place)


def _pairs(
    rows: Sequence[PairRow], key_of: Mapping[int, str], place: Mapping[str, int], prompts: Mapping[str, int]
) -> RatedPairs:
    """The pairs whose images can both be used, the preferred one first."""
    if not rows:
        return RatedPairs.none()
    ordered = [(row.b, row.a) if row.preferred == "b" else (row.a, row.b) for row in rows]
    return RatedPairs(
        np.array([place[key_of[id(a)]] for a, _ in ordered]),
        np.array([place[key_of[id(b)]] for _, b in ordered]),
        np.array([prompts[row.prompt] for row in rows]),
        np.array([0.5 if row.preferred == "same" else 1.0 for row in rows]),
        np.array([row.preferred == "neither" for row in rows]),
    )
