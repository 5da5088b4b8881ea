"""What writes files: what the file system refuses, with the kernel's own limit, and the modes that files have."""

from __future__ import annotations

import errno
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from diffusers import UNet2DConditionModel

from medsyn import disk
from medsyn.campaign.slurm import sbatch
from medsyn.config import EMBEDDED, Config, ScorerSection
from medsyn.generation.write import parquet
from medsyn.models.pipeline_folder import add_parts
from medsyn.models.scorers import save_scorer
from medsyn.models.selector import Selector
from medsyn.models.weights import KEY, embedded_directory, weights_fingerprint
from medsyn.training.checkpoint import save_checkpoint
from medsyn.training.finetune.publish import publish
from medsyn.training.finetune.state import TrainState

LIMIT = 4096  # bytes of a file
SECTION = ScorerSection(image_size=32, patch_size=16, hidden_dim=16, num_layers=1, num_heads=1, mlp_dim=16)


@contextmanager
def file_size_limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint(place: Path) -> None:
    save_checkpoint(place, 1, {"weight": torch.zeros(LIMIT)}, {}, keep=1)


def scorer(place: Path) -> None:
    save_scorer(Selector(SECTION), place / "selector")


def unet(place: Path) -> None:
    made = UNet2DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=8
    )
    parameters = dict(made.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    state = TrainState(made, parameters, optimizer, torch.zeros(()))
    training = SimpleNamespace(provenance={KEY: weights_fingerprint(EMBEDDED)}, conditions=[])
    publish(state, Config(), training, place / "model")


def other_parts(place: Path) -> None:
    with disk.atomic_directory(place / "model") as temporary:
        add_parts(embedded_directory(), temporary)


def merged_tables(place: Path) -> None:
    parquet.merge([place.parent / "source.parquet"], place / "merged.parquet")


def block(place: Path) -> None:
    disk.write_directory(place / "part" / "block", {"manifest.jsonl": b"{}", "image.png": b"x" * 2 * LIMIT})


def plain(place: Path) -> None:
    disk.write_atomic(place / "report.html", b"x" * 2 * LIMIT)


@pytest.mark.parametrize("write", [checkpoint, scorer, unet, other_parts, merged_tables, block, plain])
def test_every_writer_tells_what_was_refused_and_leaves_nothing(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of what is imported under the limit
    pyarrow.parquet.write_table(pyarrow.table({"seed": torch.rand(LIMIT).numpy()}), tmp_path / "source.parquet")
    place = disk.make_directory(tmp_path / "place")
    with pytest.raises(OSError, match="File too large") as caught, file_size_limit():
        write(place)
    assert caught.value.errno == errno.EFBIG
    assert str(caught.value.filename).startswith(str(place))
    assert [path for path in place.rglob("*") if path.name != "part"] == []


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
@pytest.mark.parametrize("write", [checkpoint, scorer, unet, other_parts, merged_tables, block, plain])
def test_every_writer_respects_the_umask_and_gives_others_nothing(
    write: Callable[[Path], None], mask: int, tmp_path: Path
) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"seed": [1]}), tmp_path / "source.parquet")
    with umask(mask):
        place = disk.make_directory(tmp_path / "place")
        write(place)
    for path in (place, *place.rglob("*")):
        whole = disk.DIRECTORY_MODE if path.is_dir() else disk.FILE_MODE
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path


@pytest.mark.parametrize(("mask", "mine"), [(0o077, 0o077), (0o022, 0o027), (0o002, 0o027), (0o037, 0o037)])
def test_a_batch_script_carries_the_umask_of_the_user(mask: int, mine: int, tmp_path: Path) -> None:
    with umask(mask):
        assert sbatch.before(tmp_path, {}, [], None)[0] == f"umask {mine:04o}"
        assert os.umask(mask) == mask, "asking changes nothing"
