"""Does fine-tuning the embedded model on real images show: in the held-out loss, and in the distance to real images?

    python benchmarks/finetune_real.py metadata.csv [--seeds 3] [--images 24]
    python benchmarks/finetune_real.py metadata.csv --set finetune.max_train_steps=40 data.modalities='[CT, MRI]'

Fine-tunes every modality of a data set with the settings of configs/tiny.yaml, once for each campaign seed (another
split, other noise), and compares the pretrained with the fine-tuned model on the same things: the denoising loss of
the held-out images at fixed noise and timesteps, and how far images painted for their captions, with the same noise,
are from them. That distance is KID's estimator, the unbiased squared maximum mean discrepancy with a cubic kernel
(Binkowski et al. 2018), but on the hand-made features of the report, not on those of Inception: it is no published KID.

Differences come with 95 % intervals over seeds and images: a bootstrap that draws seeds, then real and painted images
of each. Exit code 0 if both intervals over all modalities exclude 0 on the better side.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from quick_start import MODELS, fine_tuned, interval, losses, systems
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import Config
from medsyn.evaluation import read_campaign
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.models import image_features as features
from medsyn.models.stable_diffusion import SyntheticSystem


@dataclass
class Found:
    """What was measured of one modality of one campaign."""

    losses: np.ndarray  # [N, 2] of the held-out images, before and after
    kernels: tuple[Kernels, Kernels]  # before and after


@dataclass
class Kernels:
    """The cubic kernel within and between real images [N] and painted ones [M]."""

    real: np.ndarray  # [N, N]
    painted: np.ndarray  # [M, M]
    between: np.ndarray  # [N, M]

    @classmethod
    def of(cls, real: np.ndarray, painted: np.ndarray) -> Kernels:
        """From features [N, D] and [M, D]."""

        def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            return (one.astype(float) @ other.T / one.shape[1] + 1) ** 3

        return cls(kernel(real, real), kernel(painted, painted), kernel(real, painted))

    def distance(self, of_real: np.ndarray, of_painted: np.ndarray) -> float:
        """The unbiased squared maximum mean discrepancy of images drawn so many times each.

        Pairs of an image with itself do not count, however often it is drawn.
        """

        def within(kernel: np.ndarray, times: np.ndarray) -> float:
            total = times @ kernel @ times - (times**2) @ np.diag(kernel)
            return float(total / (times.sum() ** 2 - (times**2).sum()))

        between = of_real @ self.between @ of_painted / (of_real.sum() * of_painted.sum())
        return within(self.real, of_real) + within(self.painted, of_painted) - 2 * float(between)

    @property
    def sizes(self) -> tuple[int, int]:
        """(real, painted)."""
        return len(self.real), len(self.painted)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="a data set: path, Text, modality")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=24, help="painted with either model, of each modality")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    table = args.table.absolute()
    console, given = Console(width=110), [f"data.table={table}", f"data.root={table.parent}", "data.strict=false"]
    with tempfile.TemporaryDirectory() as folder:
        # half is held out, so that there is something to compare with
        given += [f"data.ratings_file={_no_ratings(Path(folder), table)}", "data.held_out_fraction=0.5"]
        changes = [*given, "training.stage=1"]
        campaigns = [fine_tuned(Path(folder), number, [*changes, *args.set], console) for number in range(args.seeds)]
        found = [measure(campaign, args.images) for campaign in campaigns]
    return show(console, found)


def _no_ratings(folder: Path, table: Path) -> Path:
    """A table of ratings, which a campaign needs and fine-tuning does not read: of one image of each modality."""
    with table.open(encoding="utf-8-sig", newline="") as read:
        first = {row["modality"]: row for row in reversed(list(csv.DictReader(read)))}
    path = folder / "ratings.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image_path", "rating", "modality", "expert_level", "prompt"])
        for modality, row in first.items():
            writer.writerows([row["path"], rating, modality, 3, row["Text"]] for rating in (1, 3))
    return path


def measure(campaign: Campaign, images: int) -> dict[str, Found]:
    """Both models of every modality, on its held-out images and their captions."""
    config = campaign.config
    real, _ = read_campaign.read_real(config, lambda: None)
    found = {}
    for modality in config.data.modalities:
        held_out = [picture for picture in real.held_out if picture.modality == modality]
        seen = np.stack([features.describe(picture.pixels) for picture in held_out])
        captions = [held_out[number % len(held_out)].text for number in range(images)]
        both = [
            (losses(system, held_out, config.campaign.seed), painted(config, system, modality, captions))
            for system in systems(config, campaign.directory, modality)
        ]
        (before, first), (after, second) = both
        found[modality] = Found(np.stack([before, after], axis=1), (Kernels.of(seen, first), Kernels.of(seen, second)))
    return found


def painted(config: Config, system: SyntheticSystem, modality: str, captions: Sequence[str]) -> np.ndarray:
    """Features [N, D] of an image for each caption, by the batches that `generate` makes."""
    sampler, size = ImageSampler(Recipe.of(config, modality), system), config.generation.images_per_batch
    wanted = [(Item(f"real-{number}", caption, 0), 0) for number, caption in enumerate(captions)]
    described = []
    for start in track(range(0, len(wanted), size), "sampling", transient=True):
        for picture in sampler.sample(wanted[start : start + size]).pictures:
            described.append(features.describe(np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))))
    return np.stack(described)


def distances(found: Sequence[Found], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean distance [2] before and after of some modalities, and of resampled images [draws, 2].

    An image painted before and the one after it from the same noise are drawn together.
    """
    rng = np.random.default_rng(0)

    def mean(resampled: bool) -> np.ndarray:
        values = []
        for one in found:
            drawn = []
            for size in one.kernels[0].sizes:
                chosen = rng.integers(0, size, size) if resampled else np.arange(size)
                drawn.append(np.bincount(chosen, minlength=size).astype(float))
            values.append([kernels.distance(*drawn) for kernels in one.kernels])
        return np.mean(values, axis=0)

    return mean(False), np.array([mean(True) for _ in range(draws)])


def distance_interval(by_seed: Sequence[Sequence[Found]], draws: int = 1000) -> tuple[np.ndarray, float, float]:
    """The mean distances [2], and the 95 % interval of their difference over seeds and images."""
    measured = [distances(found, draws) for found in by_seed]
    rng = np.random.default_rng(1)
    seeds = rng.integers(0, len(measured), (draws, len(measured)))
    resampled = np.stack([drawn[:, 1] - drawn[:, 0] for _, drawn in measured], axis=1)  # [draws, seeds]
    differences = np.take_along_axis(resampled, seeds, axis=1).mean(axis=1)
    low, high = np.percentile(differences, (2.5, 97.5))
    return np.mean([values for values, _ in measured], axis=0), float(low), float(high)


def show(console: Console, found: Sequence[dict[str, Found]]) -> int:
    """Print both tables; the exit code."""
    better = []
    for name in ("held-out loss", "distance"):
        sizes = "images" if name == "held-out loss" else "real, painted"
        table = Table("", sizes, *MODELS, "difference (95 %)", title=name, title_justify="left")
        for modality in (*found[0], None):
            by_seed = [[one[its] for its in one if modality in (None, its)] for one in found]
            if name == "distance":
                means, low, high = distance_interval(by_seed)
                count = f"{sum(len(f.losses) for f in by_seed[0])}, {sum(f.kernels[0].sizes[1] for f in by_seed[0])}"
            else:
                pairs = [np.concatenate([f.losses for f in its]) for its in by_seed]
                means = np.concatenate(pairs).mean(axis=0)
                _, low, high = interval([its[:, 1] - its[:, 0] for its in pairs])
                count = str(len(pairs[0]))
            between = f"{means[1] - means[0]:+.4f} [{low:+.4f}, {high:+.4f}]"
            table.add_row(modality or "all", count, *(f"{value:.4f}" for value in means), between)
        better.append(high < 0)
        console.print(table)
    console.print("fine-tuning shows in both" if all(better) else "fine-tuning does not show in both")
    return 0 if all(better) else 1


if __name__ == "__main__":
    sys.exit(main())
