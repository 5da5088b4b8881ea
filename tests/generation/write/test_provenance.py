from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from medsyn import Generator, disk
from medsyn.errors import InputError
from medsyn.generation.sample.load import Loader
from medsyn.generation.write import provenance
from medsyn.generation.write.png import NOT_IN_THE_FILE
from medsyn.generation.write.provenance import (
    compute_environment,
    require_same_environment,
    software,
    write_environment,
)
from medsyn.models import weights
from medsyn.records import ENVIRONMENT
from medsyn.stage import CampaignDirectory
from tests.helpers.generation_campaign import CPU, Campaign
from tests.helpers.processes import fork, wait


def test_what_is_computed_with_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSYN_IMAGE", "sha256:1234")
    found = compute_environment(CPU, torch.float32)
    assert (found["dtype"], found["attention"], found["container"]) == ("float32", "sdpa", "sha256:1234")
    assert f"torch {torch.__version__.partition('+')[0]}" in found["software"]
    assert all(name in found["software"] for name in ("medsyn", "diffusers", "transformers", "pillow"))


@pytest.mark.parametrize("key", ENVIRONMENT)
def test_another_way_to_compute_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path, ours = tmp_path / "made-with.json", compute_environment(CPU, torch.float32)
    require_same_environment(path, ours, keep=False)
    assert not path.exists(), "nothing is on record before something is made"
    require_same_environment(path, ours, keep=True)
    require_same_environment(path, ours, keep=True)
    with pytest.raises(InputError, match=f"made with {key} .*, here it is 'another'"):
        require_same_environment(path, {**ours, key: "another"}, keep=True)
    assert disk.read_json(path) == ours


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"dtype": 1}', "\udcff", "[" * 100_000])
def test_a_damaged_record_is_told_and_not_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "made-with.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=r"damaged.*--repair"):
        require_same_environment(path, compute_environment(CPU, torch.float32), keep=True)
    assert path.read_text(errors="surrogateescape") == content


def test_of_many_processes_that_begin_at_once_one_decides(tmp_path: Path) -> None:
    path = tmp_path / "made-with.json"

    def begin(name: str) -> None:
        require_same_environment(path, dict.fromkeys(ENVIRONMENT, name), keep=True)

    def child(name: str) -> int:
        return fork(lambda: begin(name))

    statuses = {name: wait(one) for name, one in [(name, child(name)) for name in "abcdefgh"]}
    (winner,) = set(disk.read_json(path).values())
    assert [name for name, status in statuses.items() if os.waitstatus_to_exitcode(status) == 0] == [winner]
    assert list(tmp_path.iterdir()) == [path]


def test_without_hard_links_it_is_renamed_into_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(self: Path, target: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    write_environment(tmp_path / "made-with.json", dict.fromkeys(ENVIRONMENT, "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["made-with.json"]


def test_a_task_with_other_software_makes_nothing(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign.run(blocks=(0, 1))
    assert {record["software"] for record in campaign.read("manifest.jsonl", "baseline")} == {software()}
    monkeypatch.setattr(provenance, "software", lambda: "medsyn 9")
    with pytest.raises(InputError, match=r"software .*medsyn 9"):
        campaign.run(blocks=(1, 2))
    assert not campaign.block("baseline", 1).exists()


def test_a_single_image_says_all_that_it_was_made_with(tiny_model: Path) -> None:
    generator = Generator(str(tiny_model), height=32, num_inference_steps=2, scheduler="ddim", negative_prompt="blur")
    (image,) = generator.images("CT: nodule")
    record = image.record
    assert record["synthetic"] is True and record["software"] == software()
    assert (record["num_inference_steps"], record["guidance_scale"], record["negative_prompt"]) == (2, 7.5, "blur")
    assert (record["scheduler"], record["dtype"], record["precision"]) == ("ddim", "float32", "float32")
    assert (record["width"], record["height"], record["seed"] is None) == (32, 32, False)
    assert record["model_fingerprint"] and record["config_fingerprint"]
    assert image.png is not None
    with Image.open(io.BytesIO(image.png)) as opened:
        text = opened.text  # type: ignore[attr-defined]
    in_the_file = {key: value for key, value in record.items() if value is not None and key not in NOT_IN_THE_FILE}
    assert {key: text[key.replace("_", " ").capitalize()] for key in in_the_file} == {
        key: str(value) for key, value in in_the_file.items()
    }
    assert text["Synthetic"] == "YES"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The fine-tuned weights and scorers that are read to be hashed, from now on; the base model's are small here."""
    read: list[Path] = []
    real = disk.sha256_file

    def sha256_file(path: Path) -> str:
        if "work" in path.parts:
            read.append(path)
        return real(path)

    weights._sha256.cache_clear()
    monkeypatch.setattr(weights, "sha256_file", sha256_file)
    return read


@pytest.fixture
def trained(campaign: Campaign, tmp_path: Path) -> Loader:
    """A campaign whose training is done, by markers as the worker writes them."""
    directory = CampaignDirectory(tmp_path / "trained")
    shutil.copytree(campaign.directory.root / "work", directory.root / "work")
    loader = Loader(campaign.config, "CT", directory)
    for made in (loader._unet("filtered"), *loader._scorers):
        output = {"path": str(made.path.relative_to(directory.root)), "size": made.path.stat().st_size}
        marker = directory.done(made.stage, made.name)
        outputs = disk.read_json(marker)["outputs"] if marker.exists() else []
        disk.write_json(marker, {"outputs": [*outputs, {**output, "sha256": disk.sha256_file(made.path)}]})
        later = made.path.stat().st_ctime_ns + 10**9
        os.utime(marker, ns=(later, later))
    return loader


def test_weights_that_are_as_their_task_left_them_are_not_read_to_know_their_hash(
    trained: Loader, hashed: list[Path]
) -> None:
    facts = trained.facts("filtered")
    trained.sampler("filtered")
    assert hashed == []
    strict = provenance.Sources(trained.config, "CT", trained.directory, trusts_markers=False)
    assert facts.items() >= strict.facts("filtered").items(), "the markers say what the files are"
    assert len(hashed) == 3
    strict.facts("filtered")
    assert len(hashed) == 3, "and a process reads a file once"


def replaced(path: Path, marker: Path) -> None:
    """Other weights of the same size, whose modification time has been set back."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(marker, ns=(0, path.stat().st_ctime_ns - 1))  # the fixture's is of the next second


def longer(path: Path, marker: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def lost(path: Path, marker: Path) -> None:
    marker.unlink()


def damaged(path: Path, marker: Path) -> None:
    time = marker.stat().st_mtime_ns
    marker.write_text('{"outputs": [{"path": 1}]}')
    os.utime(marker, ns=(time, time))


@pytest.mark.parametrize("change", [replaced, longer, lost, damaged])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_weights_that_are_not_what_the_marker_speaks_of_are_hashed(
    trained: Loader, hashed: list[Path], change: Callable[[Path, Path], None], which: int
) -> None:
    before = trained.facts("filtered")
    made = (trained._unet("filtered"), *trained._scorers)[which]
    change(made.path, trained.directory.done(made.stage, made.name))
    assert (trained.facts("filtered") != before) == (change in (replaced, longer))
    assert made.path.resolve() in hashed
