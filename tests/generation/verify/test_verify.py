from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medsyn.__main__ import COMMANDS
from medsyn.campaign import tasks
from medsyn.campaign.state import campaign_file, markers
from medsyn.cli import app
from medsyn.generation import block_store
from medsyn.generation.verify.campaign import Images, check_environment, strangers
from medsyn.generation.verify.rerun import Rerun
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import Campaign


@pytest.fixture
def made(reference: Campaign, tmp_path: Path) -> Campaign:
    """A copy of the reference, to be damaged."""
    shutil.copytree(reference.directory.root, tmp_path / "campaign")
    return Campaign(reference.config, CampaignDirectory(tmp_path / "campaign"))


def images(campaign: Campaign, mode: str = "filtered") -> Images:
    blocks = block_store.read_blocks(campaign.config, "CT")
    return Images(campaign.config, campaign.directory, mode, "CT", blocks)


def found(campaign: Campaign, mode: str = "filtered") -> list[str]:
    its = images(campaign, mode)
    findings = [
        *its.findings([(0, 3)]),
        *check_environment(campaign.directory, [its]),
        *strangers(campaign.config, campaign.directory, ["CT"]),
    ]
    return [str(finding) for finding in findings]


def test_what_was_made_is_as_recorded(made: Campaign) -> None:
    assert found(made) == found(made, "baseline") == []


def edit(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def first_image(block: Path) -> Path:
    return sorted(block.glob("*.png"))[0]


def flip_a_pixel(block: Path) -> None:
    path = first_image(block)
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))


def unmark(block: Path) -> None:
    """An image without the mark, with a manifest that agrees."""
    path = first_image(block)
    stream = io.BytesIO()
    Image.open(path).save(stream, format="PNG")
    path.write_bytes(stream.getvalue())
    facts = {"bytes": len(stream.getvalue()), "sha256": hashlib.sha256(stream.getvalue()).hexdigest()}
    edit(block / "manifest.jsonl", lambda lines: [r.update(facts) for r in lines if r["file"] == path.name])


def cut(block: Path) -> None:
    first_image(block).write_bytes(first_image(block).read_bytes()[:-1])


def other_picture(block: Path) -> None:
    """Another image under this one's name."""
    shutil.copy(sorted(block.glob("*.png"))[1], first_image(block))


def forget_attempts(block: Path) -> None:
    edit(block / "attempts.jsonl", lambda lines: [line.update(chosen=False) for line in lines])


def change_seed(block: Path) -> None:
    edit(block / "manifest.jsonl", lambda lines: [line.update(seed=1) for line in lines if line["file"]])


def change(name: str, **values: Any) -> Callable[[Path], Any]:
    """Change the first line of a block's file."""
    return lambda block: edit(block / name, lambda lines: lines[0].update(values))


def drop_key(name: str, key: str) -> Callable[[Path], Any]:
    return lambda block: edit(block / name, lambda lines: lines[0].pop(key))


def write(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda block: (block / name).write_bytes(content)


def change_attempts(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], Any]:
    return lambda block: edit(block / "attempts.jsonl", change)


def change_table(name: str, column: str) -> Callable[[Path], Any]:
    """Other values in one column of a table."""

    def plant(block: Path) -> None:
        path = tables_of(block) / name
        table = pq.read_table(path)
        field = table.schema.field(column)
        table = table.set_column(table.column_names.index(column), field, [table[column].to_pylist()[::-1]])
        pq.write_table(table, path)

    return plant


def tables_of(block: Path) -> Path:
    return block.parent.parent / "shards" / "blocks-000000-000003"


def plant_directory(*parts: str, at: int = 0) -> Callable[[Path], Any]:
    """A directory `at` levels above the block's folder."""
    return lambda block: block.parents[at].joinpath(*parts).mkdir(parents=True)


def in_place(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Something else in the place of a block's file."""

    def plant(block: Path) -> None:
        path = sorted(block.glob(name))[0]
        path.unlink()
        make(path)

    return plant


def link_to_a_copy(name: str) -> Callable[[Path], Any]:
    """A link in the place of a block's file, to the same content elsewhere."""

    def plant(block: Path) -> None:
        path = sorted(block.glob(name))[0]
        path.symlink_to(path.rename(block.parents[4] / path.name))

    return plant


MANIFEST, ATTEMPTS, TIMING = "manifest.jsonl", "attempts.jsonl", "timing.json"
FILES = ("*.png", MANIFEST, ATTEMPTS, TIMING)
DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lost block": (shutil.rmtree, "is missing, with 3 images"),
    "a file in a block's place": (lambda b: (shutil.rmtree(b), b.write_text("x")), "is not a directory"),
    "lost image": (lambda block: first_image(block).unlink(), "is missing"),
    "cut image": (cut, "the manifest says"),
    "flipped bit": (flip_a_pixel, "does not match the SHA-256"),
    "another image": (other_picture, "the manifest says|does not match the SHA-256"),
    "no mark": (unmark, "is not marked as synthetic"),
    **{
        f"a pipe in the place of {name}": (in_place(name, os.mkfifo), f"{name.strip('*')}: is not a file")
        for name in FILES
    },
    **{
        f"a folder in the place of {name}": (in_place(name, Path.mkdir), f"{name.strip('*')}: is not a file")
        for name in FILES
    },
    **{
        f"a link in the place of {name}": (link_to_a_copy(name), f"{name.strip('*')}: is a symbolic link, not a file")
        for name in FILES
    },
    "a stray pipe": (lambda block: os.mkfifo(block / "x"), "/x: is not in the manifest"),
    "what NFS never names so": (write(".nfs-notes", b""), ".nfs-notes: is not in the manifest"),
    "a pipe in a table's place": (
        lambda b: (tables_of(b) / "attempts.parquet").unlink() or os.mkfifo(tables_of(b) / "attempts.parquet"),
        "attempts.parquet: is not a file",
    ),
    "a pipe in a block's place": (lambda b: shutil.rmtree(b) or os.mkfifo(b), "is not a directory"),
    "a pipe in the place of the record of what it was made with": (
        lambda b: (b.parents[3] / "made-with.json").unlink() or os.mkfifo(b.parents[3] / "made-with.json"),
        "made-with.json: is not a file",
    ),
    "a stray file": (lambda block: (block / "x.png").write_bytes(b"x"), "x.png: is not in the manifest"),
    "a hidden stray file": (lambda block: (block / ".x").write_bytes(b"x"), ".x: is not in the manifest"),
    "no manifest": (lambda block: (block / MANIFEST).unlink(), "manifest.jsonl: is missing"),
    "empty manifest": (write(MANIFEST, b""), "manifest.jsonl: is damaged: it is empty"),
    "torn manifest": (write(MANIFEST, b'{"id": '), "manifest.jsonl: is damaged: its last line is truncated"),
    "no JSON": (write(MANIFEST, b"\xff\xfe\x00\n"), "line 1 is not JSON"),
    "deep JSON": (write(MANIFEST, DEEP + b"\n"), "line 1 is not JSON"),
    "a list": (write(MANIFEST, b"[]\n"), "line 1 is not a JSON object"),
    **{
        f"no {key} in the manifest": (drop_key(MANIFEST, key), f"line 1 lacks '{key}'|different {key}")
        for key in ("id", "replicate", "file", "extra", "sha256", "prompt", "synthetic", "software", "item_fingerprint")
    },
    **{
        f"{key} of another type": (change(MANIFEST, **{key: value}), f"'{key}' is|different {key}")
        for key, value in {
            **{"id": 5, "replicate": "0", "file": 3, "bytes": "x", "width": [], "sha256": {}, "prompt": None},
            **{"attempts": "many", "accepted": 1, "seed": "x", "selector": [], "extra": "x", "synthetic": "yes"},
        }.items()
    },
    "a path out of the block": (change(MANIFEST, file="../x.png"), "outside its block"),
    "a negative size": (change(MANIFEST, bytes=-1), "negative size"),
    "a size and no file": (change(MANIFEST, file=None, sha256=None), "has no image|otherwise|different"),
    "a gap": (lambda b: edit(b / MANIFEST, lambda lines: lines.pop()), "is missing"),
    "a double": (lambda b: edit(b / MANIFEST, lambda lines: lines.append(lines[0])), "is listed 2 times"),
    "a stranger": (change(MANIFEST, id="zz"), "was not requested"),
    "another order": (lambda b: edit(b / MANIFEST, lambda lines: lines.reverse()), "different order from the prompts"),
    "edited words": (change(MANIFEST, prompt="x"), "different prompt.*from what made it"),
    "edited score": (change(MANIFEST, selector=0.99), "different selector"),
    "edited settings": (change(MANIFEST, num_inference_steps=50), "different num_inference_steps"),
    "edited further column": (change(MANIFEST, extra={"site": "left"}), "different extra"),
    "a further key": (change(MANIFEST, note="x"), "different note"),
    "another prompt": (change(MANIFEST, item_fingerprint="0" * 16), "different item_fingerprint"),
    "another seed": (change_seed, "different seed"),
    "another model": (change(MANIFEST, model_fingerprint="m"), "different model_fingerprint"),
    "another model of a whole block": (
        lambda b: edit(b / MANIFEST, lambda lines: [line.update(model_fingerprint="m") for line in lines]),
        "block-000001: was made with a different model_fingerprint from the other blocks",
    ),
    "other software of a whole block": (
        lambda b: edit(b / MANIFEST, lambda lines: [line.update(software="old") for line in lines]),
        "block-000001: was made with a different software from the other blocks",
    ),
    "no attempts": (lambda block: (block / ATTEMPTS).unlink(), "attempts.jsonl: is missing"),
    "attempts that chose nothing": (forget_attempts, "was judged differently: .*chosen"),
    "an attempt lost": (change_attempts(lambda lines: lines.pop(0)), "has attempts|too few to settle it"),
    "the last attempt lost": (change_attempts(lambda lines: lines.pop()), "too few to settle it"),
    "an attempt twice": (change_attempts(lambda lines: lines.insert(0, lines[0])), "has attempts 0, 0"),
    "an attempt too many": (
        change_attempts(lambda lines: lines.extend([{**lines[-1], "attempt": n} for n in range(9)])),
        "has attempts",
    ),
    "a stranger's attempt": (
        change_attempts(lambda lines: lines.append({**lines[0], "id": "zz"})),
        "zz.*not requested",
    ),
    "attempts in another order": (change_attempts(lambda lines: lines.reverse()), "has attempts|different order"),
    "an attempt's score": (
        change(ATTEMPTS, selector=0.99),
        "judged differently|different selector|does not match.*selector",
    ),
    "an attempt's seed": (change(ATTEMPTS, seed=1), "a seed that does not follow from its number"),
    "an attempt's reason": (change(ATTEMPTS, reason="dull"), "judged differently: reason"),
    "an attempt's key": (drop_key(ATTEMPTS, "passed"), "line 1 lacks 'passed'"),
    "an attempt of another type": (change(ATTEMPTS, selector="high"), "'selector' is"),
    "no timing": (lambda block: (block / TIMING).unlink(), "timing.json: is missing"),
    "torn timing": (write(TIMING, b'{"sec'), "timing.json: is damaged"),
    "a timing of something else": (write(TIMING, b"[1]"), "timing.json: is damaged: is not a JSON object"),
    "a timing without time": (write(TIMING, b'{"seconds": "x", "devices": []}'), "'seconds' is not a duration"),
    "a timing of other images": (write(TIMING, b'{"seconds": 1, "devices": ["cpu"]}'), "the devices of 1 image,"),
    "a block too many": (
        lambda block: shutil.copytree(block, block.with_name("block-000099")),
        "block-000099: is not part of this campaign",
    ),
    "an unknown part": (plant_directory("part-007", at=1), "part-007: is not part of this campaign"),
    "an unknown modality": (plant_directory("pet", at=2), "pet: is not part of this campaign"),
    "an unknown mode": (plant_directory("mine", at=3), "mine: is not part of this campaign"),
    "unknown tables": (plant_directory("shards", "blocks-000003-000005", at=1), "000005: is not part of this campaign"),
    "a loose file": (
        lambda block: (block.parent / "notes.txt").write_text("x"),
        "notes.txt: is not part of this campaign",
    ),
    "a file beside the tables": (lambda b: (tables_of(b) / "x").write_text("x"), "/x: is not part of this campaign"),
    "no table": (
        lambda block: shutil.rmtree(block.parent.parent / "shards"),
        "manifest.parquet: is missing or damaged; running",
    ),
    "a cut table": (
        lambda b: (tables_of(b) / "attempts.parquet").write_bytes(
            (tables_of(b) / "attempts.parquet").read_bytes()[:-9]
        ),
        "attempts.parquet: is missing or damaged",
    ),
    **{
        f"{column} of {name}": (
            change_table(f"{name}.parquet", column),
            f"{name}.parquet: does not match the files of its blocks.*{column}",
        )
        for name, column in (("manifest", "policy"), ("manifest", "gpu_seconds"), ("attempts", "seed"))
    },
    "no record of what it was made with": (
        lambda block: (block.parents[3] / "made-with.json").unlink(),
        "made-with.json: is missing",
    ),
    "a damaged record of what it was made with": (
        lambda block: (block.parents[3] / "made-with.json").write_text("{}"),
        "made-with.json: is damaged",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_planted_damage_is_found(made: Campaign, name: str) -> None:
    plant, expected = DAMAGE[name]
    block = made.block("filtered", 1)
    plant(block)
    lines = found(made)
    assert any(re.search(expected, line) for line in lines), lines
    assert all(str(made.directory.root) in line for line in lines)
    assert not any("is damaged (" in line for line in lines), "no check should meet what it did not expect"


@pytest.mark.parametrize("mode", ["baseline", "filtered"])
def test_random_damage_to_any_file_is_found(made: Campaign, mode: str) -> None:
    """A byte changed, lost or added anywhere is seen, and never a traceback."""
    random = np.random.default_rng(5)
    files = sorted(path for path in (made.block(mode).parent.parent).rglob("*") if path.is_file())
    assert len(files) > 12
    for path in files:
        content = path.read_bytes()
        for damaged in _mutations(content, random):
            path.write_bytes(damaged)
            lines = found(made, mode)
            # a time on record may have been another, and a table may hold the same rows in other bytes
            assert lines or path.name == "timing.json" or path.suffix in (".parquet", ".jsonl"), path
        path.write_bytes(content)
    assert found(made, mode) == []


def _mutations(content: bytes, random: np.random.Generator) -> Iterator[bytes]:
    place = int(random.integers(len(content)))
    yield content[:place] + bytes([content[place] ^ 1 << int(random.integers(8))]) + content[place + 1 :]
    yield content[:place]
    yield content + b"x"
    yield b""


def test_what_a_running_task_keeps_beside_its_blocks_is_no_stranger(made: Campaign) -> None:
    part = made.block("filtered").parent
    for name in (".block-000001.journal", ".block-000001.lease", ".block-000002.tmp-host-7", ".nfs00000001"):
        (part / name).mkdir()
    (tables_of(made.block("filtered")) / ".manifest.parquet.tmp-host-7").touch()
    (part.parents[2] / ".made-with.json.tmp-host-7").touch()
    assert found(made) == []


def say_otherwise(campaign: Campaign) -> Path:
    path = campaign.block("filtered").parents[3] / "made-with.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"software": "old"}))
    return path


def test_a_record_that_all_blocks_disagree_with_is_itself_at_fault(made: Campaign) -> None:
    path = say_otherwise(made)
    (line,) = found(made)
    assert line == f"{path}: has a different software from all blocks; `--repair` rewrites it"


def test_a_record_that_some_blocks_agree_with_stays(made: Campaign) -> None:
    path = say_otherwise(made)
    for number in range(3):
        manifest = made.block("baseline", number) / "manifest.jsonl"
        edit(manifest, lambda lines: [line.update(software="old") for line in lines])
    both = [images(made, mode) for mode in ("baseline", "filtered")]
    assert list(both[0].findings([(0, 3)])), "their files say otherwise of themselves"
    assert list(both[1].findings([(0, 3)])) == []
    (finding,) = check_environment(made.directory, both)
    assert finding.place == made.block("filtered").parents[1] and finding.damaged is None
    assert f"a different software from that recorded in {path.name}" in finding.what


def test_a_table_that_does_not_belong_to_its_blocks_is_found(made: Campaign) -> None:
    tables = made.block("filtered").parent.parent / "shards" / "blocks-000000-000003"
    other = made.block("baseline").parent.parent / "shards" / "blocks-000000-000003"
    shutil.copy(other / "manifest.parquet", tables / "manifest.parquet")
    assert [line for line in found(made) if "does not match the files of its blocks" in line]


def test_images_made_again_are_the_same_bytes(made: Campaign) -> None:
    again = Rerun(100)
    assert list(again.findings([images(made, mode) for mode in ("baseline", "filtered")])) == []
    assert again.made >= 8 and not again.elsewhere


def test_images_of_another_device_are_counted_and_not_compared(made: Campaign) -> None:
    timing = made.block("baseline", 0) / "timing.json"
    timing.write_text(json.dumps(json.loads(timing.read_text()) | {"devices": ["cpu", "Some Card", "Some Card"]}))
    again = Rerun(100)
    assert list(again.findings([images(made, "baseline")])) == []
    assert (again.made, again.elsewhere) == (6, {"Some Card": 2})


def test_an_image_that_is_not_what_its_record_makes_is_found(made: Campaign) -> None:
    """As careful a forgery as can be: the record, the hash and the file agree with one another."""
    block = made.block("baseline", 0)
    edit(block / "manifest.jsonl", lambda lines: [line.update(sha256="0" * 64) for line in lines])
    lines = [str(finding) for finding in Rerun(100).findings([images(made, "baseline")])]
    assert len(lines) == 3 and all("comes out differently" in line for line in lines)


@pytest.fixture
def packed(campaign: Campaign) -> Campaign:
    made = campaign.override(output="webdataset", modes=["filtered"], dicom=True)
    made.run()
    return made


def test_tars_are_verified_too(packed: Campaign) -> None:
    assert found(packed) == [] and list(Rerun(3).findings([images(packed)])) == []
    archive = packed.block("filtered", 0) / "images.tar"
    content = archive.read_bytes()
    random = np.random.default_rng(9)
    for place in [0, 105, 148, 257, 400, len(content) - 1, *random.integers(len(content), size=20).tolist()]:
        archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        wrong = ("images.tar: does not match its images and records", "does not match the SHA-256")
        assert [line for line in found(packed) if any(reason in line for reason in wrong)], place
    for damaged, expected in (
        (content[:-512], "images.tar: is truncated"),
        (content[: len(content) // 2], "images.tar: is truncated"),
        (content + b"\0" * 512, "images.tar: has 512 bytes after its end"),
        (b"", "images.tar: is truncated"),
    ):
        archive.write_bytes(damaged)
        assert any(expected in line for line in found(packed))
    archive.unlink()
    assert any("images.tar: is missing" in line for line in found(packed))


def add_member(archive: Path) -> None:
    with tarfile.open(archive, "a") as tar:
        tar.addfile(tarfile.TarInfo("zz.png"))


def change_member(archive: Path) -> None:
    """Another score in the record beside an image, of the same length."""
    content = archive.read_bytes()
    place = content.index(b'"selector": 0.') + 14
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("damage", [add_member, change_member])
def test_a_member_too_many_and_a_record_that_is_not_the_manifests_are_found(
    packed: Campaign, damage: Callable[[Path], Any]
) -> None:
    damage(packed.block("filtered", 0) / "images.tar")
    assert [line for line in found(packed) if "images.tar: " in line]


@pytest.mark.parametrize("key", ["archive", "offset", "dicom_offset", "dicom_bytes", "dicom_sha256", "dicom"])
@pytest.mark.parametrize("value", [None, "x", -1, 10**9, []])
def test_damaged_places_in_a_tar_are_found(packed: Campaign, key: str, value: object) -> None:
    edit(
        packed.block("filtered") / "manifest.jsonl", lambda lines: [r.update({key: value}) for r in lines if r["file"]]
    )
    lines = found(packed)
    assert lines and not any("is damaged (" in line for line in lines), lines


@pytest.fixture
def opened(made: Campaign, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    built = tasks.build(made.config.model_copy(), {"CT": [8]}, {"CT": 16})
    prompts = campaign_file.record_file(Path(str(made.config.data.prompts)) / "index.json")
    opened = SimpleNamespace(
        directory=made.directory,
        config=made.config,
        plan=built,
        inputs={"prompts": prompts},
        fingerprints={"generate": "f"},
    )
    for planned in built.by_stage["generate"]:
        markers.write_done(cast(campaign_file.Campaign, opened), planned, {})
    monkeypatch.setattr(campaign_file, "open_campaign", lambda root: opened)
    return made


def test_verify_prints_a_line_per_finding_and_ends_with_1(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(opened.directory.root), "--rerun", "2"]
    assert app.dispatch("medsyn", COMMANDS, arguments) == 0
    assert capsys.readouterr().out == "16 images asked for, 2 regenerated: no findings\n"
    cut(opened.block("baseline", 2))
    assert app.dispatch("medsyn", COMMANDS, arguments[:2]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith("the manifest says " + lines[0].split()[-1])
    assert lines[1] == "16 images asked for: 1 finding"


def test_what_no_task_has_made_yet_is_no_damage(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(opened.directory.root)]
    (marker,) = (opened.directory.root / "tasks" / "generate" / "done").glob("*")
    marker.unlink()
    shutil.rmtree(opened.block("filtered", 1))
    shutil.rmtree(opened.block("baseline", 0).parent.parent / "shards")
    assert app.dispatch("medsyn", COMMANDS, arguments) == 75
    said = "16 images asked for, 3 of them not made yet (1 task not done): "
    assert capsys.readouterr().out == f"{said}no findings\n"
    cut(opened.block("baseline", 2))
    assert app.dispatch("medsyn", COMMANDS, arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "the manifest says" in lines[0] and lines[1:] == [f"{said}1 finding"]
    shutil.rmtree(opened.directory.root / "work" / "generate")
    assert app.dispatch("medsyn", COMMANDS, arguments) == 75
    assert "16 of them not made yet" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["-3", "0"])
def test_a_number_of_images_to_make_again_below_one_is_bad_input(
    opened: Campaign, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    assert app.dispatch("medsyn", COMMANDS, ["verify", str(opened.directory.root), "--rerun", number]) == 65
    assert capsys.readouterr().err == f"--rerun: must be 1 or more, got {number}\n"


def test_a_merged_table_that_is_not_its_shards_is_found(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    def verify() -> list[str]:
        app.dispatch("medsyn", COMMANDS, ["verify", str(opened.directory.root)])
        return capsys.readouterr().out.splitlines()

    assert app.dispatch("medsyn", COMMANDS, ["merge", str(opened.directory.root)]) == 0
    capsys.readouterr()
    assert len(verify()) == 1
    for name in ("manifest.parquet", "attempts.parquet"):
        path = opened.directory.root / name
        content, table = path.read_bytes(), pq.read_table(path)
        for damaged in (
            table.slice(1),
            table.slice(0, 3),
            table.take(list(range(len(table)))[::-1]),
            table.drop(["id"]),
        ):
            pq.write_table(damaged, path)
            assert f"{path}: does not match the shards' tables" in verify()[0]
        path.write_bytes(content[:-5])
        assert f"{path}: cannot be compared" in verify()[0]
        path.write_bytes(content)


def test_verify_of_something_else_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.dispatch("medsyn", COMMANDS, ["verify", str(tmp_path)]) == 65
    assert "not a campaign's directory" in capsys.readouterr().err


def test_merge_writes_one_table_of_all_shards(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.dispatch("medsyn", COMMANDS, ["merge", str(opened.directory.root)]) == 0
    assert "manifest.parquet: 16 rows" in capsys.readouterr().out
    shutil.rmtree(opened.block("filtered").parent.parent / "shards")
    assert app.dispatch("medsyn", COMMANDS, ["merge", str(opened.directory.root)]) == 1
    told = capsys.readouterr().out
    assert "blocks-000000-000003: does not exist yet" in told and "manifest.parquet: 8 rows" in told
