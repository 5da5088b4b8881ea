"""The row `ways`: are samples that are bad on purpose really worse? On phantoms, whose truth is known.

Three judges that no Selector knows: how sure is the classifier of findings of the one that was asked for, is the
picture farther from real phantoms of its kind (hand-made features, nearest three), and does the regression find a lower
quality? A way belongs in `medsyn.training.scorers.ways` if most of its pairs are worse for most of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fast_modes import QualityJudge, through_autoencoder

from medsyn import config as configuration
from medsyn.data.phantoms.phantom import CAMPAIGNS, Label, parse_caption
from medsyn.evaluation import judge
from medsyn.evaluation.metrics import nearest_distances
from medsyn.models.image_features import describe, shrink
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.evidence import weighted_mean
from medsyn.training.scorers.ways import WAYS
from scoring.faults import sampled, texts_of
from scoring.figures import Figure, figure
from scoring.images import RatedImages
from scoring.selectors import CPU, settings

REAL_SEED, REAL = 1_000_037, 120  # phantoms that the regression and the distance know, of each kind
SEEN = ("change of the right finding's probability", "share that is farther", "share of lower quality")


Row = tuple[int, str, str, list[float]]  # seed, group, way, and what each judge finds


class Judges:
    """Three that no Selector knows."""

    def __init__(self) -> None:
        """Train them, each on phantoms of its own."""
        with tempfile.TemporaryDirectory() as folder:
            self._expert = judge.load_or_train(Path(folder))
        drawn, facts = judge.draw(REAL, REAL_SEED, CAMPAIGNS)
        real = through_autoencoder(load_synthetic(configuration.EMBEDDED, CPU, with_unet=False), drawn)
        self._quality = QualityJudge(real, facts)
        self._real = {
            kind: np.stack([describe(one) for one, its in zip(real, facts, strict=True) if its.kind == kind])
            for kind in {its.kind for its in facts}
        }

    def __call__(self, its: Comparisons, seed: int) -> list[Row]:
        """What they find of pairs of phantoms; the groups say what was asked for."""
        pictures = list(its.pixels.permute(0, 2, 3, 1).numpy())
        asked = [parse_caption(str(group).partition(": ")[2]) for group in its.group]
        labels = [label for label in asked if label is not None]
        assert len(labels) == len(pictures), "captions of phantoms"
        sure = self._probabilities(pictures, labels)
        far = [
            nearest_distances(describe(picture)[None], self._real[label.kind])[0]
            for picture, label in zip(pictures, labels, strict=True)
        ]
        fine = self._quality(pictures, labels)
        rows = []
        for good, bad, kind in zip(its.better, its.worse, its.kind, strict=True):
            found = [sure[bad] - sure[good], far[bad] > far[good], fine[bad] < fine[good]]
            rows.append((seed, str(its.group[bad]), str(kind), [float(one) for one in found]))
        return rows

    @torch.no_grad()
    def _probabilities(self, pictures: Sequence[np.ndarray], labels: Sequence[Label]) -> np.ndarray:
        """Of the finding that was asked for, [N]."""
        pixels = torch.from_numpy(np.stack([shrink(one, judge.SIDE) for one in pictures])).permute(0, 3, 1, 2)
        classes = self._expert(pixels.float() / 255)[0].softmax(dim=1).numpy()
        return classes[np.arange(len(labels)), [judge.CLASSES.index((one.kind, one.finding)) for one in labels]]


def figures(images: RatedImages, seeds: int, changes: Sequence[str]) -> list[Figure]:
    """Of each way, the mean over pairs of what each judge finds."""
    judges = Judges()
    rows: list[Row] = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            images.write(Path(folder), images.ratings, [])
            config = settings(images, Path(folder), seed, changes)
            directory = CampaignDirectory(Path(folder) / "campaign")
            for number, modality in enumerate(config.data.modalities):
                finetuning.run(config, Task("finetune", number, slug(modality), modality), directory, Control())
                rows += judges(sampled(config, directory, modality, texts_of(images, modality)), seed)
    return shares(rows)


def shares(rows: Sequence[Row]) -> list[Figure]:
    """A figure for every way and judge."""
    found = []
    for way in WAYS:
        its = [row for row in rows if row[2] == way]
        seeds, groups = np.array([row[0] for row in its]), np.array([row[1] for row in its])
        for place, name in enumerate(SEEN):
            values = np.array([row[3][place] for row in its])
            made = figure(f"{way}: {name}", "-", seeds, groups, lambda at, its=values: weighted_mean(its[at]))
            found.append(made)
    return found
