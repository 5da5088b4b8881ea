"""Images in, scores out: read on several threads, scored a few at a time, so that any number fits into memory."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsyn.ahead import ahead
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.data.read_images import threads
from medsyn.errors import InputError, Problem
from medsyn.models.cards import known_as, threshold_of
from medsyn.models.quality import FEATURES, quality_features
from medsyn.models.score_images import policy_scores, selector_scores, to_pixels
from medsyn.models.scores import Scores
from medsyn.scoring.captions import Caption, Captions
from medsyn.scoring.load import Scorers
from medsyn.text import and_more, counted

TOGETHER = 32  # images that are scored at once, at most
_NAMED = 3  # files of a message


@dataclass(frozen=True)
class ScoredImage:
    """What the scorers say of one image."""

    file: str  # as it was named
    modality: str | None  # None: nothing says it
    selector: float  # quality, 0 to 1
    selector_spread: float  # standard deviation over the Selector's members
    unfamiliar: bool  # far from every image that the Selector was trained on: its score means little
    threshold: float | None  # the Selector's own for this modality; None: it has none
    passes: bool | None  # whether the Selector's score reaches it
    policy: float | None = None  # how well it shows its prompt, 0 to 1; None without a Policy or a prompt
    policy_spread: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # the quality metrics by name


@dataclass(frozen=True)
class _Picture:
    file: str
    caption: Caption
    pixels: np.ndarray  # uint8 [R, R, 3]


def score_images(
    scorers: Scorers,
    files: Sequence[str],
    captions: Captions,
    problems: list[Problem],
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[ScoredImage]:
    """Score image files, in order.

    Args:
        scorers: what scores.
        files: image files.
        captions: what is known of them.
        problems: files that cannot be read are added, and when all are scored what is missing of others.
        tell: called with how many files are done, of how many.
    """
    lacking = _Lacking(scorers.policy is not None)
    done = 0
    pictures = _pictures(files, captions, scorers.resolution, problems)
    while some := list(islice(pictures, TOGETHER)):
        yield from _scored(scorers, some, lacking)
        done += len(some)
        tell(done, len(files))
    problems += lacking.problems()


def _pictures(files: Iterable[str], captions: Captions, resolution: int, problems: list[Problem]) -> Iterator[_Picture]:
    """The images that can be read, as scorers see them."""

    def read(file: str) -> _Picture:
        caption = captions.of(file)
        square = fit_square(read_image(file, caption.modality).pixels, resolution)
        return _Picture(file, caption, np.rint(square * 255).astype(np.uint8))

    # `catch_warnings` in a reader is not made for threads; what it falls back to must be silent, because pydicom's
    # warnings quote headers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, picture in ahead(read, files, threads()):
            try:
                yield picture.result()
            except InputError as error:
                problems += error.problems


def _scored(scorers: Scorers, pictures: Sequence[_Picture], lacking: _Lacking) -> Iterator[ScoredImage]:
    pixels = to_pixels(torch.from_numpy(np.stack([picture.pixels for picture in pictures])), scorers.device)
    metrics = quality_features(pixels).tolist()
    selector, policy = _by_modality(scorers, pictures, pixels), _by_prompt(scorers, pictures, pixels)
    for place, picture in enumerate(pictures):
        lacking.look_at(picture, scorers)
        threshold = threshold_of(scorers.card, picture.caption.modality)
        least = None if threshold is None else threshold.threshold
        score, spread, unfamiliar = selector[place]
        aligned, aligned_spread, _ = policy.get(place, (None, None, None))
        yield ScoredImage(
            file=picture.file,
            modality=picture.caption.modality,
            selector=score,
            selector_spread=spread,
            unfamiliar=unfamiliar,
            threshold=least,
            passes=None if least is None else score >= least,
            policy=aligned,
            policy_spread=aligned_spread,
            metrics=dict(zip(FEATURES, metrics[place], strict=True)),
        )


_Row = tuple[float, float, bool]


def _groups(scorers: Scorers, pictures: Sequence[_Picture], places: Iterable[int]) -> dict[str | None, list[int]]:
    """The places of pictures by the modality that the scorers know them as."""
    found: dict[str | None, list[int]] = {}
    for place in places:
        found.setdefault(known_as(scorers.card, pictures[place].caption.modality), []).append(place)
    return found


def _by_modality(scorers: Scorers, pictures: Sequence[_Picture], pixels: Tensor) -> dict[int, _Row]:
    found: dict[int, _Row] = {}
    for modality, places in _groups(scorers, pictures, range(len(pictures))).items():
        found |= _rows(places, selector_scores(scorers.selector, pixels[places], modality))
    return found


def _by_prompt(scorers: Scorers, pictures: Sequence[_Picture], pixels: Tensor) -> dict[int, _Row]:
    """The Policy's scores of the pictures that have a prompt."""
    if scorers.policy is None or scorers.system is None:
        return {}
    found: dict[int, _Row] = {}
    prompted = [place for place, picture in enumerate(pictures) if picture.caption.prompt]
    for modality, places in _groups(scorers, pictures, prompted).items():
        prompts = [str(pictures[place].caption.prompt) for place in places]
        pooled = scorers.system.pool_all(prompts)
        found |= _rows(places, policy_scores(scorers.policy, pixels[places], pooled, modality))
    return found


def _rows(places: Sequence[int], scores: Scores) -> dict[int, _Row]:
    columns = (scores.score.tolist(), scores.spread.tolist(), scores.unfamiliar.tolist())
    return dict(zip(places, zip(*columns, strict=True), strict=True))


class _Lacking:
    """Images of which something is not known, counted."""

    def __init__(self, wants_prompt: bool) -> None:
        self._wants_prompt = wants_prompt
        self._count: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def look_at(self, picture: _Picture, scorers: Scorers) -> None:
        """Count what an image lacks."""
        modality, prompt = picture.caption.modality, picture.caption.prompt
        if self._wants_prompt and not prompt:
            self._add("no prompt", picture.file)
        if modality is None:
            self._add("no modality", picture.file)
        elif scorers.card.modalities and known_as(scorers.card, modality) is None:
            self._add(f"{modality}", picture.file)

    def _add(self, what: str, file: str) -> None:
        self._count[what] += 1
        first = self._first.setdefault(what, [])
        if len(first) < _NAMED:
            first.append(Path(file).name)

    def problems(self) -> Iterator[Problem]:
        """What is lacking, one problem of each kind."""
        for what, count in self._count.items():
            named = and_more(self._first[what], _NAMED) + (", ..." if count > _NAMED else "")
            these = f"{counted(count, 'image')} ({named})"
            if what == "no prompt":
                reason = "nothing says what they show, so they have no Policy score: give --prompts"
                yield Problem(these, reason)
            elif what == "no modality":
                reason = "nothing says their modality, so no threshold is known for them: give --modality"
                yield Problem(these, reason, severity="warning")
            else:
                reason = f"the Selector has not learned from {what}: its scores of them are a guess"
                yield Problem(these, reason, severity="warning")
