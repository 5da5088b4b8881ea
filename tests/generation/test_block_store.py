from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from medsyn import disk
from medsyn.data.prompts.rows import PromptRow
from medsyn.data.prompts.store import PromptList, open_lists
from medsyn.data.prompts.write import index_rows, write_lists
from medsyn.errors import InputError
from medsyn.generation import block_store
from medsyn.generation.block_store import (
    BlockContent,
    Blocks,
    Item,
    commit_block,
    commit_rejected,
    finished_block,
    item_fingerprint,
    plan_shards,
    read_rejected,
    rejected_directory,
)

FACTS = {"model_fingerprint": "m", "config_fingerprint": "c"}
ITEMS = [Item("a", "Chest X-ray: normal", 0), Item("b", "a line\u2028separator", 1)]


def prompts(directory: Path, count: int) -> PromptList:
    rows = [PromptRow(row, f"p{row}", f"CT: finding {row}", "CT") for row in range(count)]
    write_lists(rows, index_rows(rows), directory / "lists")
    return open_lists(directory / "lists").get("CT", PromptList(directory, ()))


def content(items: list[Item] = ITEMS) -> BlockContent:
    names = [f"{item.prompt_id}_{item.replicate}.png" for item in items]
    manifest = [
        {"prompt": item.prompt, "item_fingerprint": item_fingerprint(item), "file": name, "bytes": 5, **FACTS}
        for item, name in zip(items, names, strict=True)
    ]
    return BlockContent(dict.fromkeys(names, b"image"), manifest, [{"id": "a", "attempt": 0}], {"seconds": 1.0})


@pytest.mark.parametrize(("count", "replicates", "size"), [(1, 1, 1), (5, 3, 4), (4, 2, 8), (9, 1, 3), (0, 2, 4)])
def test_every_item_is_in_one_block_whatever_the_shards(tmp_path: Path, count: int, replicates: int, size: int) -> None:
    blocks = Blocks(prompts(tmp_path, count), replicates, size)
    expected = [(f"p{row}", replicate) for row in range(count) for replicate in range(replicates)]
    for per_shard in (1, 2, 3, 100):
        ranges = plan_shards(blocks.count, per_shard)
        items = [item for first, last in ranges for number in range(first, last) for item in blocks.items(number)]
        assert [(item.prompt_id, item.replicate) for item in items] == expected
    assert all(len(blocks.items(number)) == size for number in range(blocks.count - 1)), "only the last may be short"


def test_a_block_appears_whole(tmp_path: Path) -> None:
    block = tmp_path / "ct" / "block-000000"
    commit_block(block, content())
    assert sorted(path.name for path in block.iterdir()) == [
        "a_0.png",
        "attempts.jsonl",
        "b_1.png",
        "manifest.jsonl",
        "timing.json",
    ]
    assert finished_block(block, ITEMS, FACTS) == content().manifest


@pytest.mark.parametrize("victim", ["a_0.png", "attempts.jsonl", "manifest.jsonl", "timing.json"])
def test_a_full_disk_leaves_no_half_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str) -> None:
    real = os.open

    def full(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == victim and flags & os.O_CREAT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space"):
        commit_block(tmp_path / "ct" / "block-000000", content())
    assert list((tmp_path / "ct").iterdir()) == []


@pytest.mark.parametrize("as_a_whole", [False, True])
def test_a_disk_that_is_full_at_fsync_leaves_no_half_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_a_whole: bool
) -> None:
    """NFS tells of a full disk when data is flushed, not when it is written."""

    def full(place: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "_is_synced_as_a_whole", lambda place: as_a_whole)
    monkeypatch.setattr(disk, "_sync_file_system", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        commit_block(tmp_path / "ct" / "block-000000", content())
    assert list((tmp_path / "ct").iterdir()) == []


def test_a_process_that_was_faster_keeps_its_block(tmp_path: Path) -> None:
    block = tmp_path / "block-000000"
    commit_block(block, content())
    (block / "mark").touch()
    commit_block(block, content())
    assert (block / "mark").exists()
    assert list(tmp_path.iterdir()) == [block]


def candidates(*names: str) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    images = {name: f"content of {name}".encode() for name in names}
    return images, [{"file": name, "bytes": len(image)} for name, image in images.items()]


class TestRejected:
    """A block's rejected candidates, which are published before it."""

    def test_they_are_in_a_folder_beside_the_parts(self, tmp_path: Path) -> None:
        block = tmp_path / "ct" / "part-000" / "block-000007"
        commit_rejected(block, *candidates("a_0_1.png", "a_0_2.png"))
        folder = tmp_path / "ct" / "rejected" / "part-000" / "block-000007"
        assert sorted(path.name for path in folder.iterdir()) == ["a_0_1.png", "a_0_2.png", "manifest.jsonl"]
        assert [record["file"] for record in read_rejected(folder)] == ["a_0_1.png", "a_0_2.png"]
        assert not block.exists()

    def test_without_any_there_is_no_folder(self, tmp_path: Path) -> None:
        commit_rejected(tmp_path / "ct" / "part-000" / "block-000000", *candidates())
        assert list(tmp_path.iterdir()) == []
        assert read_rejected(tmp_path / "nowhere") == []

    @pytest.mark.parametrize("is_same", [True, False])
    def test_the_same_ones_of_a_killed_process_stay_and_others_are_replaced(
        self, tmp_path: Path, is_same: bool
    ) -> None:
        block = tmp_path / "ct" / "part-000" / "block-000000"
        commit_rejected(block, *candidates("a_0_1.png" if is_same else "a_0_3.png"))
        (rejected_directory(block) / "mark").touch()
        commit_rejected(block, *candidates("a_0_1.png"))
        assert (rejected_directory(block) / "mark").exists() == is_same
        assert [record["file"] for record in read_rejected(rejected_directory(block))] == ["a_0_1.png"]

    def test_what_the_owner_has_deleted_is_left_out(self, tmp_path: Path) -> None:
        block = tmp_path / "ct" / "part-000" / "block-000000"
        commit_rejected(block, *candidates("a_0_1.png", "a_0_2.png"))
        (rejected_directory(block) / "a_0_1.png").unlink()
        assert [record["file"] for record in read_rejected(rejected_directory(block))] == ["a_0_2.png"]
        (rejected_directory(block) / "manifest.jsonl").write_text('{"file": "a_0_2.png"}\n')
        assert read_rejected(rejected_directory(block)) == []


def damage_cut(block: Path) -> None:
    (block / "a_0.png").write_bytes(b"ima")


def damage_lost(block: Path) -> None:
    (block / "b_1.png").unlink()


def damage_manifest(block: Path) -> None:
    text = (block / "manifest.jsonl").read_text(encoding="utf-8")
    (block / "manifest.jsonl").write_text(text[:-20], encoding="utf-8")


def damage_manifest_lost(block: Path) -> None:
    (block / "manifest.jsonl").unlink()


def damage_manifest_binary(block: Path) -> None:
    (block / "manifest.jsonl").write_bytes(b"\xff\xfe\x00")


def damage_manifest_deep(block: Path) -> None:
    (block / "manifest.jsonl").write_bytes(b"[" * 100_000)


def damage_attempts(block: Path) -> None:
    (block / "attempts.jsonl").unlink()


def damage_timing(block: Path) -> None:
    (block / "timing.json").unlink()


def damage_pipe(block: Path) -> None:
    (block / "manifest.jsonl").unlink()
    os.mkfifo(block / "manifest.jsonl")


def damage_link(block: Path) -> None:
    path = next(block.glob("*.png"))
    path.symlink_to(path.rename(block.parent.with_suffix(".png")))


@pytest.mark.parametrize(
    "damage",
    [
        *(damage_cut, damage_lost, damage_manifest, damage_manifest_lost, damage_manifest_binary),
        *(damage_manifest_deep, damage_attempts, damage_timing, damage_pipe, damage_link),
    ],
)
def test_a_damaged_block_is_moved_away_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage) -> None:  # type: ignore[no-untyped-def]
    block = tmp_path / "block-000003"
    commit_block(block, content())
    damage(block)
    assert finished_block(block, ITEMS, FACTS) is None
    assert list(tmp_path.iterdir()) == []
    assert "block-000003" in caplog.text
    commit_block(block, content())
    assert finished_block(block, ITEMS, FACTS) is not None


def test_a_block_that_is_not_there_is_to_be_made(tmp_path: Path) -> None:
    assert finished_block(tmp_path / "block-000000", ITEMS, FACTS) is None


@pytest.mark.parametrize(
    ("items", "facts", "named"),
    [
        ([Item("a", "Chest X-ray: pneumonia", 0), ITEMS[1]], FACTS, "prompts"),
        (ITEMS[:1], FACTS, "prompts"),
        (ITEMS, FACTS | {"model_fingerprint": "other"}, "model_fingerprint"),
        (ITEMS, FACTS | {"config_fingerprint": "other"}, "config_fingerprint"),
    ],
)
def test_a_whole_block_of_something_else_is_refused_by_name_and_kept(
    tmp_path: Path, items: list[Item], facts: dict[str, str], named: str
) -> None:
    block = tmp_path / "block-000000"
    commit_block(block, content())
    with pytest.raises(InputError, match=named):
        finished_block(block, items, facts)
    assert (block / "a_0.png").exists()


def test_records_are_one_line_each_of_strict_json(tmp_path: Path) -> None:
    commit_block(tmp_path / "block", content())
    lines = (tmp_path / "block" / "manifest.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [item.prompt for item in ITEMS]
    bad = BlockContent({}, [{"selector": float("nan")}], [], {})
    with pytest.raises(ValueError, match="JSON"):
        commit_block(tmp_path / "nan", bad)
    assert not (tmp_path / "nan").exists()


def test_planning_does_not_import_torch() -> None:
    code = "import sys, medsyn.generation.block_store, medsyn.generation.filter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_in_a_block_are_those_of_the_contract() -> None:
    assert (block_store.MANIFEST, block_store.ATTEMPTS, block_store.TIMING) == (
        "manifest.jsonl",
        "attempts.jsonl",
        "timing.json",
    )


def test_an_image_with_other_content_than_on_record_is_not_handed_out(tmp_path: Path) -> None:
    commit_block(tmp_path / "block-000000", content())
    record = {**content().manifest[0], "sha256": hashlib.sha256(b"image").hexdigest()}
    assert block_store.read_image_bytes(tmp_path / "block-000000", record) == b"image"
    (tmp_path / "block-000000" / "a_0.png").write_bytes(b"Image")
    with pytest.raises(InputError, match=r"a_0\.png.*has changed since it was generated.*--repair"):
        block_store.read_image_bytes(tmp_path / "block-000000", record)


@pytest.mark.parametrize("archive", [False, True])
def test_an_image_costs_one_file_to_create_and_one_look_and_in_an_archive_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool
) -> None:
    images, calls = 64, Counter[str]()
    made = content([Item(f"p{number}", "CT: normal", 0) for number in range(images)])
    if archive:
        manifest = [{**record, "archive": "images.tar", "offset": 5 * i} for i, record in enumerate(made.manifest)]
        made = BlockContent({"images.tar": b"image" * images}, manifest, made.attempts, made.timing)

    def count(name: str) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, **kwargs: (calls.update([name]), real(*args, **kwargs))[1])

    for name in ("open", "stat", "lstat", "chmod", "fsync", "mkdir", "rename"):
        count(name)
    monkeypatch.setattr(disk, "_is_synced_as_a_whole", lambda place: True)
    disk.make_directory(tmp_path / "part-000")
    commit_block(tmp_path / "part-000" / "block-000000", made)
    assert block_store.read_manifest(tmp_path / "part-000" / "block-000000") == made.manifest
    of_images = 1 if archive else images
    assert calls["open"] <= of_images + 6
    assert calls["stat"] + calls["lstat"] <= of_images + 6
    assert (calls["chmod"], calls["fsync"], calls["rename"]) == (0, 0, 1)
