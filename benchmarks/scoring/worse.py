"""The row `ways`: are samples that are bad on purpose really worse? On phantoms, whose truth is known.

Three judges that no Selector knows: does the classifier of findings still see the finding that was asked for, is the
picture farther from real phantoms of its kind (hand-made features, nearest three), and does the regression find a lower
quality? A way belongs in `medsyn.training.scorers.ways` if most of its pairs are worse for most of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fast_modes import QualityJudge, through_autoencoder

from medsyn import config as configuration
from medsyn.data.phantoms.phantom import CAMPAIGNS, parse_caption
from medsyn.evaluation import judge
from medsyn.evaluation.features import describe
from medsyn.evaluation.metrics import nearest_distances
from medsyn.models.stable_diffusion import load_synthetic
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.finetune import stage as finetuning
from medsyn.training.scorers.evidence import weighted_mean
from medsyn.training.scorers.ways import WAYS
from scoring.faults import sampled
from scoring.figures import Figure, figure
from scoring.images import RatedImages
from scoring.selectors import CPU, settings

REAL_SEED, REAL = 1_000_037, 120  # phantoms that the regression and the distance know, of each kind
SEEN = ("finding lost", "farther from real ones", "lower quality")


def figures(images: RatedImages, seeds: int, changes: Sequence[str]) -> list[Figure]:
    """Of each way the share of pairs that each judge finds worse."""
    with tempfile.TemporaryDirectory() as folder:
        expert = judge.load_or_train(Path(folder))
    drawn, facts = judge.draw(REAL, REAL_SEED, CAMPAIGNS)
    real = through_autoencoder(load_synthetic(configuration.EMBEDDED, CPU, with_unet=False), drawn)
    quality = QualityJudge(real, facts)
    known = {
        kind: np.stack([describe(one) for one, its in zip(real, facts, strict=True) if its.kind == kind])
        for kind in {its.kind for its in facts}
    }
    rows: list[tuple[int, str, str, list[float]]] = []  # seed, group, way, what the judges find worse
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            images.write(Path(folder), images.ratings, [])
            config = settings(images, Path(folder), seed, changes)
            directory = CampaignDirectory(Path(folder) / "campaign")
            for number, modality in enumerate(config.data.modalities):
                finetuning.run(config, Task("finetune", number, slug(modality), modality), directory, Control())
                its = sampled(images, config, directory, modality)
                pictures = list(its.pixels.permute(0, 2, 3, 1).numpy())
                asked = [parse_caption(str(group).partition(": ")[2]) for group in its.group]
                labels = [label for label in asked if label is not None]
                assert len(labels) == len(pictures), "captions of phantoms"
                right = [
                    (seen.kind, seen.finding) == (label.kind, label.finding)
                    for seen, label in zip(judge.look(expert, pictures), labels, strict=True)
                ]
                far = [
                    nearest_distances(describe(picture)[None], known[label.kind])[0]
                    for picture, label in zip(pictures, labels, strict=True)
                ]
                fine = quality(pictures, labels)
                for better, worse, kind in zip(its.better, its.worse, its.kind, strict=True):
                    found = [right[better] > right[worse], far[worse] > far[better], fine[worse] < fine[better]]
                    rows.append((seed, str(its.group[worse]), str(kind), [float(one) for one in found]))
    return [_share(rows, way, place) for way in WAYS for place in range(len(SEEN))]


def _share(rows: Sequence[tuple[int, str, str, list[float]]], way: str, place: int) -> Figure:
    its = [row for row in rows if row[2] == way]
    values = np.array([row[3][place] for row in its])
    seeds, groups = np.array([row[0] for row in its]), np.array([row[1] for row in its])
    return figure(f"{way}: {SEEN[place]}", "-", seeds, groups, lambda chosen: weighted_mean(values[chosen]))
