"""Every image once, whatever the shards and whatever happens: killed at any moment, a disk that fills, retries."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medsyn import disk
from medsyn.data.images.read import SYNTHETIC_KEY
from medsyn.generation.block_store import REJECTED, plan_shards, read_blocks, read_rejected, rejected_directory
from medsyn.generation.make import journal
from medsyn.generation.sample.batch import ImageSampler
from medsyn.generation.verify.campaign import Images
from medsyn.generation.write.parquet import merge, shard_directories
from medsyn.stage import Control
from tests.helpers.generation_campaign import BLOCKS, Campaign, Maker, Sampled, tell_sampled, told
from tests.helpers.processes import fork, wait

KILLS = 20


def run_shards(campaign: Campaign, shards: int, control: Control | None = None) -> None:
    for blocks in plan_shards(BLOCKS, -(-BLOCKS // shards)):
        campaign.run(blocks=blocks, control=control)


def test_the_undisturbed_run_has_retries_and_every_item_once(undisturbed: Campaign) -> None:
    asked = [(f"ct-{number}", replicate) for number in range(13) for replicate in range(2)]
    for mode in ("baseline", "filtered"):
        manifest = undisturbed.read("manifest.jsonl", mode)
        assert [(record["id"], record["replicate"]) for record in manifest] == asked
        files = [record["file"] for record in manifest if record["file"] is not None]
        assert len(set(files)) == len(files) >= 13
    assert len({record["attempts"] for record in undisturbed.read("manifest.jsonl", "filtered")}) > 2
    assert len(list(undisturbed.block("baseline").parent.glob("block-*"))) == BLOCKS


def test_retries_are_packed_into_full_batches(undisturbed: Campaign) -> None:
    for number in range(BLOCKS - 1):
        block = undisturbed.block("filtered", number)
        made = len(list(disk.read_jsonl(block / "attempts.jsonl")))
        batches = disk.read_json(block / "timing.json")["batches"]
        assert made >= 2 * batches - 1, "only the last attempt of the last item can be alone"


@pytest.mark.parametrize("shards", [3, 7])
def test_any_number_of_shards_makes_the_same_files(
    maker: Maker, undisturbed: Campaign, tmp_path: Path, shards: int
) -> None:
    campaign = maker.new(tmp_path / "campaign")
    run_shards(campaign, shards)
    assert campaign.snapshot() == undisturbed.snapshot()


def test_the_first_rejected_candidates_of_every_item_are_kept_beside_the_outputs(undisturbed: Campaign) -> None:
    """Of this campaign; that shards, kills and thieves change nothing of it is shown with all else that it writes."""
    assert not (undisturbed.block("baseline").parents[1] / REJECTED).exists(), "the first candidate is the image"
    kept = 0
    for number in range(BLOCKS):
        block = undisturbed.block("filtered", number)
        folder = rejected_directory(block)
        assert folder.parents[1] == block.parents[1] / "rejected"
        records = read_rejected(folder)
        assert {record["file"] for record in records} | {"manifest.jsonl"} == {path.name for path in folder.iterdir()}
        attempts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for attempt in disk.read_jsonl(block / "attempts.jsonl"):
            attempts.setdefault((attempt["id"], attempt["replicate"]), []).append(attempt)
        expected = [one for its in attempts.values() for one in [a for a in its if not a["chosen"]][:2]]
        same = ("id", "replicate", "attempt", "seed", "selector", "policy", "precision", "reason")
        assert [[record[key] for key in same] for record in records] == [[one[key] for key in same] for one in expected]
        for record in records:
            assert record["accepted"] is False and record["synthetic"] is True and record["reason"]
            texts = Image.open(folder / record["file"]).info
            assert (texts[SYNTHETIC_KEY], texts["Accepted"], texts["Reason"]) == ("YES", "False", record["reason"])
        kept += len(records)
    assert kept > 26


@pytest.mark.parametrize("mode", ["baseline", "filtered"])
def test_verify_counts_no_rejected_candidate_and_wonders_at_none(undisturbed: Campaign, mode: str) -> None:
    blocks = read_blocks(undisturbed.config, "CT")
    its = Images(undisturbed.config, undisturbed.directory, mode, "CT", blocks)
    assert [str(finding) for finding in its.findings([(0, BLOCKS)])] == []


def run_and_kill(campaign: Campaign, delay: float) -> tuple[bool, list[Sampled]]:
    """Run all shards in a child and kill it `delay` seconds after its first batch began.

    Returns whether the kill came before its end, and the candidates of the batches that it began.
    """
    reader, writer = os.pipe()

    def run() -> None:
        tell_sampled(writer)
        run_shards(campaign, 3)

    child = fork(run)
    os.close(writer)
    select.select([reader], [], [], 60)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    status = wait(child)
    with os.fdopen(reader) as stream:
        began = [candidate for _, batch in told(stream.read()) for candidate in batch]
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status), began


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments_loses_doubles_and_changes_nothing(
    maker: Maker, undisturbed: Campaign, tmp_path: Path
) -> None:
    expected = undisturbed.snapshot()
    whole = sum(
        disk.read_json(timing)["seconds"] for timing in undisturbed.directory.root.rglob("work/generate/**/timing.json")
    )
    batch_size, random = maker.config.generation.images_per_batch, np.random.default_rng(7)
    killed = campaigns = 0
    while killed < KILLS:
        campaign = maker.new(tmp_path / f"campaign-{campaigns}")
        campaigns += 1
        began: list[Sampled] = []
        kills = 0
        is_unfinished = True
        while is_unfinished and killed < KILLS:
            is_unfinished, candidates = run_and_kill(campaign, float(random.uniform(0, 0.3 * whole)))
            began += candidates
            kills += is_unfinished
            killed += is_unfinished
            assert campaign.blocks().items() <= expected.items(), "a reader sees whole blocks only"
        run_shards(campaign, 3)
        assert campaign.snapshot() == expected
        twice = len(began) - len(set(began))
        assert twice <= 2 * kills * batch_size, "a kill costs the batch in hand and the one being written"


@pytest.mark.parametrize("kill", [False, True])
def test_batches_that_are_begun_ahead_as_on_a_gpu_end_in_the_same_files(
    maker: Maker, undisturbed: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    campaign = maker.new(tmp_path / "campaign")
    monkeypatch.setattr(ImageSampler, "overlaps", True)
    if kill:
        stop_within_a_block(campaign.override(modes=["filtered"]), 5)
        assert len(kept_batches(campaign)) == 4, "the fifth is under way, and of the sixth nothing"
    campaign.run()
    assert campaign.snapshot() == undisturbed.snapshot()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that mounts a file system of so many kilobytes."""
    point = tmp_path / "small"
    point.mkdir()

    def mount(kilobytes: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(point)]
        if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("mounting a small file system needs root")
        return point

    yield mount
    subprocess.run(["umount", str(point)], check=False, capture_output=True)


def enlarge(point: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(point)], check=True)


def test_a_disk_that_fills_loses_and_doubles_nothing(
    maker: Maker, undisturbed: Campaign, small_disk: Callable[[int], Path]
) -> None:
    expected, fills = undisturbed.snapshot(), 0
    kilobytes = 120
    point = small_disk(kilobytes)
    campaign = maker.new(point / "campaign")
    while True:
        try:
            run_shards(campaign, 3)
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
        fills += 1
        assert campaign.blocks().items() <= expected.items(), "whole blocks only"
        assert not [path for path in campaign.snapshot() if ".tmp-" in path]
        kilobytes += 60
        enlarge(point, kilobytes)
    assert fills >= 2
    assert campaign.snapshot() == expected


def test_a_journal_that_cannot_be_written_stops_the_task_and_says_so(
    maker: Maker, undisturbed: Campaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, real, left = maker.new(tmp_path / "campaign"), disk.write_unsynced, 5

    def full(path: Path, content: bytes | str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(journal.disk, "write_unsynced", full)
        run_shards(campaign, 1)
    run_shards(campaign, 1)
    assert campaign.snapshot() == undisturbed.snapshot()


def kept_batches(campaign: Campaign) -> list[Path]:
    return sorted(campaign.directory.root.glob("work/generate/*/*/part-*/.block-*.journal/*.npz"))


def stop_within_a_block(campaign: Campaign, batches: int) -> None:
    """Run until so many batches have begun, then kill."""

    class Dying(Control):
        def heartbeat(self, step: int, total: int, unit: str = "step", **numbers: Any) -> None:
            nonlocal batches
            batches -= 1
            if batches < 0:
                time.sleep(0.5)  # the writer writes what is sampled
                os.kill(os.getpid(), signal.SIGKILL)

    wait(fork(lambda: campaign.run(control=Dying())))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_journal_is_painted_again(
    maker: Maker, undisturbed: Campaign, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    campaign = maker.new(tmp_path / "campaign")
    only = replace(campaign, config=campaign.override(modes=["filtered"]).config)
    stop_within_a_block(only, 4)
    assert len(kept_batches(campaign)) == 4
    damage(kept_batches(campaign)[1])
    campaign.run()
    assert campaign.snapshot() == undisturbed.snapshot()


@pytest.mark.parametrize("other_settings", [{"guidance_scale": 3.0}, {"fast": True}])
def test_a_journal_of_another_model_or_other_settings_is_not_used(
    maker: Maker, tmp_path: Path, other_settings: dict[str, Any]
) -> None:
    campaign, other = maker.new(tmp_path / "campaign"), maker.new(tmp_path / "other")
    stop_within_a_block(campaign.override(modes=["filtered"]), 3)
    assert kept_batches(campaign)
    campaign.override(modes=["filtered"], **other_settings).run(blocks=(0, 1))
    other.override(modes=["filtered"], **other_settings).run(blocks=(0, 1))
    assert campaign.snapshot() == other.snapshot()


def test_with_shortcuts_too_a_killed_run_ends_in_the_same_files(maker: Maker, tmp_path: Path) -> None:
    settings = {"modes": ["filtered"], "num_inference_steps": 5, "deep_cache_every": 2, "text_attention_until": 0.6}
    killed, other = (maker.new(tmp_path / name).override(**settings) for name in ("killed", "other"))
    stop_within_a_block(killed, 2)
    assert kept_batches(killed)
    for campaign in (killed, other):
        campaign.run(blocks=(0, 2))
    assert killed.snapshot() == other.snapshot()


def test_a_journal_left_beside_its_committed_block_is_removed(
    maker: Maker, undisturbed: Campaign, tmp_path: Path
) -> None:
    campaign = maker.new(tmp_path / "campaign")
    campaign.run()
    left = journal.journal_directory(campaign.block("filtered", 3))
    left.mkdir()
    shutil.copy(campaign.block("filtered", 3) / "manifest.jsonl", left / "batch-000000.npz")
    campaign.run()
    assert campaign.snapshot() == undisturbed.snapshot()


def merged(campaign: Campaign, shards: int, name: str, target: Path) -> list[dict[str, Any]]:
    ranges = [("CT", blocks) for blocks in plan_shards(BLOCKS, -(-BLOCKS // shards))]
    folders = shard_directories(campaign.directory, ["baseline", "filtered"], ranges)
    merge((folder / name for folder in folders), target)
    rows: list[dict[str, Any]] = pq.read_table(target).drop(["gpu_seconds"]).to_pylist()
    return rows


@pytest.mark.parametrize("shards", [3, 7])
def test_the_merged_tables_are_equal_up_to_timing(
    maker: Maker, undisturbed: Campaign, tmp_path: Path, shards: int
) -> None:
    campaign = maker.new(tmp_path / "campaign")
    run_and_kill(campaign, 0.5)
    run_shards(campaign, shards)
    for name in ("manifest.parquet", "attempts.parquet"):
        expected = merged(undisturbed, 1, name, tmp_path / "expected.parquet")
        assert merged(campaign, shards, name, tmp_path / "found.parquet") == expected
        assert len(expected) >= 52


def test_a_kill_within_the_tables_leaves_nothing_behind(maker: Maker, undisturbed: Campaign, tmp_path: Path) -> None:
    campaign = maker.new(tmp_path / "campaign")
    real = Path.replace

    def fatal(self: Path, target: Path) -> Path:
        if Path(target).suffix == ".parquet":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    def run() -> None:
        Path.replace = fatal  # type: ignore[method-assign]
        campaign.run()

    assert os.WIFSIGNALED(wait(fork(run)))
    assert [path for path in campaign.snapshot() if "parquet.tmp-" in path]
    campaign.run()
    assert campaign.snapshot() == undisturbed.snapshot()
