"""Does the quick start's fine-tuning show in the images?

    python benchmarks/quick_start.py [--seeds 3] [--images-per-kind 6]
    python benchmarks/quick_start.py --campaign runs/tiny    # a campaign that has been fine-tuned already

Fine-tunes all modalities of configs/tiny.yaml, once for each campaign seed (other phantoms, other noise), and compares
the pretrained with the fine-tuned model on the same things: the denoising loss of the held-out images at fixed noise
and timesteps, and what an independent judge sees in images painted for the same prompts with the same noise. Each
difference comes with its 95 % interval over seeds and images (a bootstrap that draws seeds, then images of each).

Exit code 0 if the intervals of the loss and of the finding exclude 0 on the better side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from prompt_following import FIRST_INDEX, sample
from rich.console import Console
from rich.table import Table
from torch import Tensor

from medsyn import config as configuration
from medsyn.campaign.plan import prepare
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.data.phantoms.phantom import KINDS, MODALITY_OF, draw_phantom
from medsyn.evaluation import judge, read_campaign
from medsyn.evaluation.generated import Picture
from medsyn.models.device import choose_device
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control
from medsyn.training.finetune import stage as finetune

ROOT = Path(__file__).parents[1]
TIMESTEPS = range(50, 1000, 100)
MEASURES = ("held-out loss", "kind", "finding")
BETTER = {"held-out loss": -1, "kind": 1, "finding": 1}  # the sign of a better difference
MODELS = ("pretrained", "fine-tuned")


@dataclass
class Seed:
    """What was measured of one campaign: pairs [N, 2] of pretrained and fine-tuned, by modality and measure."""

    pairs: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    def of(self, measure: str, modality: str | None = None) -> np.ndarray:
        """The pairs [N, 2] of a measure, of one modality or of all."""
        chosen = [pairs for (its, name), pairs in self.pairs.items() if name == measure and modality in (None, its)]
        return np.concatenate(chosen) if chosen else np.empty((0, 2))


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--campaign", type=Path, help="directory of a campaign that has been fine-tuned")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--images-per-kind", type=int, default=6, help="painted with either model; best a multiple of 6"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the configuration")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        expert = judge.load_or_train(Path(temporary, "judge"))
        if args.campaign:
            campaigns = [campaign_file.open_campaign(args.campaign)]
        else:
            campaigns = [fine_tuned(Path(temporary), number, args.set, console) for number in range(args.seeds)]
        found = [measure(campaign, expert, args.images_per_kind) for campaign in campaigns]
    show(console, found, campaigns[0].config.data.modalities)
    missed = [name for name in ("held-out loss", "finding") if not is_better(name, found)]
    console.print(f"fine-tuning does not show in: {', '.join(missed)}" if missed else "fine-tuning shows in both")
    return 1 if missed else 0


def fine_tuned(folder: Path, number: int, changes: Sequence[str], console: Console) -> Campaign:
    """A campaign of configs/tiny.yaml with this seed, all its modalities fine-tuned by the stage itself."""
    given = [f"campaign.seed={number}", f"campaign.dir={folder / str(number)}", *changes]
    campaign = prepare.prepare(configuration.load(ROOT / "configs" / "tiny.yaml", given), before=None)
    for planned in campaign.plan.by_stage["finetune"]:
        started = time.monotonic()
        finetune.run(campaign.config, planned.task, campaign.directory, Control())
        console.print(f"seed {number}: {planned.task.name} in {time.monotonic() - started:.0f} s")
    return campaign


def measure(campaign: Campaign, expert: judge.Judge, images_per_kind: int) -> Seed:
    """Both models of every modality on the held-out images and on prompts of their own."""
    config, found = campaign.config, Seed()
    real, _ = read_campaign.read_real(config, lambda: None)
    for modality in config.data.modalities:
        held_out = [picture for picture in real.held_out if picture.modality == modality]
        phantoms = [
            draw_phantom(kind, FIRST_INDEX + index, config.campaign.seed, quality=3)
            for kind in KINDS
            if MODALITY_OF[kind] == modality
            for index in range(images_per_kind)
        ]
        asked = [phantom.label for phantom in phantoms]
        columns: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
        for system in systems(config, campaign.directory, modality):
            columns["held-out loss"].append(losses(system, held_out, config.campaign.seed))
            seen = judge.look(expert, sample(config, system, phantoms))
            kinds = [one.kind == label.kind for one, label in zip(seen, asked, strict=True)]
            findings = [one.finding == label.finding for one, label in zip(seen, asked, strict=True)]
            columns["kind"].append(np.array(kinds, float))
            columns["finding"].append(np.array(kinds, float) * np.array(findings, float))
        found.pairs |= {(modality, name): np.stack(values, axis=1) for name, values in columns.items()}
    return found


def systems(config: configuration.Config, directory: CampaignDirectory, modality: str) -> list[SyntheticSystem]:
    """The pretrained and the fine-tuned model."""
    device, source = choose_device(config.device), config.model_paths.stable_diffusion
    unets = (None, directory.finetuned_unet(modality))
    return [load_synthetic(source, device.device, device.dtype, unet_from=unet) for unet in unets]


@torch.no_grad()
def losses(system: SyntheticSystem, pictures: Sequence[Picture], campaign_seed: int) -> np.ndarray:
    """The denoising error [N] of each image: what the model should predict, at ten timesteps, each with fixed noise."""
    scheduler = DDPMScheduler.from_config(system.scheduler_config)
    timesteps = torch.tensor(TIMESTEPS)
    is_velocity = system.prediction_type == "v_prediction"
    errors = []
    for number, picture in enumerate(pictures):
        pixels = torch.from_numpy(picture.pixels.copy()).permute(2, 0, 1)[None].float() / 255
        mean, _ = system.encode(pixels)
        latents = mean.float().cpu().expand(len(timesteps), -1, -1, -1)
        generator = torch.Generator().manual_seed(seed(campaign_seed, "quick start", number) % 2**63)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = scheduler.get_velocity(latents, noise, timesteps) if is_velocity else noise
        hidden = system.embed(picture.text)[0]
        errors.append(float((_predict(system, noisy, timesteps, hidden) - target).square().mean()))
    return np.array(errors)


def _predict(system: SyntheticSystem, noisy: Tensor, timesteps: Tensor, hidden: Tensor) -> Tensor:
    unet = system.unet
    hidden = hidden.to(unet.device, unet.dtype).expand(len(noisy), -1, -1)
    return unet(noisy.to(unet.device, unet.dtype), timesteps.to(unet.device), hidden).sample.float().cpu()


def interval(per_seed: Sequence[np.ndarray], draws: int = 4000) -> tuple[float, float, float]:
    """Mean of the values [N] of all seeds and its 95 % interval: seeds are drawn, then values of each."""
    rng = np.random.default_rng(0)
    means = [
        np.mean(
            [rng.choice(per_seed[i], len(per_seed[i])).mean() for i in rng.integers(0, len(per_seed), len(per_seed))]
        )
        for _ in range(draws)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(np.mean([values.mean() for values in per_seed])), float(low), float(high)


def differences(name: str, found: Sequence[Seed], modality: str | None = None) -> list[np.ndarray]:
    """Fine-tuned less pretrained, of every image, by seed."""
    return [pairs[:, 1] - pairs[:, 0] for pairs in (one.of(name, modality) for one in found) if len(pairs)]


def is_better(name: str, found: Sequence[Seed]) -> bool:
    """Whether the interval of the difference over all modalities excludes 0 on the better side."""
    _, low, high = interval(differences(name, found))
    return low > 0 if BETTER[name] > 0 else high < 0


def show(console: Console, found: Sequence[Seed], modalities: Sequence[str]) -> None:
    """One table for each measure: a row for each modality, and one for all."""
    for name in MEASURES:
        scale, unit = (1, "") if name == "held-out loss" else (100, " %")
        table = Table("", "images", *MODELS, "difference (95 %)", title=f"{name}{unit}", title_justify="left")
        for modality in (*modalities, None):
            pairs = np.concatenate([one.of(name, modality) for one in found])
            if not len(pairs):
                continue
            digits = 4 if scale == 1 else 0
            values = [f"{scale * value:.{digits}f}" for value in pairs.mean(axis=0)]
            mean, low, high = (scale * value for value in interval(differences(name, found, modality)))
            between = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            table.add_row(modality or "all", str(len(pairs)), *values, between)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
