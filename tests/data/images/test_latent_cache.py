from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medsyn import disk
from medsyn.data.images import latent_cache as cache_module
from medsyn.data.images.latent_cache import TensorCache, caption_key, hash_files, image_key
from medsyn.errors import InputError
from medsyn.stage import Control, Saved


def entry(value: float) -> dict[str, torch.Tensor]:
    return {"mean": torch.full((4, 2, 2), value), "std": torch.full((4, 2, 2), value / 2)}


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def test_what_was_added_is_there_in_another_process(tmp_path: Path) -> None:
    TensorCache(tmp_path).add({"a": entry(1.0), "b": entry(2.0)})
    again = TensorCache(tmp_path)
    assert "a" in again
    assert "b" in again
    assert "c" not in again
    assert torch.equal(again.read("b", "std"), torch.full((4, 2, 2), 1.0, dtype=torch.float16))


def test_first_and_later_runs_read_the_same_bits(tmp_path: Path) -> None:
    precise = torch.randn(4, 2, 2, generator=torch.Generator().manual_seed(0))  # not representable in float16
    first = TensorCache(tmp_path)
    first.add({"a": {"mean": precise}})
    assert torch.equal(first.read("a", "mean"), TensorCache(tmp_path).read("a", "mean"))


def test_adding_nothing_writes_nothing(tmp_path: Path) -> None:
    TensorCache(tmp_path).add({})
    assert shards(tmp_path) == []


def test_non_contiguous_and_shared_tensors_are_stored(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    TensorCache(tmp_path).add({"a": {"mean": base.t(), "std": base}})
    assert torch.equal(TensorCache(tmp_path).read("a", "mean"), base.t().half())


@pytest.mark.parametrize("damage", ["cut", "emptied", "a bit flipped", "renamed", "not safetensors"])
def test_a_damaged_shard_is_dropped_and_the_others_stay(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = TensorCache(tmp_path)
    store.add({"a": entry(1.0)})
    (first,) = shards(tmp_path)
    store.add({"b": entry(2.0)})
    if damage == "cut":
        os.truncate(first, first.stat().st_size - 1)
    elif damage == "emptied":
        os.truncate(first, 0)
    elif damage == "a bit flipped":
        content = bytearray(first.read_bytes())
        content[-1] ^= 1
        first.write_bytes(bytes(content))
    elif damage == "renamed":
        first = first.rename(tmp_path / f"{'0' * 64}.safetensors")
    else:
        first.write_bytes(b"pickle?")
    with caplog.at_level(logging.WARNING):
        again = TensorCache(tmp_path)
    assert "a" not in again
    assert "b" in again
    assert not first.exists()
    assert "damaged" in caplog.text


def fill(store: TensorCache, count: int, control: Control | None = None, calls: list[int] | None = None) -> tuple:
    def compute(number: int) -> dict[str, torch.Tensor]:
        if calls is not None:
            calls.append(number)
        return entry(float(number))

    return store.fill({f"key{n}": n for n in range(count)}, int, compute, control or Control(), "image")


def test_fill_computes_only_what_is_missing(tmp_path: Path) -> None:
    calls: list[int] = []
    assert fill(TensorCache(tmp_path), 3, calls=calls) == (3, {})
    assert fill(TensorCache(tmp_path), 5, calls=calls) == (2, {})
    assert calls == [0, 1, 2, 3, 4]
    assert fill(TensorCache(tmp_path), 5) == (0, {})


def test_fill_rebuilds_what_a_damaged_shard_held(tmp_path: Path) -> None:
    fill(TensorCache(tmp_path), 3)
    os.truncate(shards(tmp_path)[0], 40)
    store = TensorCache(tmp_path)
    assert fill(store, 3) == (3, {})
    assert store.read("key2", "mean")[0, 0, 0] == 2


def test_fill_collects_every_source_that_cannot_be_used_and_goes_on(tmp_path: Path) -> None:
    def compute(number: int) -> dict[str, torch.Tensor]:
        if number % 2:
            raise InputError(f"{number}.png", "is torn")
        return entry(float(number))

    store = TensorCache(tmp_path)
    computed, failures = store.fill({f"key{n}": n for n in range(5)}, int, compute, Control(), "image")
    assert computed == 3
    assert {key: error.problem.source for key, error in failures.items()} == {"key1": "1.png", "key3": "3.png"}
    assert "key1" not in store
    assert "key4" in store


def test_a_stop_request_keeps_what_was_computed(tmp_path: Path) -> None:
    control, calls = Control(), []

    def compute(number: int) -> dict[str, torch.Tensor]:
        calls.append(number)
        if number == 2:
            control.request_stop()
        return entry(float(number))

    with pytest.raises(Saved):
        TensorCache(tmp_path).fill({f"key{n}": n for n in range(9)}, int, compute, control, "image")
    assert calls == [0, 1, 2]
    assert fill(TensorCache(tmp_path), 9, calls=calls) == (6, {})
    assert calls == list(range(9))


def test_a_kill_costs_at_most_one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_SHARD_ENTRIES", 4)

    def compute(number: int) -> dict[str, torch.Tensor]:
        if number == 10:
            raise KeyboardInterrupt
        return entry(float(number))

    with pytest.raises(KeyboardInterrupt):
        TensorCache(tmp_path).fill({f"key{n}": n for n in range(12)}, int, compute, Control(), "image")
    assert fill(TensorCache(tmp_path), 12)[0] == 4


def test_progress_is_told(tmp_path: Path) -> None:
    beat = tmp_path / "beat.json"
    fill(TensorCache(tmp_path / "cache"), 3, Control(beat, heartbeat_seconds=0))
    assert disk.read_json(beat)["step"] == 3
    assert disk.read_json(beat)["unit"] == "image"


def test_every_part_of_a_key_counts() -> None:
    base = ("sha", "CT", None, 256, "weights", False)
    others = [
        (*base[:place], other, *base[place + 1 :]) for place, other in enumerate(("2", "MRI", 1, 512, "w2", True))
    ]
    assert len({image_key(*arguments) for arguments in (base, *others)}) == 7
    assert len({caption_key("a", "w"), caption_key("b", "w"), caption_key("a", "v"), caption_key("", "w")}) == 4


def test_another_reader_version_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_key("sha", "CT", None, 256, "weights", False)
    monkeypatch.setattr(cache_module, "READER_VERSION", 999)
    assert image_key("sha", "CT", None, 256, "weights", False) != before


def test_a_shard_is_an_ordinary_safetensors_file_of_content_keys_only(tmp_path: Path) -> None:
    TensorCache(tmp_path).add({caption_key("CT: patient Jane Doe", "w"): {"hidden": torch.zeros(77, 8)}})
    (path,) = shards(tmp_path)
    assert b"Jane" not in path.read_bytes()
    assert len(load_file(path)) == 1
    assert path.stat().st_mode & 0o777 == 0o640


# --- hashes of files ------------------------------------------------------------------------------------------------


def test_hashes_are_those_of_the_bytes_and_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "a.png")]
    for path in paths:
        path.write_bytes(path.name.encode())
    first = hash_files(paths, tmp_path / "memo.json")
    assert first == {path: disk.sha256_file(path) for path in paths}

    def no_reading(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr(disk, "sha256_file", no_reading)
    assert hash_files(paths, tmp_path / "memo.json") == first


def test_an_edited_file_is_hashed_again_even_with_its_old_size_and_time(tmp_path: Path) -> None:
    path, memo = tmp_path / "a.png", tmp_path / "memo.json"
    path.write_bytes(b"one")
    before, status = hash_files([path], memo)[path], path.stat()
    time.sleep(0.02)  # file systems keep time in ticks of some milliseconds
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert hash_files([path], memo)[path] == disk.sha256_file(path) != before


def test_a_file_that_cannot_be_read_has_no_hash_and_is_tried_again(tmp_path: Path) -> None:
    path, memo = tmp_path / "a.png", tmp_path / "memo.json"
    assert hash_files([path], memo) == {path: ""}
    path.write_bytes(b"now")
    assert hash_files([path], memo) == {path: disk.sha256_file(path)}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[1]", b"null"])
def test_a_damaged_memo_is_forgotten(content: bytes, tmp_path: Path) -> None:
    path, memo = tmp_path / "a.png", tmp_path / "memo.json"
    path.write_bytes(b"x")
    memo.write_bytes(content)
    assert hash_files([path], memo) == {path: disk.sha256_file(path)}
    assert isinstance(disk.read_json(memo), dict)


def test_the_memo_does_not_name_files(tmp_path: Path) -> None:
    path, memo = tmp_path / "patient-4711.png", tmp_path / "memo.json"
    path.write_bytes(b"x")
    hash_files([path], memo)
    assert "4711" not in memo.read_text()
