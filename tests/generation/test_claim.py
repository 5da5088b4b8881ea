"""Tasks that help one another make what tasks on their own make, and no batch twice."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from medsyn import lease
from medsyn.generation import stage
from medsyn.generation.block_store import MANIFEST, Item
from medsyn.generation.filter import FAILED
from medsyn.generation.make.journal import journal_directory
from medsyn.generation.sample import batch
from medsyn.lease import Leases, lease_file
from medsyn.stage import Control, NoProgress, Saved
from tests.helpers.generation_campaign import Campaign, Maker, Sampled, on_record, tell_sampled, told
from tests.helpers.processes import fork, wait


@pytest.fixture
def campaign(maker: Maker, tmp_path: Path) -> Campaign:
    new = maker.new(tmp_path / "campaign")
    cluster = new.config.cluster.model_copy(update={"claim": True})
    return replace(new, config=new.config.model_copy(update={"cluster": cluster}))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "WAIT_SECONDS", 0.01)


@dataclass
class Tasks:
    """Tasks as processes of their own, and by whom each batch was sampled."""

    campaign: Campaign
    pipe: tuple[int, int]

    def start(self, name: str, blocks: tuple[int, int], slow: float = 0.0, die_at: int | None = None) -> int:
        """Start a task called by one letter, which needs `slow` seconds more for a batch, or dies at one."""

        def body() -> None:
            batches = 0

            def before() -> None:
                nonlocal batches
                if batches == die_at:
                    time.sleep(0.5)  # the batch before is being written
                    os.kill(os.getpid(), signal.SIGKILL)
                batches += 1
                time.sleep(slow)

            tell_sampled(self.pipe[1], name, before)
            self.campaign.run(blocks=blocks, name=name)

        return fork(body)

    def run(self, *arguments: Any, **keywords: Any) -> int:
        return wait(self.start(*arguments, **keywords))

    def sampled(self) -> list[tuple[str, Sampled]]:
        """The candidates sampled since this was asked, each with the name of its task."""
        os.write(self.pipe[1], b".")
        lines = ""
        while not lines.endswith("."):
            lines += os.read(self.pipe[0], 1 << 16).decode()
        return [(name, candidate) for name, batch in told(lines[:-1]) for candidate in batch]

    def sampled_once(self, undisturbed: Campaign, before: Sequence[Sampled] = ()) -> dict[Sampled, str]:
        """The task of every candidate, where all that are needed were sampled and none twice."""
        made = self.sampled()
        by_task = {candidate: name for name, candidate in made} | dict.fromkeys(before, "")
        assert len(by_task) == len(made) + len(before), "no candidate is sampled twice"
        assert by_task.keys() >= on_record(undisturbed)
        return by_task


@pytest.fixture
def tasks(campaign: Campaign) -> Iterator[Tasks]:
    pipe = os.pipe()
    yield Tasks(campaign, pipe)
    for end in pipe:
        os.close(end)


def block_of(candidate: Sampled) -> int:
    """The number of its block: of four, two replicates of each prompt."""
    return int(candidate[1].removeprefix("ct-")) // 2


def test_a_helper_makes_blocks_of_a_slow_task(tasks: Tasks, undisturbed: Campaign) -> None:
    children = [tasks.start("s", (0, 4), slow=0.5), tasks.start("f", (4, 7))]
    assert [wait(child) for child in children] == [0, 0]
    assert tasks.campaign.snapshot() == undisturbed.snapshot()
    sampled = tasks.sampled_once(undisturbed)
    assert {block_of(candidate) for candidate, name in sampled.items() if name == "f"} & set(range(4)), "helped"
    assert "s" in sampled.values()


def test_a_task_that_starts_late_finds_its_blocks_made(tasks: Tasks, undisturbed: Campaign) -> None:
    assert tasks.run("f", (2, 4)) == 0
    assert tasks.run("s", (4, 7)) == 0
    assert tasks.run("t", (0, 2)) == 0
    assert set(tasks.sampled_once(undisturbed).values()) == {"f"}
    assert tasks.campaign.snapshot() == undisturbed.snapshot()
    for blocks in ((0, 2), (2, 4), (4, 7)):
        assert (tasks.campaign.directory.shard("filtered", "CT", blocks) / "manifest.parquet").is_file()


def test_three_tasks_at_once_paint_no_batch_twice(tasks: Tasks, undisturbed: Campaign) -> None:
    children = [tasks.start(*one) for one in (("a", (0, 1)), ("b", (1, 2)), ("c", (2, 7), 0.05))]
    assert [wait(child) for child in children] == [0, 0, 0]
    assert tasks.campaign.snapshot() == undisturbed.snapshot()
    tasks.sampled_once(undisturbed)


def test_without_claim_a_task_makes_its_own_blocks_only(maker: Maker, tmp_path: Path) -> None:
    campaign = maker.new(tmp_path / "static")
    campaign.run(blocks=(2, 3))
    assert [path.name for path in campaign.block("filtered").parent.iterdir()] == ["block-000002"]


@pytest.mark.parametrize("host", [None, "elsewhere"])
def test_a_killed_holder_is_succeeded_from_its_journal(
    tasks: Tasks, undisturbed: Campaign, monkeypatch: pytest.MonkeyPatch, host: str | None
) -> None:
    assert os.WIFSIGNALED(tasks.run("k", (0, 7), die_at=5))
    (left,) = tasks.campaign.directory.root.rglob(".block-*.lease")
    assert list(left.parent.glob(".block-*.journal/*.npz"))
    if host is not None:  # as another node sees it, which cannot ask whether the process lives
        left.write_text(json.dumps(json.loads(left.read_text()) | {"host": host}))
        monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    assert tasks.run("o", (0, 7)) == 0
    assert tasks.campaign.snapshot() == undisturbed.snapshot()
    tasks.sampled_once(undisturbed)


def test_a_helper_passes_a_dead_lease_by_and_the_owner_takes_it_over(
    tasks: Tasks, undisturbed: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = tasks.campaign.block("filtered", 1)
    block.parent.mkdir(parents=True)
    lease_file(block).write_text(json.dumps({"task": "k", "host": "elsewhere", "pid": 1, "token": "t"}))
    assert tasks.run("h", (4, 7)) == 0
    assert not block.exists()
    assert tasks.campaign.blocks().keys() == {
        path for path in undisturbed.blocks() if not (path.startswith("filtered/") and "/block-000001/" in path)
    }
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    assert tasks.run("o", (0, 4)) == 0
    assert tasks.campaign.snapshot() == undisturbed.snapshot()


@pytest.mark.parametrize("heartbeat_seconds", [1000.0, 0.02])
def test_two_makers_of_the_same_blocks_at_once_change_no_byte(
    tasks: Tasks, undisturbed: Campaign, monkeypatch: pytest.MonkeyPatch, heartbeat_seconds: float
) -> None:
    """Leases that expire while their holders live: one that is never told paints on, one that is told leaves."""
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", heartbeat_seconds)
    children = [tasks.start(name, (0, 7), slow=0.02) for name in "ab"]
    assert [wait(child) for child in children] == [0, 0]
    assert tasks.campaign.snapshot() == undisturbed.snapshot()


def test_makers_without_any_lease_change_no_byte(
    tasks: Tasks, undisturbed: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Leases, "take", lambda self, block: True)
    monkeypatch.setattr(Leases, "require", lambda self, block: None)
    children = [tasks.start(name, (0, 7)) for name in "ab"]
    assert [wait(child) for child in children] == [0, 0]
    assert tasks.campaign.snapshot() == undisturbed.snapshot()


class StopsHelping(Control):
    """Asked to stop when it is told of help for the nth time."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.told: list[tuple[int, int]] = []

    def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
        self.told.append((step, total))
        self.left -= "helped" in numbers
        if self.left == 0:
            self.request_stop()


@pytest.mark.parametrize("times", [1, 2, 3, 5, 8])
def test_a_stop_while_helping_ends_the_task_as_done_and_loses_no_batch(
    campaign: Campaign, tasks: Tasks, undisturbed: Campaign, times: int
) -> None:
    control = StopsHelping(times)
    before: list[Sampled] = []
    real = batch.ImageSampler.sample

    def sample(self: batch.ImageSampler, wanted: Sequence[tuple[Item, int]]) -> batch.Batch:
        mode = "baseline" if self.selector is None else "filtered"
        before.extend((mode, item.prompt_id, item.replicate, attempt) for item, attempt in wanted)
        return real(self, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.ImageSampler, "sample", sample)
        campaign.run(blocks=(6, 7), control=control, name="h")
    assert control.stop_requested
    assert control.told[-1] == (4, 4), "2 modes x 2 images of its own block"
    assert not list(campaign.directory.root.rglob(".block-*.lease"))
    assert (campaign.directory.shard("filtered", "CT", (6, 7)) / MANIFEST.replace("jsonl", "parquet")).is_file()
    assert campaign.blocks().keys() < undisturbed.blocks().keys()
    assert tasks.run("o", (0, 6)) == 0
    assert campaign.snapshot() == undisturbed.snapshot()
    tasks.sampled_once(undisturbed, before)


def test_a_task_waits_for_a_block_that_another_is_at_work_on(tasks: Tasks, undisturbed: Campaign) -> None:
    block = tasks.campaign.block("baseline", 1)
    with Leases("other") as others:
        assert others.take(block)
        child = tasks.start("o", (0, 7))
        while not tasks.campaign.block("filtered", 6).exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.02)
        time.sleep(0.3)
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it waits"
        assert not block.exists()
        others.give_back(block)
        assert wait(child) == 0
    assert tasks.campaign.snapshot() == undisturbed.snapshot()


def test_a_task_that_waits_tells_how_far_it_is_and_leaves_when_asked(campaign: Campaign) -> None:
    class Impatient(Control):
        beats = 0

        def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
            assert (total, unit) == (28, "image")
            self.beats += step == 26  # all but the block that another task has
            if self.beats == 5:
                self.request_stop()

    with Leases("other") as others:
        assert others.take(campaign.block("filtered", 6))
        control = Impatient()
        with pytest.raises(Saved):
            campaign.run(blocks=(3, 7), control=control, name="o")
        assert control.beats == 5


def failing(campaign: Campaign, number: int) -> bool:
    lines = (campaign.block("filtered", number) / MANIFEST).read_text().splitlines()
    return any(json.loads(line)["reason"] == FAILED for line in lines)


def test_prompts_that_failed_count_for_the_owner_of_their_block_only(campaign: Campaign) -> None:
    strict = campaign.override(on_exhausted="fail", num_candidates=1, max_attempts=3)
    helped = False
    for number in range(7):  # the first makes every block
        try:
            strict.run(blocks=(number, number + 1), name=f"task-{number}")
            helped = True
        except NoProgress:
            assert failing(strict, number)
        else:
            assert not failing(strict, number)
        assert len(list(strict.block("filtered").parent.glob("block-*"))) == 7
    assert helped and any(failing(strict, number) for number in range(7))


def test_an_error_while_helping_ends_the_help_and_not_the_task(
    campaign: Campaign, undisturbed: Campaign, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = batch.ImageSampler.sample

    def sample(self: batch.ImageSampler, wanted: Sequence[tuple[Item, int]]) -> batch.Batch:
        if campaign.block("filtered", 3).exists() and campaign.block("baseline", 3).exists():
            raise RuntimeError("an illegal memory access")
        return real(self, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(batch.ImageSampler, "sample", sample)
        campaign.run(blocks=(3, 4), name="h")
    assert "stopped work stealing" in caplog.text and "illegal memory access" in caplog.text
    assert (campaign.directory.shard("filtered", "CT", (3, 4)) / "manifest.parquet").is_file()
    assert not list(campaign.directory.root.rglob(".block-*.lease"))
    campaign.run(blocks=(0, 7), name="o")
    assert campaign.snapshot() == undisturbed.snapshot()


def test_what_a_killed_task_left_beside_committed_blocks_is_removed(campaign: Campaign, undisturbed: Campaign) -> None:
    """Killed between the commit and the end of its lease; it may have been helping."""
    campaign.run(name="h")
    for number in (1, 5):
        block = campaign.block("filtered", number)
        journal_directory(block).mkdir()
        lease_file(block).write_text(json.dumps({"task": "h", "host": "elsewhere", "pid": 1, "token": "t"}))
        (block.parent / f".{block.name}.lease.tmp-{os.uname().nodename}-{os.getpid()}").touch()
    campaign.run(blocks=(0, 2), name="h")
    assert campaign.snapshot() == undisturbed.snapshot()
    assert not [path for path in campaign.block("filtered").parent.iterdir() if path.name.startswith(".")]
