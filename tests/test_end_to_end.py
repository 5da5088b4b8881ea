"""The main job, really run: the line of the quick start on a smaller plan, undisturbed and killed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medsyn.campaign.state import campaign_file
from medsyn.data.images.read import read_image
from medsyn.disk import read_jsonl
from tests.helpers.small_campaign import ROOT, SMALLER, finish, flip, images, kill_when, medsyn, results

pytestmark = pytest.mark.slow


def test_the_whole_loop_ends_in_a_report(undisturbed: Path) -> None:
    report = (undisturbed / "report.html").read_text()
    assert "All generated images are synthetic" in report
    assert report.count("data:image/png;base64") > 10
    metrics = json.loads((undisturbed / "work" / "evaluate" / "all" / "metrics.json").read_text())
    assert metrics


def test_every_image_says_that_it_is_synthetic_and_readers_know(undisturbed: Path) -> None:
    images = sorted((undisturbed / "work" / "generate").rglob("*.png"))
    assert images
    for path in images:
        assert read_image(path).synthetic
    with Image.open(images[0]) as opened:
        assert opened.text["Synthetic"] == "YES"  # type: ignore[attr-defined]


def test_every_prompt_is_accounted_for_once_in_each_mode(undisturbed: Path) -> None:
    for mode in ("baseline", "filtered"):
        rows = [
            row for path in (undisturbed / "work/generate" / mode).rglob("manifest.jsonl") for row in read_jsonl(path)
        ]
        # three prompts of the chest X-ray, three of each kind of MRI
        assert len(rows) == len({(row["id"], row["replicate"]) for row in rows}) == 9
        assert all(row["accepted"] or row["reason"] for row in rows)


def test_submitting_what_is_done_says_so_at_once(undisturbed: Path) -> None:
    seconds, output = (undisturbed.parent / "again.txt").read_text().split("\n", 1)
    assert "everything is done" in output
    assert float(seconds) < 60  # about one second on an idle machine; the point is that nothing runs


def test_killed_again_and_again_it_ends_in_the_same_bytes(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSYN_FORK", "0")  # its tasks are new processes, those of the other are forks
    directory = tmp_path / "campaign"
    for moment in (
        "phantoms*/**/*.png",
        "work/finetune/*/checkpoints/step-*",
        "work/rlhf-stage1/all/metrics.jsonl",
        "work/generate/*/*/part-*/block-*",
    ):
        kill_when(directory, moment)
    finish(directory)
    expected, found = results(undisturbed), results(directory)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_changed_configuration_is_refused_by_key(copied: Path) -> None:
    command = [sys.executable, "launch.py", "submit", "configs/tiny.yaml", "--cluster", "local", *SMALLER]
    changed = [f"campaign.dir={copied}", "finetune.learning_rate=1e-3"]
    result = subprocess.run([*command, *changed], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 65
    assert "finetune.learning_rate" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_campaign_made_is_verified_and_comes_out_the_same_when_it_is_made_again(
    undisturbed: Path, copied: Path
) -> None:
    told = ["18 images asked for, 4 regenerated: no findings"]
    assert medsyn("verify", str(undisturbed), "--rerun", "4") == (0, told)
    victim = images(copied)[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    code, lines = medsyn("verify", str(copied))
    assert code == 1 and str(victim) in lines[0] and len(lines) == 2


def test_a_copy_reads_and_touches_nothing_of_the_old_place(copied: Path, tmp_path: Path, undisturbed: Path) -> None:
    moved = tmp_path / "moved"
    copied.rename(moved)  # what it was prepared as is another place still: the original
    campaign = campaign_file.open_campaign(moved)
    original = campaign_file.open_campaign(undisturbed)
    assert campaign.fingerprints == original.fingerprints
    assert str(undisturbed) not in str((campaign.config, campaign.inputs))
    flip(moved / "inputs" / "prompts" / "mri.jsonl")
    code, lines = medsyn("verify", str(moved))
    assert code == 65 and str(moved / "inputs" / "prompts") in lines[0], "the copy's own list is read"
    shutil.copy(undisturbed / "inputs" / "prompts" / "mri.jsonl", moved / "inputs" / "prompts" / "mri.jsonl")
    block = images(moved)[0].parent
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    shutil.rmtree(block)
    for planned in campaign.plan.by_stage["generate"]:
        assert medsyn("worker", str(moved), *planned.key)[0] == 0
    assert medsyn("verify", str(moved))[0] == 0 and medsyn("merge", str(moved))[0] == 0
    assert results(moved) == results(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before
