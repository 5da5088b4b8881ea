"""Damage of every kind, planted in a finished campaign, is found, set aside and made again, byte by byte as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsyn.campaign.state import campaign_file, locks
from tests.helpers.paths import ROOT
from tests.helpers.small_campaign import finish, flip, images, medsyn, results

pytestmark = pytest.mark.slow


def rot_a_record(directory: Path) -> None:
    path = images(directory)[0].parent / "attempts.jsonl"
    path.write_text(path.read_text().replace('"finite": true', '"finite":true ', 1))


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def say_otherwise(directory: Path) -> None:
    path = directory / "work/generate/made-with.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"software": "old"}))


def cut_a_list(directory: Path) -> None:
    path = next((directory / "tasks" / "generate" / "done").glob("*"))
    marker = json.loads(path.read_text())
    path.write_text(json.dumps(marker | {"outputs": marker["outputs"][1:]}))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "an image rots": lambda directory: flip(images(directory)[0]),
    "a manifest rots": lambda directory: flip(images(directory)[-1].parent / "manifest.jsonl"),
    "attempts are written otherwise": rot_a_record,
    "a block is lost": lambda directory: shutil.rmtree(images(directory)[0].parent),
    "a table rots": lambda directory: flip(next((directory / "work" / "generate").rglob("attempts.parquet"))),
    "a marker rots": lambda directory: next((directory / "tasks" / "generate" / "done").glob("*")).write_text("{"),
    "a marker loses a file": cut_a_list,
    "a stranger": lambda directory: (images(directory)[0].parent / "mine.png").write_bytes(b"x"),
    "an image becomes a pipe": lambda directory: put_a_pipe(images(directory)[0]),
    "another record of what it is made with": lambda directory: say_otherwise(directory),
    "no record of what it is made with": lambda directory: (directory / "work/generate/made-with.json").unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_set_aside_and_made_again(copied: Path, undisturbed: Path, name: str) -> None:
    DAMAGE[name](copied)
    others = {path: path.stat().st_mtime_ns for path in images(copied)}
    code, lines = medsyn("verify", str(copied), "--repair")
    assert code == 1 and len(lines) > 1
    commands = [line.split()[-4:] for line in lines if " -m medsyn generate " in line]
    assert len(commands) == (0 if name == "a stranger" or "record of what" in name else 1)
    assert not commands or lines[-2].startswith("1 task must run again")
    for command in commands:
        assert medsyn(*command)[0] == 0
    for planned in campaign_file.open_campaign(copied).plan.by_stage["generate"]:
        assert medsyn("worker", str(copied), *planned.key)[0] == 0
    assert medsyn("verify", str(copied)) == (0, ["18 images asked for: no findings"])
    assert results(copied) == results(undisturbed)
    again = [path for path in images(copied) if others.get(path) != path.stat().st_mtime_ns]
    assert len({path.parent for path in again}) <= 1, "nothing else is made again"


def test_after_a_repair_a_submit_makes_what_is_missing_and_keeps_the_report(copied: Path, undisturbed: Path) -> None:
    victim = images(copied)[0]
    flip(victim)
    report = (copied / "report.html").stat().st_mtime_ns
    assert medsyn("verify", str(copied), "--repair")[0] == 1
    assert not victim.exists()
    (kept,) = (copied / "set-aside").rglob(victim.name)
    assert kept.read_bytes() != (undisturbed / victim.relative_to(copied)).read_bytes()
    finish(copied)
    assert medsyn("verify", str(copied)) == (0, ["18 images asked for: no findings"])
    assert results(copied) == results(undisturbed)
    assert (copied / "report.html").stat().st_mtime_ns == report


def test_a_repair_keeps_off_a_campaign_that_is_at_work(copied: Path) -> None:
    flip(images(copied)[0])
    campaign = campaign_file.open_campaign(copied)
    planned = campaign.plan.by_stage["generate"][0]
    for path in (campaign.directory.ledger, campaign.directory.attempts(*planned.key)):
        command = [sys.executable, "-m", "medsyn", "verify", str(copied), "--repair"]
        with locks.exclusive(path):
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 75 and "at work" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert not (copied / "set-aside").exists()
