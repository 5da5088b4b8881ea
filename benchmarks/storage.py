"""What it costs to keep images: calls to the file system for each image, and images written per CPU second.

    uv run python benchmarks/storage.py                         # calls are counted where strace is installed
    uv run --with webdataset python benchmarks/storage.py       # with webdataset's ShardWriter, which is no dependency

The stage `generate` runs as in a campaign, from the prompt list to the shard's tables, with a sampler that hands out
pictures drawn before. CPU seconds are user and system time of all threads, in turns; counts are strace's, of the same
work in another process. `fsync` is fsync, fdatasync, syncfs and sync; `metadata` is every call that names a path or
lists a directory: open, stat, chmod, mkdir, rename, unlink, getdents and their like.

Beside it medsyn's tars without a journal, which is what a killed task goes on from; and the same pictures in one PNG
file each, as Pillow writes them without being told anything, and as webdataset writes them, each with its record: PNG
as it encodes it by itself, and PNG as medsyn encodes it, which shows what all the rest costs. None of the latter
synchronises anything, says of an image how it was made, or goes on where it was killed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.estimate.cost import CostModel
from medsyn.campaign.plan.blocks import choose
from medsyn.config import Config
from medsyn.data.phantoms.phantom import draw_phantom, render
from medsyn.data.prompts import write
from medsyn.data.prompts.rows import PromptSource, new_faults
from medsyn.generation import stage
from medsyn.generation.block_store import read_blocks
from medsyn.generation.filter import Candidate
from medsyn.generation.make.journal import Journal
from medsyn.generation.sample.batch import Batch, Recipe
from medsyn.generation.sample.load import Loader
from medsyn.generation.write.png import encode_png
from medsyn.stage import CampaignDirectory, Control, Task

MODALITY, KIND = "MRI", "Brain MRI"
BATCH, BATCHES_PER_BLOCK = 16, 4
MILLION = 1_000_000
SHARDS = (4096, 8192)  # images of one task
DRAWN = 64  # different pictures
OUTPUTS = {"webdataset": "medsyn, tar", "png": "medsyn, PNG"}
NO_JOURNAL = "medsyn, tar, no journal"
SAVE, SHARD_WRITER, SAME_PNG = "Image.save", "ShardWriter", "ShardWriter, our PNG"
PEERS = (SAVE, SHARD_WRITER, SAME_PNG)
SYNC = {"fsync", "fdatasync", "syncfs", "sync", "sync_file_range"}
METADATA = (
    *("open", "openat", "creat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
    *("readlink", "readlinkat", "chmod", "fchmodat", "mkdir", "mkdirat", "rmdir", "rename", "renameat", "renameat2"),
    *("link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "getdents64", "statfs", "truncate", "utimensat"),
)
_CALL = re.compile(r"(?:\d+\s+)?(\w+)\((.*)")
_FROM, _TO = "/medsyn-from-here", "/medsyn-to-here"  # paths that mark in strace's output what is measured

Pictures = Sequence[np.ndarray]


def draw(count: int, pixels: int) -> Pictures:
    """Grey phantoms, uint8 [pixels, pixels, 1]."""
    drawn = (render(draw_phantom(KIND, index, 0, quality=3), pixels) for index in range(count))
    return [np.rint(picture * 255).astype(np.uint8) for picture in drawn]


def campaign(
    root: Path, output: str, images: int, pixels: int, batches_per_block: int | Literal["auto"]
) -> tuple[Config, CampaignDirectory]:
    """A prepared campaign of one shard, of images that the pretrained model makes without a filter."""
    root.mkdir(parents=True)
    table = root / "prompts.csv"
    rows = [f'p{number},{MODALITY},"{MODALITY}: T1-weighted, nodule {number}"' for number in range(images)]
    table.write_text("\n".join(["id,modality,prompt", *rows]) + "\n")
    write.resolve(PromptSource.file(table), new_faults(table), root / "lists")
    tree = {
        "campaign": {"name": "storage", "dir": str(root / "campaign")},
        "data": {"modalities": [MODALITY], "prompts": str(root / "lists"), "resolution": pixels},
        "device": {"use_cuda": False},
        "generation": {
            "modes": ["baseline"],
            "baseline_model": "pretrained",
            "batch_size": BATCH,
            "batches_per_block": batches_per_block,
            "output": output,
        },
    }
    return configuration.validate(tree, "storage"), CampaignDirectory(root / "campaign")


class Stub:
    """A sampler that hands out pictures."""

    device_name = "stub"
    overlaps = False

    def __init__(self, recipe: Recipe, pictures: Pictures) -> None:
        self.recipe = recipe
        self._next = cycle(pictures)

    def sample(self, wanted: Any) -> Batch:
        """The next pictures."""
        candidates = [Candidate(attempt, self.recipe.image_seed(item, attempt)) for item, attempt in wanted]
        return Batch(candidates, [next(self._next) for _ in wanted], 0, 0.0)


def generate(
    root: Path, output: str, pictures: Pictures, images: int, batches_per_block: int = BATCHES_PER_BLOCK
) -> Callable[[], None]:
    """A generate task that is ready to run."""
    config, directory = campaign(root, output, images, pictures[0].shape[0], batches_per_block)
    sampler: Any = lambda self, mode, loaded: Stub(Recipe.of(self.config, self.modality), pictures)  # noqa: E731
    blocks = read_blocks(config, MODALITY)
    assert blocks.item_count == images, "the prompt list has another modality"
    task = Task("generate", 0, "mri-0", MODALITY, (0, blocks.count))

    def run() -> None:
        Loader.sampler = sampler  # type: ignore[method-assign]
        stage.run(config, task, directory, Control(directory.heartbeat("generate", task.name)))

    return run


def without_journal(run: Callable[[], None]) -> Callable[[], None]:
    """The same, but a kill costs whole blocks."""

    def without() -> None:
        real = Journal.append
        Journal.append = lambda self, places, batch: None  # type: ignore[method-assign]
        try:
            run()
        finally:
            Journal.append = real  # type: ignore[method-assign]

    return without


def save(root: Path, pictures: Pictures, images: int) -> Callable[[], None]:
    """`Image.save` of every picture."""
    root.mkdir()

    def run() -> None:
        for number, picture in zip(range(images), cycle(pictures), strict=False):
            Image.fromarray(picture[..., 0]).save(root / f"{number}.png")

    return run


def write_shards(root: Path, pictures: Pictures, images: int, same_png: bool) -> Callable[[], None] | None:
    """webdataset's writer, with a record beside every picture; None where it is not installed."""
    try:
        from webdataset import ShardWriter
    except ImportError:
        return None
    root.mkdir()

    def run() -> None:
        with ShardWriter(str(root / "%06d.tar"), maxcount=BATCH * BATCHES_PER_BLOCK, verbose=0) as sink:
            for number, picture in zip(range(images), cycle(pictures), strict=False):
                record = {"id": f"p{number}", "prompt": f"{MODALITY}: T1-weighted, nodule {number}", "seed": number}
                image = encode_png(picture, {}) if same_png else Image.fromarray(picture[..., 0])
                sink.write({"__key__": f"p{number}", "png": image, "json": record})

    return run


def ready(name: str, root: Path, pictures: Pictures, images: int) -> Callable[[], None] | None:
    """A way of writing images into the new directory `root`, ready to be timed; None if it is not installed."""
    if name in OUTPUTS:
        return generate(root, name, pictures, images)
    if name == NO_JOURNAL:
        return without_journal(generate(root, "webdataset", pictures, images))
    return save(root, pictures, images) if name == SAVE else write_shards(root, pictures, images, name == SAME_PNG)


def images_per_second(folder: Path, pictures: Pictures, images: int, turns: int) -> dict[str, list[float]]:
    """Images per CPU second of every way, in turns; the first turn is not counted."""
    found: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        for name in (*OUTPUTS, NO_JOURNAL, *PEERS):
            if (run := ready(name, folder / "turn", pictures, images)) is None:
                continue
            before = time.process_time()
            run()
            seconds = time.process_time() - before
            if turn:
                found.setdefault(name, []).append(images / seconds)
            shutil.rmtree(folder / "turn")
    return found


def counted(lines: Iterable[str]) -> Counter[str]:
    """Calls by name between the two marks in strace's output."""
    found: Counter[str] = Counter()
    inside = False
    for line in lines:
        if (call := _CALL.match(line)) is None:  # a signal, or the rest of a call
            continue
        if _FROM in call[2] or _TO in call[2]:
            inside = _FROM in call[2]
        elif inside and "AT_EMPTY_PATH" not in call[2]:  # that is fstat
            found[call[1]] += 1
    return found


@dataclass(frozen=True)
class Calls:
    """What one generate task called, and the files and directories that it left."""

    made: Counter[str]
    in_block: int  # files and directories that a block is
    in_shard: int  # that the tables of a shard are
    images_in_block: int

    def entries(self, images: int, in_shard: int) -> int:
        """Files and directories of `images` images, so many of them in a shard."""
        return -(-images // self.images_in_block) * self.in_block + -(-images // in_shard) * self.in_shard


def usual_blocks(root: Path, output: str, pixels: int) -> int:
    """The batches in a block of such a campaign of a million images on a GPU, where nothing else is asked for."""
    config, _ = campaign(root, output, 1, pixels, "auto")
    return choose(config, CostModel(config, {"asked": {MODALITY: MILLION}}, on_gpu=True))


def calls(folder: Path, output: str, args: argparse.Namespace) -> Calls:
    """What one generate task of a new process calls, counted by strace."""
    trace = folder / "trace"
    what = ",".join(f"?{name}" for name in (*sorted(SYNC), *METADATA))
    strace = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", f"trace={what}", "-e", "signal=none", "-o", str(trace)]
    this = [sys.executable, __file__, "--traced", output, "--directory", str(folder)]
    number = args.batches_per_block or usual_blocks(folder / "usual", output, args.pixels)
    sizes = ["--pixels", args.pixels, "--calls", args.calls, "--batches-per-block", number]
    subprocess.run([*strace, *this, *map(str, sizes)], check=True)
    work = folder / "traced" / "campaign" / "work"
    per_block = [1 + sum(1 for _ in block.iterdir()) for block in work.rglob("block-*")]
    per_shard = [1 + sum(1 for _ in shard.iterdir()) for shard in work.rglob("shards/blocks-*")]
    with trace.open(errors="replace") as lines:
        return Calls(counted(lines), max(per_block), max(per_shard), BATCH * number)


def traced(output: str, args: argparse.Namespace) -> None:
    """What strace watches: one generate task, after a small one that imports what is imported once."""
    pictures = draw(1, args.pixels)
    generate(args.directory / "first", output, pictures, BATCH)()
    run = generate(args.directory / "traced", output, pictures, args.calls, args.batches_per_block)
    os.access(_FROM, os.F_OK)
    run()
    os.access(_TO, os.F_OK)


def show_calls(console: Console, found: dict[str, Calls], images: int) -> None:
    """Calls for each image, and files for a million."""
    table = Table("calls an image", *(OUTPUTS[name] for name in found))
    rows: dict[str, Iterable[str]] = {"fsync": SYNC, "metadata": METADATA}
    rows |= {f"  {name}": [name] for name in METADATA if any(one.made[name] for one in found.values())}
    for title, names in rows.items():
        table.add_row(title, *(f"{sum(one.made[name] for name in names) / images:.3f}" for one in found.values()))
    table.add_row("images in a block", *(f"{one.images_in_block:,}" for one in found.values()))
    for in_shard in SHARDS:
        title = f"files and directories of a million images, {in_shard:,} in a shard"
        table.add_row(title, *(f"{one.entries(MILLION, in_shard):,}" for one in found.values()))
    console.print(table)


def show_seconds(console: Console, found: dict[str, list[float]]) -> None:
    """Images per CPU second, and medsyn's by those of the others, turn by turn."""
    others = [name for name in PEERS if name in found]
    table = Table("", "images / CPU s", *(f": {name}" for name in others))
    for name, rates in found.items():
        ratios = (median(ours / theirs for ours, theirs in zip(rates, found[other], strict=True)) for other in others)
        table.add_row(OUTPUTS.get(name, name), f"{median(rates):.0f}", *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)


def sizes(pictures: Pictures) -> str:
    """Bytes of a PNG file, ours and Pillow's."""
    plain = io.BytesIO()
    for picture in pictures:
        Image.fromarray(picture[..., 0]).save(plain, format="PNG")
    ours = sum(len(encode_png(picture, {})) for picture in pictures)
    return f"bytes of a PNG file: {ours / len(pictures):.0f}, as Pillow writes it {plain.tell() / len(pictures):.0f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="of each way in each turn")
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4096, help="images whose calls are counted")
    parser.add_argument("--batches-per-block", type=int, help="of these, in batches of 16 (as a million images have)")
    parser.add_argument("--directory", type=Path, help="on the file system to measure (a temporary directory)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--traced", choices=OUTPUTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.traced:
        return traced(args.traced, args)
    console = Console(width=None if sys.stdout.isatty() else 120)
    pictures = draw(DRAWN, args.pixels)
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        rates = images_per_second(Path(folder), pictures, args.images, args.turns)
        show_seconds(console, rates)
        if SHARD_WRITER not in rates:
            console.print("webdataset is not installed: uv run --with webdataset python benchmarks/storage.py")
        console.print(sizes(pictures))
        found: dict[str, Calls] = {}
        if shutil.which("strace") is None:
            console.print("strace is not installed, so no calls are counted: apt-get install strace")
        else:
            for output in OUTPUTS:
                place = disk.make_directory(Path(folder) / f"calls-{output}")
                found[output] = calls(place, output, args)
            show_calls(console, found, args.calls)
    if args.json:
        counts = {
            name: {**one.made, "files_of_a_million": one.entries(MILLION, SHARDS[0])} for name, one in found.items()
        }
        args.json.write_text(json.dumps({"images_per_cpu_second": rates, "calls": counts, "calls_of": args.calls}))


if __name__ == "__main__":
    main()
