"""Batches over blocks, with a sampler that samples nothing: when each is begun, read back and judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsyn import disk
from medsyn.generation.block_store import ATTEMPTS, TIMING, Item
from medsyn.generation.filter import Candidate, Rule
from medsyn.generation.make.block import Order
from medsyn.generation.make.journal import journal_directory
from medsyn.generation.make.packing import OpenBlock, make_blocks
from medsyn.generation.make.writer_thread import Writer
from medsyn.generation.sample.batch import Batch, Recipe
from medsyn.stage import Saved

SIZE, ITEMS = 4, 8  # places of a batch, items of a block
FACTS = {"modality": "CT", "mode": "filtered", "model_fingerprint": "-", "config_fingerprint": "-"}
RECIPE = Recipe("CT", 0, 8, 8, "dpm", 5, 1.0, SIZE)
Wanted = Sequence[tuple[Item, int]]


@dataclass
class Device:
    """Stands in for `ImageSampler`: says what is asked of it; a candidate's scores follow from its seed."""

    overlaps: bool
    pass_rate: float = 0.5
    recipe: Recipe = RECIPE
    device_name: str = "device"
    told: list[str] = field(default_factory=list)
    batches: list[set[tuple[str, int]]] = field(default_factory=list)
    before: Callable[[int], None] = lambda number: None

    def sample(self, wanted: Wanted) -> Batch:
        return self.begin(wanted).finish()

    def begin(self, wanted: Wanted, meanwhile: Callable[[], None] = lambda: None) -> Begun:
        number = len(self.batches)
        self.before(number)
        self.batches.append({(item.prompt_id, attempt) for item, attempt in wanted})
        self.told.append(f"begin {number}")
        meanwhile()
        return Begun(self, number, wanted)


@dataclass
class Begun:
    device: Device
    number: int
    wanted: Wanted

    def finish(self) -> Batch:
        self.device.told.append(f"read {self.number}")
        candidates, pictures = [], []
        for item, attempt in self.wanted:
            chance = np.random.default_rng([int(item.prompt_id), attempt])
            score = 0.9 if chance.random() < self.device.pass_rate else 0.1
            candidates.append(Candidate(attempt, 0, selector=score, policy=score))
            pictures.append(chance.integers(0, 256, (8, 8, 1), dtype=np.uint8))
        return Batch(candidates, pictures, 5 * SIZE, 1.0)


def run(
    folder: Path,
    device: Device,
    before_batch: Callable[[list[OpenBlock]], None] = lambda opened: None,
    blocks: int = 4,
    rule: Rule = Rule(2, 6, 0.5, None, "skip"),  # noqa: B008  (frozen)
) -> None:
    """Make the blocks in `folder`."""

    def further(writer: Writer) -> Iterator[OpenBlock]:
        for number in range(blocks):
            items = [Item(str(number * ITEMS + place), "a prompt", 0) for place in range(ITEMS)]
            order = Order(folder / f"block-{number:06d}", items, rule, FACTS, {})
            if not order.path.exists():
                yield OpenBlock.open(order, RECIPE, writer)

    opened: list[OpenBlock] = []
    with Writer() as writer:
        made = make_blocks(opened, further(writer), device, writer, lambda: before_batch(opened))  # type: ignore[arg-type]
        for _ in made:
            pass


def files(folder: Path) -> dict[str, bytes]:
    """Every file; attempts without their own, for that is where timings are."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != TIMING]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def surplus(folder: Path) -> int:
    return sum(len(disk.read_json(path)["surplus"]) for path in folder.rglob(TIMING))


def test_every_batch_is_begun_before_the_one_before_it_is_read_back(tmp_path: Path) -> None:
    device = Device(overlaps=True, pass_rate=1.0)
    run(tmp_path, device)
    last = len(device.batches) - 1
    assert last == 4 * ITEMS * 2 / SIZE - 1
    between = [word for number in range(1, last + 1) for word in (f"begin {number}", f"read {number - 1}")]
    assert device.told == ["begin 0", *between, f"read {last}"]


def test_without_a_device_of_its_own_one_batch_follows_the_other(tmp_path: Path) -> None:
    device = Device(overlaps=False)
    run(tmp_path, device)
    assert device.told == [f"{word} {number}" for number in range(len(device.batches)) for word in ("begin", "read")]


@pytest.mark.parametrize("pass_rate", [0.28, 0.54, 0.77, 1.0])
@pytest.mark.parametrize("wanted", [1, 3])
def test_begun_ahead_or_not_the_files_are_the_same_and_no_place_is_lost(
    tmp_path: Path, pass_rate: float, wanted: int
) -> None:
    devices = {name: Device(name == "ahead", pass_rate) for name in ("ahead", "in turn")}
    for name, device in devices.items():
        run(tmp_path / name, device, blocks=8, rule=Rule(wanted, 6, 0.5, None, "skip"))
    assert files(tmp_path / "ahead") == files(tmp_path / "in turn")
    places = {name: len(device.batches) * SIZE for name, device in devices.items()}
    needed = sum(path.read_bytes().count(b"\n") for path in (tmp_path / "ahead").rglob(ATTEMPTS))
    assert places["ahead"] <= places["in turn"] + SIZE
    assert needed + surplus(tmp_path / "ahead") <= places["ahead"]
    attempts = [place for batch in devices["ahead"].batches for place in batch]
    assert len(attempts) == len(set(attempts)), "none is made twice"


@pytest.mark.parametrize("number", range(6))
def test_who_is_asked_to_stop_keeps_what_is_under_way(tmp_path: Path, number: int) -> None:
    device = Device(overlaps=True)

    def stop(_: list[OpenBlock]) -> None:
        if len(device.batches) == number:
            raise Saved

    with pytest.raises(Saved):
        run(tmp_path / "stopped", device, stop)
    assert device.told[-1:] == [f"read {number - 1}"] * (number > 0)
    began = device.batches.copy()
    run(tmp_path / "stopped", again := Device(overlaps=True))
    run(tmp_path / "other", Device(overlaps=False))
    assert files(tmp_path / "stopped") == files(tmp_path / "other")
    assert not [place for batch in again.batches for place in batch & set().union(*began)], "nothing is made twice"


def test_an_error_at_the_begin_of_a_batch_costs_none_before_it(tmp_path: Path) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise RuntimeError("out of memory")

    device = Device(overlaps=True, before=fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, device)
    assert device.told[-1] == "read 2"
    kept = len(list(tmp_path.rglob("*.npz")))
    assert kept >= 3 or list(tmp_path.glob("block-*"))


def test_what_is_under_way_for_a_block_that_is_given_up_is_thrown_away(tmp_path: Path) -> None:
    """Its lease is another's now, who makes it; the other blocks of the batch get their parts."""
    device, given_up = Device(overlaps=True), []

    def give_up(opened: list[OpenBlock]) -> None:
        if len(device.batches) == 2 and not given_up:
            given_up.append(opened.pop(0))
            assert any(trial.under_way for trial in given_up[0].progress.trials)

    run(tmp_path, device, give_up)
    path = given_up[0].progress.order.path
    assert not path.exists()
    assert len(list(journal_directory(path).glob("*"))) == 1, "the first batch, but not the second"
    assert len(list(tmp_path.glob("block-*"))) == 3


def test_prompts_of_other_kinds_are_made_as_well(tmp_path: Path) -> None:
    """A kind whose last batch is under way decides nothing for the others, and no batch is of two kinds."""
    kinds: list[set[Any]] = []
    for name, overlaps in (("ahead", True), ("in turn", False)):
        device = Device(overlaps, pass_rate=0.3)
        items = [Item(str(place), "a prompt", 0, num_inference_steps=5 + place // 3 % 2) for place in range(24)]
        orders = [
            Order(
                tmp_path / name / f"block-{start:06d}",
                items[start : start + 6],
                Rule(1, 6, 0.5, None, "skip"),
                FACTS,
                {},
            )
            for start in range(0, 24, 6)
        ]
        with Writer() as writer:
            further = (OpenBlock.open(order, RECIPE, writer) for order in orders)
            list(make_blocks([], further, device, writer))  # type: ignore[arg-type]
        steps = {item.prompt_id: item.num_inference_steps for item in items}
        kinds += [{steps[prompt] for prompt, _ in batch} for batch in device.batches]
    assert files(tmp_path / "ahead") == files(tmp_path / "in turn")
    assert {len(kind) for kind in kinds} == {1}
