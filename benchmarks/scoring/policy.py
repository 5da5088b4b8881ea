"""Does the Policy know what its prompts say? Win rates against false prompts, with ever more ratings.

    python benchmarks/policy.py                                   # phantoms, default configuration
    python benchmarks/policy.py --ratings 50 100 200 all --seeds 5
    python benchmarks/policy.py --data DIRECTORY                  # captioned images and ratings of your own
    python benchmarks/policy.py --set policy_model.encoder=vit    # any key of the configuration

On phantoms: stage 1 of RLHF as `configs/tiny.yaml` has it (the Policy alone), then phantoms of another seed, that
nobody chose anything by, each under its own caption and under captions with another finding, the other side, or of
another kind. A win rate is how often the own caption scores higher; half counts for a draw.

On real images: DIRECTORY holds metadata.csv (path, Text, modality, and patient_id or, beside it, provenance.csv with
path and patient) and ratings.csv. Patients are split into folds; each fold is scored by a Policy trained on the others,
under its own caption, other captions of its modality and captions of other modalities.

Intervals are bootstraps over images (phantoms) or patients (real), of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn.config import Config
from medsyn.data.images.pixels import fit_square
from medsyn.data.images.read import read_image
from medsyn.data.phantoms.dataset import write_dataset
from medsyn.data.phantoms.phantom import FINDINGS, KINDS, MODALITY_OF, Label, Phantom, draw_phantom, render
from medsyn.data.tables.read import ImageRow, read_dataset
from medsyn.models.policy import Policy
from medsyn.models.scorers import load_policy
from medsyn.models.scores import Interval
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.scorers.evidence import interval, weighted_auroc, weighted_mean
from medsyn.training.scorers.stages import run_stage1

TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
FRESH_SEED, FIRST_INDEX = 991, 3_000_000  # of phantoms that no campaign and no other benchmark draws
AIMS = {"other finding": 0.97, "other side": 0.97, "other modality": 0.97, "same modality": 0.75}
CPU = torch.device("cpu")


@dataclass
class Outcomes:
    """What was compared, by what the comparison is about: a value 0..1 and a group for each, over all seeds."""

    values: dict[str, list[float]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, group: str, own: float, others: Iterable[float]) -> None:
        """How an image's own text does against others."""
        wins = [float(own > other) + 0.5 * (own == other) for other in others]
        if wins:
            self.values.setdefault(what, []).append(float(np.mean(wins)))
            self.groups.setdefault(what, []).append(group)

    def interval(self, what: str) -> Interval:
        """Their mean and its interval."""
        return interval(np.array(self.groups[what]), weighted_mean(np.array(self.values[what])))


def main() -> int:
    """Run the benchmark."""
    args = arguments()
    torch.set_num_threads(args.threads)
    console = Console()
    for number in args.ratings:
        started = time.perf_counter()
        if args.data is None:
            outcomes, rated = on_phantoms(args.set, number, args.seeds, args.phantoms)
        else:
            outcomes, rated = on_real(args.data, args.set, number, args.seeds, args.folds), None
        title = f"{number or 'all'} ratings, {args.seeds} seeds, {time.perf_counter() - started:.0f} s"
        show(console, title, outcomes, rated)
    return 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--ratings", nargs="+", type=_count, default=[None], help="how many to train on; all by default"
    )
    parser.add_argument("--seeds", type=int, default=1, help="campaign seeds, from 0")
    parser.add_argument("--phantoms", type=int, default=48, help="fresh phantoms of each kind; best a multiple of six")
    parser.add_argument("--data", type=Path, help="real images: a directory with metadata.csv and ratings.csv")
    parser.add_argument("--folds", type=int, default=4, help="of the patients of real images")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="configuration, as on `medsyn submit`"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    return parser.parse_args()


def _count(written: str) -> int | None:
    return None if written == "all" else int(written)


def show(console: Console, title: str, outcomes: Outcomes, rated: Interval | None) -> None:
    """Print one table."""
    table = Table(title=title)
    for column in ("win rate against", "value", "95 % interval", "groups", "aim"):
        table.add_column(column)
    for what in sorted(outcomes.values, key=lambda what: (what not in AIMS, what)):
        table.add_row(what, *_cells(outcomes.interval(what)), _number(AIMS.get(what)))
    if rated is not None:
        table.add_row("AUROC, rating 1 against 2-3", *_cells(rated), "")
    console.print(table)


def _cells(of: Interval) -> tuple[str, str, str]:
    return _number(of.value), f"{_number(of.low)} .. {_number(of.high)}", str(of.n)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


# -- phantoms ----------------------------------------------------------------------------------------------------------


def on_phantoms(changes: Sequence[str], ratings: int | None, seeds: int, per_kind: int) -> tuple[Outcomes, Interval]:
    """Train on the phantoms of configs/tiny.yaml and ask about fresh ones.

    Args:
        changes: `key=value` on top of the configuration.
        ratings: that are trained on; None: all.
        seeds: of the campaign and of its phantoms.
        per_kind: fresh phantoms of each kind.
    """
    fresh = [draw_phantom(k, FIRST_INDEX + n, FRESH_SEED, quality=3) for k in KINDS for n in range(per_kind)]
    rated = [draw_phantom(k, FIRST_INDEX + n, FRESH_SEED, quality=1 + n % 3) for k in KINDS for n in range(per_kind)]
    outcomes, scores = Outcomes(), []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            config = tiny_config(Path(folder), changes, ratings, seed)
            policy, system = train(config, Path(folder) / "campaign")
        ask_about(policy, system, config.data.resolution, fresh, outcomes)
        scores.append(under_requests(policy, system, config.data.resolution, rated))
    good = np.array([phantom.quality > 1 for phantom in rated])
    names = np.tile([str(number) for number in range(len(rated))], seeds)
    return outcomes, interval(names, weighted_auroc(np.concatenate(scores), np.tile(good, seeds)))


def under_requests(policy: Policy, system: SyntheticSystem, side: int, phantoms: Sequence[Phantom]) -> np.ndarray:
    """The scores of phantoms of every quality under prompts that ask for the best: float64 [N]."""
    pixels, scores = drawn(phantoms, side), np.zeros(len(phantoms))
    for modality in sorted({phantom.modality for phantom in phantoms}):
        its = [number for number, phantom in enumerate(phantoms) if phantom.modality == modality]
        texts = [caption(phantoms[number].label._replace(quality=3)) for number in its]
        scores[its] = score(policy, system, pixels[its], texts, modality)
    return scores


def tiny_config(folder: Path, changes: Sequence[str], ratings: int | None, seed: int) -> Config:
    """configs/tiny.yaml with its phantoms drawn, and its table of ratings cut to so many rows, by lot."""
    phantoms, data = configuration.load(TINY, changes).data.phantoms, folder / "phantoms"
    write_dataset(data, phantoms.images_per_kind, phantoms.prompts_per_kind, phantoms.image_size, seed)
    cut(data / "ratings.csv", ratings, seed)
    return of_tables(data, sorted(set(MODALITY_OF.values())), changes, seed)


def of_tables(folder: Path, modalities: Sequence[str], changes: Sequence[str], seed: int) -> Config:
    """configs/tiny.yaml on the tables metadata.csv and ratings.csv of a folder, with the Policy alone to train."""
    tables = [f"data.table={folder / 'metadata.csv'}", f"data.ratings_file={folder / 'ratings.csv'}"]
    listed = f"data.modalities=[{', '.join(modalities)}]"
    own = [f"campaign.seed={seed}", "training.stage1.train_selector=false", "generation.modes=[baseline]"]
    own += ["align.enabled=false"]  # a judge would keep ratings for itself
    return configuration.load(TINY, [*changes, *tables, listed, *own])


def cut(table: Path, rows: int | None, seed: int) -> None:
    """Leave so many rows of a CSV, by lot."""
    header, *lines = table.read_text().splitlines()
    kept = np.sort(np.random.default_rng(seed).permutation(len(lines))[:rows])
    table.write_text("\n".join([header, *(lines[n] for n in kept)]) + "\n")


def train(config: Config, root: Path) -> tuple[Policy, SyntheticSystem]:
    """Stage 1 of RLHF."""
    directory = CampaignDirectory(root)
    run_stage1(config, Task("rlhf-stage1", 0, "all"), directory, Control())
    system = load_synthetic(config.model_paths.stable_diffusion, CPU, with_unet=False)
    return load_policy(directory.policy(), CPU), system


def drawn(phantoms: Sequence[Phantom], side: int) -> torch.Tensor:
    """Their pictures, float32 [N, 3, S, S], drawn larger and shrunk as a campaign's are."""
    pictures = [np.round(fit_square(render(phantom, 2 * side), side) * 255) / 255 for phantom in phantoms]
    stacked = np.stack([np.broadcast_to(one, (side, side, 3)) for one in pictures])
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2), dtype=np.float32))


def caption(label: Label) -> str:
    """The caption of a phantom with this label."""
    return Phantom(*label, index=0, seed=0).caption


def ask_about(
    policy: Policy, system: SyntheticSystem, side: int, phantoms: Sequence[Phantom], outcomes: Outcomes
) -> None:
    """Score every phantom under its own caption and under false ones."""
    pictures = drawn(phantoms, side)
    for phantom, pixels in zip(phantoms, pictures, strict=True):
        false = false_captions(phantom)
        texts = [phantom.caption, *(text for _, text in false)]
        own, *others = score(policy, system, pixels.expand(len(texts), -1, -1, -1), texts, phantom.modality).tolist()
        by_kind: dict[str, list[float]] = {}
        for (what, _), value in zip(false, others, strict=True):
            by_kind.setdefault(what, []).append(value)
        for what, values in by_kind.items():
            outcomes.add(what, f"{phantom.kind} {phantom.index}", own, values)
            outcomes.add(f"{what}, {phantom.kind}", f"{phantom.index}", own, values)


def false_captions(phantom: Phantom) -> list[tuple[str, str]]:
    """(what is false, caption): another finding, the other side, or another kind with the same place in its list."""
    kind, finding, side, quality = phantom.label
    found: list[tuple[str, str]] = []
    for other in FINDINGS[kind]:
        if other == finding:
            continue
        sides = (side,) if side else ("left", "right")
        is_normal = other == FINDINGS[kind][0] and kind not in ("OCT", "Fundus")
        found += [("other finding", caption(Label(kind, other, None if is_normal else s, quality))) for s in sides]
    if side:
        found.append(("other side", caption(Label(kind, finding, "left" if side == "right" else "right", quality))))
    place = FINDINGS[kind].index(finding)
    for other in KINDS:
        if other != kind:
            its = FINDINGS[other][place]
            has_side = other in ("OCT", "Fundus") or place > 0
            found.append(("other kind", caption(Label(other, its, (side or "left") if has_side else None, quality))))
    return list(dict.fromkeys(found))


def score(
    policy: Policy, system: SyntheticSystem, pixels: torch.Tensor, texts: Sequence[str], modality: str
) -> np.ndarray:
    """The Policy's scores of images of one modality, each under its text: float64 [N]."""
    pooled = torch.stack([system.embed(text)[1] for text in texts])
    parts = [
        policy.score(some, its, modality).score.double()
        for some, its in zip(pixels.split(64), pooled.split(64), strict=True)
    ]
    return torch.cat(parts).numpy()


# -- real images -------------------------------------------------------------------------------------------------------


def on_real(data: Path, changes: Sequence[str], ratings: int | None, seeds: int, folds: int) -> Outcomes:
    """Every patient's images, under a Policy that was trained on the others'."""
    rows = read_dataset(data / "metadata.csv").rows
    patient = patients(data, rows)
    outcomes = Outcomes()
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(sorted(set(patient.values())))
        fold_of = {name: number % folds for number, name in enumerate(order)}
        for fold in range(folds):
            with tempfile.TemporaryDirectory() as folder:
                config = real_config(Path(folder), data, rows, patient, changes, ratings, seed, fold, fold_of)
                policy, system = train(config, Path(folder) / "campaign")
            held_out = [row for row in rows if fold_of[patient[row.file]] == fold]
            ask_about_real(policy, system, config.data.resolution, rows, held_out, patient, outcomes)
    return outcomes


def patients(data: Path, rows: Sequence[ImageRow]) -> dict[str, str]:
    """The patient of every file that the tables name, or the file itself."""
    found = {row.file: row.patient_id or row.file for row in rows}
    if (data / "provenance.csv").is_file():
        with (data / "provenance.csv").open() as lines:
            found |= {row["path"]: row["patient"] for row in csv.DictReader(lines) if row["patient"]}
    if (data / "ratings_provenance.csv").is_file():
        with (data / "ratings_provenance.csv").open() as lines:
            found |= {row["image_path"]: found.get(row["base"], row["base"]) for row in csv.DictReader(lines)}
    return found


def real_config(
    folder: Path,
    data: Path,
    rows: Sequence[ImageRow],
    patient: Mapping[str, str],
    changes: Sequence[str],
    ratings: int | None,
    seed: int,
    fold: int,
    fold_of: Mapping[str, int],
) -> Config:
    """configs/tiny.yaml on the images of the other folds' patients."""

    def is_kept(file: str) -> bool:
        return fold_of.get(patient.get(file, file), -1) != fold

    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("path", "Text", "modality", "patient_id"))
        writer.writerows((r.file, r.text, r.modality, patient[r.file]) for r in rows if is_kept(r.file))
    with (data / "ratings.csv").open() as lines, (folder / "ratings.csv").open("w", newline="") as table:
        reader = csv.DictReader(lines)
        names = list(dict.fromkeys([*(reader.fieldnames or []), "group"]))
        writer_of_rows = csv.DictWriter(table, names)
        writer_of_rows.writeheader()
        kept = [row for row in reader if is_kept(row["image_path"])]
        writer_of_rows.writerows({**row, "group": patient.get(row["image_path"], row["image_path"])} for row in kept)
    cut(folder / "ratings.csv", ratings, seed)
    return of_tables(folder, sorted({row.modality for row in rows}), [*changes, f"data.root={data.resolve()}"], seed)


def ask_about_real(
    policy: Policy,
    system: SyntheticSystem,
    side: int,
    rows: Sequence[ImageRow],
    held_out: Sequence[ImageRow],
    patient: Mapping[str, str],
    outcomes: Outcomes,
) -> None:
    """Score held-out images under every caption of the table."""
    modality_of = {row.text: row.modality for row in rows}
    texts = list(modality_of)
    for row in held_out:
        picture = fit_square(read_image(row.path, row.modality, row.volume).pixels, side)
        pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))[None]
        scores = score(policy, system, pixels.expand(len(texts), -1, -1, -1), texts, row.modality)
        own = float(scores[texts.index(row.text)])
        of = {text: float(value) for text, value in zip(texts, scores, strict=True) if text != row.text}
        same = [value for text, value in of.items() if modality_of[text] == row.modality]
        other = [value for text, value in of.items() if modality_of[text] != row.modality]
        outcomes.add("same modality", patient[row.file], own, same)
        outcomes.add(f"same modality, {row.modality}", patient[row.file], own, same)
        outcomes.add("other modality", patient[row.file], own, other)
