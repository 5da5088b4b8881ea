from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from generation_campaign import Campaign

from medsyn import disk
from medsyn.generation import shard_tables
from medsyn.generation.shard_tables import merge, write_shard_tables
from medsyn.stage import CampaignDirectory


def table(campaign: Campaign, name: str, mode: str = "filtered") -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(campaign.directory.shard(mode, "CT", (0, 3)) / name).to_pylist()
    return rows


def test_the_manifest_table_has_every_item_once_and_finds_its_file(reference: Campaign) -> None:
    rows, records = table(reference, "manifest.parquet"), reference.read("manifest.jsonl", "filtered")
    assert len(rows) == len(records) == 8
    for row, record in zip(rows, records, strict=True):
        shared = ["id", "prompt", "modality", "mode", "replicate", "seed", "attempts", "selector", "policy", "sha256"]
        assert {key: row[key] for key in shared} == {key: record[key] for key in shared}
        assert row["model_fingerprint"] == record["model_fingerprint"]
        if row["file"] is not None:
            path = reference.directory.root / "work" / "generate" / str(row["file"])
            assert disk.sha256_file(path) == row["sha256"]
    promised = "id prompt modality replicate seed attempts selector policy file sha256 width height gpu_seconds"
    assert set(rows[0]) >= {*promised.split(), "model_fingerprint", "config_fingerprint"}


def test_the_attempts_table_has_every_candidate(reference: Campaign) -> None:
    rows, records = table(reference, "attempts.parquet"), reference.read("attempts.jsonl", "filtered")
    assert [(r["id"], r["replicate"], r["attempt"], r["reason"], r["chosen"]) for r in rows] == [
        (r["id"], r["replicate"], r["attempt"], r["reason"], r["chosen"]) for r in records
    ]


def test_gpu_seconds_add_up_to_the_blocks_time(reference: Campaign) -> None:
    blocks = reference.block("filtered").parent.glob("block-*")
    seconds = sum(disk.read_json(block / "timing.json")["seconds"] for block in blocks)
    for name in ("manifest.parquet", "attempts.parquet"):
        assert sum(float(str(row["gpu_seconds"])) for row in table(reference, name)) == pytest.approx(seconds)


def test_further_columns_of_the_prompt_list_are_carried_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {
        "id": "a",
        "replicate": 0,
        "file": None,
        "extra": {"site": "left", "age": 3, "mode": "mine", "none": None},
    }
    monkeypatch.setattr(shard_tables, "read_manifest", lambda block: [record])
    monkeypatch.setattr(shard_tables.disk, "read_json", lambda path: {"seconds": 1.0})
    directory = CampaignDirectory(tmp_path)
    write_shard_tables(directory, "baseline", "CT", (0, 1))
    (row,) = pq.read_table(directory.shard("baseline", "CT", (0, 1)) / "manifest.parquet").to_pylist()
    assert (row["site"], row["age"], row["prompt_mode"], row["mode"], row["none"]) == (
        "left", "3", "mine", "baseline", None
    )  # fmt: skip


def test_merging_keeps_all_rows_in_order_and_fills_absent_columns_with_null(tmp_path: Path) -> None:
    one, other = tmp_path / "one.parquet", tmp_path / "other.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "site": ["left", None]}), one)
    pq.write_table(pa.table({"id": ["c"], "age": ["3"]}), other)
    target = tmp_path / "merged.parquet"
    assert merge([one, other], target) == 3
    assert pq.read_table(target).to_pydict() == {
        "id": ["a", "b", "c"],
        "site": ["left", None, None],
        "age": [None, None, "3"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged.parquet", "one.parquet", "other.parquet"]
