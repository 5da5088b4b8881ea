"""Do guided samples show what their prompts ask for?

    python benchmarks/prompt_following.py [--model embedded] [--unet DIRECTORY --protocol B] [--images 216]

Samples images for phantom prompts that are balanced over kinds, findings and sides, exactly as `generate` does, and
lets an independent judge (a classifier trained on phantoms of its own) say what they show. Beside them, judged in the
same run: real phantoms, which show how good the judge is, and real phantoms after one pass through the model's
autoencoder, which show what no sampler can win back. The ratio at the end is samples to real phantoms.

Exit code 0 if the modality is right in at least 90 % and the finding in at least 60 % of the samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from medsyn import config as configuration
from medsyn import disk
from medsyn.data.phantoms.phantom import CAMPAIGNS, KINDS, PRETRAINING, Phantom, draw_phantom
from medsyn.evaluation import judge
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.generation.write.png import quantise
from medsyn.models import weights
from medsyn.models.device import choose_device
from medsyn.models.image_features import shrink
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic

DEMANDED = {"modality": 0.9, "finding": 0.6}
PROMPT_SEED, REAL_SEED = 1_000_003, 1_000_033  # neither a campaign's nor the judge's
FIRST_INDEX = 2_400_000  # beyond the indices of every table that medsyn writes; a multiple of six, for balance


def main() -> int:
    """Run the benchmark."""
    args = arguments()
    torch.set_num_threads(args.threads)
    console = Console()
    config = configuration.validate(
        {
            "data": {"resolution": args.resolution},
            "generation": {
                "scheduler": args.scheduler,
                "num_inference_steps": args.steps,
                "guidance_scale": args.guidance,
                "batch_size": args.batch_size,
            },
        },
        "command line",
    )
    with tempfile.TemporaryDirectory() if args.judge is None else nullcontext(args.judge) as directory:
        console.print("training the judge, unless it is there already")
        expert = judge.load_or_train(Path(directory), judge.JudgeRecipe(protocol=args.protocol))

    device = choose_device(config.device)
    system = load_synthetic(args.model, device.device, device.dtype, unet_from=args.unet)
    phantoms = [
        draw_phantom(kind, FIRST_INDEX + index, PROMPT_SEED, quality=3, protocol=args.protocol)
        for kind in KINDS
        for index in range(args.images // len(KINDS))
    ]
    started = time.perf_counter()
    samples = sample(config, system, phantoms)
    seconds = time.perf_counter() - started

    real, facts = judge.draw(args.images // len(KINDS), REAL_SEED, args.protocol)
    asked = [phantom.label for phantom in phantoms]
    results = {
        "samples": judge.agreement(judge.look(expert, samples), asked),
        "autoencoder": judge.agreement(judge.look(expert, through_autoencoder(system, real)), facts),
        "real": judge.agreement(judge.look(expert, real), facts),
    }
    show(console, results)
    show_kinds(console, expert, phantoms, samples)
    console.print(f"{len(samples)} images, {seconds / len(samples):.2f} s each on {device.device}")
    ratios = {name: ratio(results, name) for name in DEMANDED}
    console.print("samples : real phantoms  " + "  ".join(f"{name} {value:.2f}" for name, value in ratios.items()))
    if args.sheet:
        save_sheet(args.sheet, samples, args.images // len(KINDS))
    if args.json:
        facts_of_run = {
            "model": weights.model_fingerprint(args.model, weights.unet_sha256(args.unet)),
            "images": len(samples),
            "seconds_per_image": seconds / len(samples),
        }
        disk.write_json(args.json, {**facts_of_run, **vars(config.generation), "results": results, "ratios": ratios})
    reached = all(value_of(results["samples"], name) >= least for name, least in DEMANDED.items())
    console.print(f"demanded {DEMANDED}: {'reached' if reached else 'not reached'}")
    return 0 if reached else 1


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default=configuration.EMBEDDED, help="`embedded`, a diffusers directory or a hub id")
    parser.add_argument("--unet", type=Path, help="directory holding a fine-tuned unet/")
    parser.add_argument(
        "--protocol",
        choices=(PRETRAINING, CAMPAIGNS),
        default=PRETRAINING,
        help="how the judge's phantoms are acquired: A as those of pre-training (default), B as those of campaigns",
    )
    parser.add_argument("--images", type=int, default=216, help="samples in all; best a multiple of 36")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--scheduler", default="dpm")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--judge", type=Path, help="directory where the trained judge is kept")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--sheet", type=Path, help="also write the samples here, one PNG, one kind per row")
    return parser.parse_args()


def sample(config: configuration.Config, system: SyntheticSystem, phantoms: Sequence[Phantom]) -> list[np.ndarray]:
    """One image, uint8 [H, W, 3], for each phantom's caption, by the batches that `generate` makes."""
    size = config.generation.batch_size
    images: list[np.ndarray] = []
    batches = [phantoms[start : start + size] for start in range(0, len(phantoms), size)]
    for batch in track(batches, "sampling", transient=True):
        wanted = [(Item(f"{phantom.kind}-{phantom.index}", phantom.caption, 0), 0) for phantom in batch]
        # a picture is grey or colour by its modality, so a batch that holds two of them is looked at twice
        by_modality = {
            modality: ImageSampler(Recipe.of(config, modality), system).sample(wanted).pictures
            for modality in dict.fromkeys(phantom.modality for phantom in batch)
        }
        images += [
            np.broadcast_to(picture, (*picture.shape[:2], 3))
            for position, phantom in enumerate(batch)
            for picture in [by_modality[phantom.modality][position]]
        ]
    return images


def through_autoencoder(system: SyntheticSystem, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the decoder makes of the images' own latents."""
    decoded = []
    for image in images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
        picture = system.decode(system.encode(pixels)[0])[0].permute(1, 2, 0).cpu().numpy()
        decoded.append(quantise(picture, "Fundus"))
    return decoded


def value_of(shares: dict[str, dict[str, Any] | None], aspect: str) -> float:
    """The share of an aspect; 0 if nothing was counted."""
    found = shares[aspect]
    return 0.0 if found is None else float(found["value"])


def ratio(results: dict[str, dict[str, dict[str, Any] | None]], aspect: str) -> float:
    """Samples to real phantoms."""
    return value_of(results["samples"], aspect) / max(value_of(results["real"], aspect), 1e-9)


def _cell(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share['value']:.0f} % ({100 * share['low']:.0f}-{100 * share['high']:.0f})"


def show(console: Console, results: dict[str, dict[str, dict[str, Any] | None]]) -> None:
    """What the judge sees in samples, after the autoencoder and in real phantoms."""
    titles = {"samples": "samples", "autoencoder": "autoencoder", "real": "real phantoms"}
    table = Table("", *judge.ASPECTS, title="right, with the 95 % interval", title_justify="left")
    for key, title in titles.items():
        table.add_row(title, *(_cell(results[key][aspect]) for aspect in judge.ASPECTS))
    console.print(table)


def show_kinds(
    console: Console, expert: judge.Judge, phantoms: Sequence[Phantom], samples: Sequence[np.ndarray]
) -> None:
    """The same for each kind of image."""
    table = Table("", *judge.ASPECTS, title="samples by kind", title_justify="left")
    for kind in KINDS:
        chosen = [index for index, phantom in enumerate(phantoms) if phantom.kind == kind]
        verdicts = judge.look(expert, [samples[index] for index in chosen])
        shares = judge.agreement(verdicts, [phantoms[index].label for index in chosen])
        table.add_row(kind, *(_cell(shares[aspect]) for aspect in judge.ASPECTS))
    console.print(table)


def save_sheet(path: Path, samples: Sequence[np.ndarray], columns: int, most: int = 18, side: int = 96) -> None:
    """A PNG of the first samples of every kind."""
    rows = [samples[start : start + columns][:most] for start in range(0, len(samples), columns)]
    Image.fromarray(np.vstack([np.hstack([shrink(image, side) for image in row]) for row in rows])).save(path)


if __name__ == "__main__":
    sys.exit(main())
