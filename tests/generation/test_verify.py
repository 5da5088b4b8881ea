from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from generation_campaign import Campaign
from PIL import Image

from medsyn import cli
from medsyn.__main__ import COMMANDS
from medsyn.campaign import plan, records
from medsyn.generation import shard
from medsyn.generation.verify import Images, rerun
from medsyn.stage import CampaignDirectory


@pytest.fixture
def made(reference: Campaign, tmp_path: Path) -> Campaign:
    """A copy of the reference, to be damaged."""
    shutil.copytree(reference.directory.root, tmp_path / "campaign")
    return Campaign(reference.config, CampaignDirectory(tmp_path / "campaign"))


def images(campaign: Campaign, mode: str = "filtered") -> Images:
    blocks = shard.read_blocks(campaign.config, "CT")
    return Images(campaign.config, campaign.directory, mode, "CT", blocks)


def found(campaign: Campaign) -> list[str]:
    one = images(campaign)
    return [str(finding) for finding in (*one.findings(), *one.check_tables([(0, 3)]))]


def test_what_was_made_is_as_recorded(made: Campaign) -> None:
    assert found(made) == []
    assert list(images(made, "baseline").findings()) == []


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


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lost block": (shutil.rmtree, "is missing, with 3 images"),
    "lost image": (lambda block: first_image(block).unlink(), "is missing"),
    "cut image": (cut, "the manifest says"),
    "flipped bit": (flip_a_pixel, "has other content"),
    "another image": (other_picture, "the manifest says|has other content"),
    "no mark": (unmark, "is not marked as synthetic"),
    "a stray file": (lambda block: (block / "x.png").write_bytes(b"x"), "x.png: is in no manifest"),
    "no manifest": (lambda block: (block / "manifest.jsonl").unlink(), "manifest.jsonl: is missing or damaged"),
    "torn manifest": (lambda block: (block / "manifest.jsonl").write_text('{"id": '), "missing or damaged"),
    "a gap": (lambda b: edit(b / "manifest.jsonl", lambda lines: lines.pop()), "is not in it"),
    "a double": (lambda b: edit(b / "manifest.jsonl", lambda lines: lines.append(lines[0])), "is in it 2 times"),
    "a stranger": (lambda b: edit(b / "manifest.jsonl", lambda lines: lines[0].update(id="zz")), "was not asked for"),
    "edited words": (
        lambda b: edit(b / "manifest.jsonl", lambda lines: lines[0].update(prompt="x")),
        "otherwise.*Prompt",
    ),
    "edited score": (
        lambda b: edit(b / "manifest.jsonl", lambda lines: lines[0].update(selector=0.99)),
        "otherwise.*Selector",
    ),
    "another prompt": (
        lambda b: edit(b / "manifest.jsonl", lambda lines: lines[0].update(item_fingerprint="0" * 16)),
        "was made from another prompt",
    ),
    "another seed": (change_seed, "has another seed"),
    "another model": (
        lambda b: edit(b / "manifest.jsonl", lambda lines: lines[0].update(model_fingerprint="m")),
        "different models",
    ),
    "no attempts": (lambda block: (block / "attempts.jsonl").unlink(), "attempts.jsonl: is missing"),
    "attempts that chose nothing": (forget_attempts, "does not agree with the manifest"),
    "a block too many": (
        lambda block: shutil.copytree(block, block.with_name("block-000099")),
        "block-000099: is not a block of this campaign",
    ),
    "no table": (
        lambda block: shutil.rmtree(block.parent.parent / "shards"),
        "manifest.parquet: is missing or damaged; running",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_planted_damage_is_found(made: Campaign, name: str) -> None:
    plant, expected = DAMAGE[name]
    block = made.block("filtered", 1)
    plant(block)
    lines = found(made)
    assert lines
    assert any(re.search(expected, line) for line in lines), lines
    assert all(str(made.directory.root) in line for line in lines)


def test_a_table_that_does_not_belong_to_its_blocks_is_found(made: Campaign) -> None:
    tables = made.block("filtered").parent.parent / "shards" / "blocks-000000-000003"
    other = made.block("baseline").parent.parent / "shards" / "blocks-000000-000003"
    shutil.copy(other / "manifest.parquet", tables / "manifest.parquet")
    assert [line for line in found(made) if "other rows" in line]


def test_images_made_again_are_the_same_bytes(made: Campaign) -> None:
    everything = [images(made, mode) for mode in ("baseline", "filtered")]
    assert list(rerun(everything, 100)) == []


def test_an_image_that_is_not_what_its_record_makes_is_found(made: Campaign) -> None:
    """As careful a forgery as can be: the record, the hash and the file agree with one another."""
    block = made.block("baseline", 0)
    edit(block / "manifest.jsonl", lambda lines: [line.update(sha256="0" * 64) for line in lines])
    lines = [str(finding) for finding in rerun([images(made, "baseline")], 100)]
    assert len(lines) == 3 and all("comes out differently" in line for line in lines)


def test_tars_are_verified_too(campaign: Campaign) -> None:
    packed = campaign.override(output="webdataset", modes=["filtered"])
    packed.run()
    assert found(packed) == [] and list(rerun([images(packed)], 3)) == []
    archive = packed.block("filtered", 0) / "images.tar"
    content = bytearray(archive.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    archive.write_bytes(bytes(content))
    assert [line for line in found(packed) if "has other content" in line]


@pytest.fixture
def opened(made: Campaign, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    built = plan.build(made.config.model_copy(), {"CT": [8]}, {"CT": 16})
    opened = SimpleNamespace(directory=made.directory, config=made.config, plan=built)
    monkeypatch.setattr(records, "open_campaign", lambda root: opened)
    return made


def test_verify_prints_a_line_per_finding_and_ends_with_1(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify", str(opened.directory.root), "--rerun", "2"]
    assert cli.dispatch("medsyn", COMMANDS, arguments) == 0
    assert capsys.readouterr().out == "16 images asked for, 2 made again: no findings\n"
    cut(opened.block("baseline", 2))
    assert cli.dispatch("medsyn", COMMANDS, arguments[:2]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].endswith("the manifest says " + lines[0].split()[-1])
    assert lines[1] == "16 images asked for: 1 finding"


def test_verify_of_something_else_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch("medsyn", COMMANDS, ["verify", str(tmp_path)]) == 65
    assert "not a campaign's directory" in capsys.readouterr().err


def test_merge_writes_one_table_of_all_shards(opened: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch("medsyn", COMMANDS, ["merge", str(opened.directory.root)]) == 0
    assert "manifest.parquet: 16 rows" in capsys.readouterr().out
    shutil.rmtree(opened.block("filtered").parent.parent / "shards")
    assert cli.dispatch("medsyn", COMMANDS, ["merge", str(opened.directory.root)]) == 1
    told = capsys.readouterr().out
    assert "blocks-000000-000003: is not there yet" in told and "manifest.parquet: 8 rows" in told
