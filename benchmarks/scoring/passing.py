"""The row `passing`: what a campaign's own thresholds let through, of images that its Selectors have not seen.

Asked of the Selectors of a campaign of configs/tiny.yaml that is done: with the thresholds that generation uses, and
with those of rated images alone, which stage 1 chose. Fresh phantoms of excellent and of poor quality, the excellent
ones shuffled, stitched and as white noise, and what the campaign's generators sample from noise that no stage draws, as
the campaign does and in every bad way.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.phantoms.phantom import KINDS, MODALITY_OF, draw_phantom
from medsyn.data.tables.read import dataset_of
from medsyn.models.cards import read_card, threshold_of
from medsyn.models.scorers import load_selector
from medsyn.stage import CampaignDirectory
from scoring.faults import sampled
from scoring.figures import Figure
from scoring.images import Rating
from scoring.policy import FIRST_INDEX, FRESH_SEED, drawn
from scoring.selector import Answers, broken
from scoring.selectors import CPU, scores

FRESH = 40  # phantoms of each kind and quality
CLEAN, POOR = "phantoms of excellent quality that pass", "phantoms of poor quality, rejected"
GOOD_SAMPLES, BAD_SAMPLES = "images sampled as the campaign does that pass", "images sampled badly, rejected"
Asked = tuple[str, bool, Tensor, list[str]]  # what they are, whether they should pass, uint8 [N, 3, R, R], groups [N]


def figures(root: Path) -> list[Figure]:
    """All figures of the row, of the campaign in `root`."""
    config, directory = configuration.load(root / "config.yaml", []), CampaignDirectory(root)
    used, rated = Answers(), Answers()
    for modality in config.data.modalities:
        selector = load_selector(directory.selector(modality), CPU)
        edges = [threshold_of(read_card(at), modality) for at in (directory.selector(modality), directory.selector())]
        for what, should_pass, pixels, groups in _asked(config, directory, modality):
            given = scores(selector, pixels, [modality] * len(pixels))
            for answers, edge in zip((used, rated), edges, strict=True):
                assert edge is not None, f"no threshold for {modality}: --campaign needs one that has run stage 2"
                for score, group in zip(given, groups, strict=True):
                    is_right = (score >= edge.threshold) == should_pass
                    answers.add(0, Rating("", 3, modality, 3, "", group), what, score, is_right)
    found = _described("auto", used) + _described("of rated images alone", rated)
    spoilt = np.char.startswith(used.of("kind"), BAD_SAMPLES + ": ")
    return found + used.by("kind", "-", spoilt, used.share)


def _described(name: str, answers: Answers) -> list[Figure]:
    kinds, found = answers.of("kind"), []
    broad = np.array([kind.partition(": ")[0] for kind in kinds.tolist()])
    for kind in dict.fromkeys(broad.tolist()):
        rows = broad == kind
        found.append(answers.figure(f"{name}: {kind}", "-", rows, answers.share))
        by = answers.by("modality", "-", rows, answers.share)
        found += [Figure(f"{name}: {kind}, {one.name}", one.interval, one.by_seed, "-") for one in by]
    return found


def _asked(config: Config, directory: CampaignDirectory, modality: str) -> Iterator[Asked]:
    side = config.data.resolution
    its = [kind for kind in KINDS if MODALITY_OF[kind] == modality]
    for what, quality, should_pass in ((CLEAN, 3, True), (POOR, 1, False)):
        fresh = [draw_phantom(k, FIRST_INDEX + n, FRESH_SEED, quality=quality) for k in its for n in range(FRESH)]
        pixels, groups = (drawn(fresh, side) * 255).round().byte(), [f"{one.kind} {one.index}" for one in fresh]
        yield what, should_pass, pixels, groups
        if should_pass:
            for kind, changed in broken(pixels, 0):
                yield f"{kind}, rejected", False, changed, groups
    texts = [row.text for row in dataset_of(config.data).require(True) if row.modality == modality]
    made = sampled(config, directory, modality, texts)
    good = np.setdiff1d(np.arange(len(made.pixels)), made.worse)
    yield GOOD_SAMPLES, True, made.pixels[good], made.group[good].tolist()
    for way in np.unique(made.kind):
        places = made.worse[made.kind == way]
        yield f"{BAD_SAMPLES}: {way}", False, made.pixels[places], made.group[places].tolist()
