from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medsyn import disk
from medsyn.errors import InputError
from medsyn.generation.write import parquet
from medsyn.generation.write.dicom import add_dicom
from medsyn.generation.write.parquet import merge, write_shard_tables
from medsyn.generation.write.webdataset import pack
from medsyn.records import RESERVED, AttemptRecord, ImageRecord, json_types
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import Campaign


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


def test_every_name_of_records_and_tables_is_reserved(reference: Campaign) -> None:
    """Or a prompt list's column of that name would be lost."""
    (record, *_) = reference.read("manifest.jsonl", "filtered")
    packed, _ = pack([add_dicom(record, np.zeros((8, 8, 1), np.uint8))[0]], {record["file"]: b"", "ct-0_0.dcm": b""})
    assert set(table(reference, "manifest.parquet")[0]) | set(packed[0]) == RESERVED


def test_records_have_just_the_keys_of_the_schema(reference: Campaign) -> None:
    (record, *_) = reference.read("manifest.jsonl", "filtered")
    assert record.keys() == json_types(ImageRecord, {"filtered"}).keys()
    assert reference.read("manifest.jsonl", "baseline")[0].keys() == json_types(ImageRecord).keys()
    with_dicom, _ = add_dicom(record, np.zeros((8, 8, 1), np.uint8))
    packed, _ = pack([with_dicom], {record["file"]: b"", "ct-0_0.dcm": b""})
    assert with_dicom.keys() == json_types(ImageRecord, {"filtered", "dicom"}).keys()
    assert packed[0].keys() == json_types(ImageRecord, {"filtered", "dicom", "archive"}).keys()
    assert reference.read("attempts.jsonl", "filtered")[0].keys() == json_types(AttemptRecord).keys()


def test_further_columns_of_the_prompt_list_are_carried_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["extra", "item_fingerprint", "archive", "dicom_bytes", "dicom_offset", "sha256", "mode", "gpu_seconds"]
    extra = {"site": "left", "age": 3, "none": None, **{name: f"my {name}" for name in names}}
    record = {"id": "a", "replicate": 0, "file": None, "sha256": None, "extra": extra}
    monkeypatch.setattr(parquet, "read_manifest", lambda block: [record])
    monkeypatch.setattr(parquet.disk, "read_json", lambda path: {"seconds": 1.0})
    directory = CampaignDirectory(tmp_path)
    disk.make_directory(directory.block("baseline", "CT", 0))
    write_shard_tables(directory, "baseline", "CT", (0, 1))
    (row,) = pq.read_table(directory.shard("baseline", "CT", (0, 1)) / "manifest.parquet").to_pylist()
    assert (row["site"], row["age"], row["none"], row["mode"], row["sha256"]) == ("left", "3", None, "baseline", None)
    assert {name: row[f"prompt_{name}"] for name in names} == {name: f"my {name}" for name in names}


def test_the_tables_say_what_every_image_is_and_was_made_with(reference: Campaign) -> None:
    for row, record in zip(
        table(reference, "manifest.parquet"), reference.read("manifest.jsonl", "filtered"), strict=True
    ):
        assert row["synthetic"] is True and row["dtype"] == "float32" and row["scheduler"] == "euler_a"
        assert (row["software"], row["batch_size"]) == (record["software"], 3)
        assert (row["num_inference_steps"], row["guidance_scale"], row["negative_prompt"]) == (2, 7.5, "")
        assert row["device"] == (None if row["file"] is None else "cpu")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"seconds": "x"}', '{"seconds": 1, "devices": ["cpu"]}', "[" * 100000]
)
def test_a_damaged_block_is_named_and_no_table_is_written(reference: Campaign, tmp_path: Path, content: str) -> None:
    directory = CampaignDirectory(tmp_path)
    shutil.copytree(reference.block("baseline"), directory.block("baseline", "CT", 0))
    (directory.block("baseline", "CT", 0) / "timing.json").write_text(content)
    with pytest.raises(InputError, match=r"block-000000: is damaged.*--repair"):
        write_shard_tables(directory, "baseline", "CT", (0, 1))
    assert not directory.shard("baseline", "CT", (0, 1)).exists()


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
