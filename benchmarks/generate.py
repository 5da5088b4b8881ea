"""How fast images are made, side by side in one run: medsyn's painter, the specification's loop, diffusers' pipeline.

(a) the specification's loop: one prompt per call of a diffusers pipeline, 50 steps of PNDM, one image at a time;
(b) diffusers' pipeline with a batch, as many steps as medsyn, the same scheduler;
(c) medsyn: the painter that `generate` uses, with files encoded and written beside it.

    python benchmarks/generate.py --shape tiny            the embedded model
    python benchmarks/generate.py --shape sd15            SD v1.5's shape with random weights (a GPU, or patience)

Prints images per second of each, medsyn's ratio to (a) and (b), the share of its time inside UNet and VAE, UNet rows
per image, and on a GPU the achieved rate against that of a large matrix product on the same card.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from medsyn.config import DeviceSection, GenerationSection
from medsyn.generation.background import Writer
from medsyn.generation.block import Order, make_block
from medsyn.generation.filter import Rule
from medsyn.generation.painter import Painter, Recipe
from medsyn.generation.sampler import build_scheduler
from medsyn.generation.shard import Item
from medsyn.models import weights
from medsyn.models.device import choose_device
from medsyn.models.synthetic import SyntheticSystem, load_synthetic

SPECIFICATION_STEPS = 50
PROMPTS = ["X-Ray: clear lungs", "X-Ray: effusion, left", "X-Ray: nodule, right", "X-Ray: cardiomegaly"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("tiny", "sd15"), default="tiny")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--images", type=int, default=32, help="images of (b) and (c); (a) makes a quarter of them")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


def sd15(system: SyntheticSystem) -> None:
    """Put random weights of SD v1.5's shape into `system`; speed does not depend on their values."""
    device, dtype = system.device, system.dtype
    with torch.device(device):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=system.tokenizer.vocab_size,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                eos_token_id=system.tokenizer.eos_token_id,
            )
        )
    system.unet = unet.to(dtype).eval().requires_grad_(False)
    system.vae = vae.eval().requires_grad_(False)
    system.text_encoder = text.to(dtype).eval().requires_grad_(False)


@dataclass
class Inside:
    """Seconds and calls inside modules; a GPU is waited for at both ends, which costs a little."""

    device: torch.device
    seconds: float = 0.0
    _started: list[float] = field(default_factory=list)

    def enter(self, *_: Any) -> None:
        """Before a forward pass."""
        synchronise(self.device)
        self._started.append(time.perf_counter())

    def leave(self, *_: Any) -> None:
        """After a forward pass."""
        synchronise(self.device)
        self.seconds += time.perf_counter() - self._started.pop()

    @contextmanager
    def watching(self, *modules: nn.Module) -> Iterator[Inside]:
        """Count what the modules take."""
        hooks = [
            hook
            for m in modules
            for hook in (m.register_forward_pre_hook(self.enter), m.register_forward_hook(self.leave))
        ]
        try:
            yield self
        finally:
            for hook in hooks:
                hook.remove()


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(device: torch.device, body: Callable[[], Any]) -> float:
    """Seconds that `body` takes."""
    synchronise(device)
    started = time.perf_counter()
    body()
    synchronise(device)
    return time.perf_counter() - started


def pipeline(system: SyntheticSystem, scheduler: str, steps: int) -> StableDiffusionPipeline:
    """A plain diffusers pipeline of the same parts, in one precision as people use it."""
    made = StableDiffusionPipeline(
        vae=system.vae,
        text_encoder=system.text_encoder,
        tokenizer=system.tokenizer,
        unet=system.unet,
        scheduler=build_scheduler(scheduler, system.scheduler_config, steps),  # type: ignore[arg-type]
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def specification_loop(system: SyntheticSystem, images: int, resolution: int) -> None:
    """One image per call, 50 steps."""
    pipe = pipeline(system, "pndm", SPECIFICATION_STEPS)
    for number in range(images):
        pipe(PROMPTS[number % 4], height=resolution, width=resolution, num_inference_steps=SPECIFICATION_STEPS)


def diffusers_batches(system: SyntheticSystem, images: int, resolution: int, steps: int, batch: int) -> None:
    """Batches through the pipeline."""
    pipe = pipeline(system, "dpm", steps)
    for start in range(0, images, batch):
        prompts = [PROMPTS[number % 4] for number in range(start, start + batch)]
        pipe(prompts, height=resolution, width=resolution, num_inference_steps=steps)


def medsyn_blocks(painter: Painter, images: int, folder: Path) -> None:
    """Blocks of four batches, committed to disk."""
    rule = Rule.of(GenerationSection(), "baseline")
    facts = {"modality": "X-Ray", "mode": "baseline", "model_fingerprint": "-", "config_fingerprint": "-"}
    size = 4 * painter.recipe.batch_size
    items = [Item(f"x-{number}", PROMPTS[number % 4], 0) for number in range(images)]
    with Writer() as writer:
        for start in range(0, images, size):
            order = Order(folder / f"block-{start:06d}", items[start : start + size], rule, facts, {})
            make_block(order, painter, writer, lambda settled: None)


def unet_tflop(system: SyntheticSystem, painter: Painter) -> float:
    """Floating point operations, in 10^12, of one row through the UNet."""
    from torch.utils.flop_counter import FlopCounterMode

    latents = torch.zeros(1, *system.latent_shape(painter.recipe.height), device=system.device, dtype=system.dtype)
    hidden = system.embed(PROMPTS[0])[0][None].to(system.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        system.unet(latents, torch.tensor(1, device=system.device), encoder_hidden_states=hidden)
    return float(counter.get_total_flops()) / 1e12


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of a square matrix product, the best of several."""
    one, other = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(device, lambda: one @ other) for _ in range(20)) / 1e12


def measure(args: argparse.Namespace) -> dict[str, float | str]:
    """All numbers of one run."""
    chosen = choose_device(DeviceSection(cpu_threads=args.threads))
    system = load_synthetic(str(weights.embedded_directory()), chosen.device, chosen.dtype)
    if args.shape == "sd15":
        sd15(system)
    recipe = Recipe("X-Ray", 0, args.resolution, args.resolution, "dpm", args.steps, 7.5, args.batch_size)
    painter = Painter(recipe, system)
    device, alone = system.device, max(args.images // 4, 1)
    items = [Item(f"w-{number}", PROMPTS[number % 4], 0) for number in range(args.batch_size)]
    painter.paint([(item, 0) for item in items])  # kernels are chosen at the first call
    rates: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):  # in turns: what else the machine does hits all alike
            baseline = partial(specification_loop, system, alone, args.resolution)
            batches = partial(diffusers_batches, system, args.images, args.resolution, args.steps, args.batch_size)
            ours = partial(medsyn_blocks, painter, args.images, Path(folder) / str(number))
            rates["a"].append(alone / timed(device, baseline))
            rates["b"].append(args.images / timed(device, batches))
            rates["c"].append(args.images / timed(device, ours))
        best = {name: max(values) for name, values in rates.items()}
        with Inside(device).watching(system.unet, system.vae.decoder) as inside:
            watched = timed(device, lambda: medsyn_blocks(painter, args.images, Path(folder) / "watched"))
    rows = painter.paint([(item, 1) for item in items]).unet_evaluations / len(items)
    tflop = unet_tflop(system, painter)
    peak = matrix_rate(device, system.dtype, 8192 if device.type == "cuda" else 1024)
    return {
        "device": painter.device_name,
        "dtype": str(system.dtype),
        "specification's loop, images/s": best["a"],
        "diffusers' batch, images/s": best["b"],
        "medsyn, images/s": best["c"],
        "ratio to the specification's loop": best["c"] / best["a"],
        "ratio to diffusers' batch": best["c"] / best["b"],
        "share of time in UNet and VAE": inside.seconds / watched,
        "UNet rows per image": rows,
        "UNet TFLOP per row": tflop,
        "achieved TFLOP/s (UNet alone)": best["c"] * rows * tflop,
        "matrix product TFLOP/s": peak,
        "achieved share of the matrix rate": best["c"] * rows * tflop / peak,
    }


def main() -> None:
    """Measure and print."""
    args = arguments()
    numbers = measure(args)
    table = Table(f"{args.shape}, {args.resolution} px, batch {args.batch_size}, {args.steps} steps", "")
    for name, value in numbers.items():
        table.add_row(name, value if isinstance(value, str) else f"{value:.4g}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
