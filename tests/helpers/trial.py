"""A small campaign with fake stages, run by real processes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from medsyn import config as configuration
from medsyn import disk
from medsyn.campaign.plan import inputs, prepare
from medsyn.campaign.slurm import submissions
from medsyn.campaign.state import campaign_file, ledger, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.config import Config
from medsyn.models import model_folder
from medsyn.stage import CampaignDirectory
from tests.helpers import fake_worker
from tests.helpers.paths import ROOT

WAIT_SECONDS = 20


def need_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stages are fake, preparing a campaign asks for no weights and reads no image."""
    monkeypatch.setattr(model_folder, "problems", lambda source: [])
    monkeypatch.setattr(inputs.weights, "weights_fingerprint", lambda source: f"weights of {source}")
    monkeypatch.setattr(inputs, "_check_images", lambda data, tables, progress: [])


class Trial:
    """A small campaign (CT and OCT) whose stages are fake, and the processes a test starts on it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.root = folder / "campaign"
        self.processes: list[subprocess.Popen[str]] = []
        self.write_tables()

    def write_tables(self, prompts: int = 2) -> None:
        self.data.mkdir(exist_ok=True)
        images, ratings, asked = ["path,Text,modality"], ["image_path,rating,modality,expert_level,prompt"], []
        for modality in ("CT", "OCT"):
            for number in range(4):
                name = f"{modality.lower()}-{number}.png"
                (self.data / name).write_bytes(b"not read here")
                images.append(f"{name},{modality}: finding {number},{modality}")
                ratings.append(f"{name},{1 + 2 * (number % 2)},{modality},3,{modality}: finding {number}")
            asked += [f"{modality}: wanted {number},{modality}" for number in range(prompts)]
        (self.data / "metadata.csv").write_text("\n".join(images) + "\n")
        (self.data / "ratings.csv").write_text("\n".join(ratings) + "\n")
        (self.data / "prompts.csv").write_text("\n".join(["prompt,modality", *asked]) + "\n")

    def config(self, **overrides: Any) -> Config:
        tree: dict[str, Any] = {
            "campaign": {"name": "trial", "dir": str(self.root)},
            "data": {"table": str(self.data / "metadata.csv"), "modalities": ["CT", "OCT"]},
            "device": {"use_cuda": False},
            "generation": {"batch_size": 2, "batches_per_block": 1, "blocks_per_shard": 1},
        }
        for key, value in overrides.items():
            section, _, leaf = key.partition("__")
            tree.setdefault(section, {})[leaf] = value
        return configuration.validate(tree, "test")

    def prepare(self, **overrides: Any) -> Campaign:
        return self.prepare_config(self.config(**overrides))

    @staticmethod
    def prepare_config(config: Config, *arguments: Any, **named: Any) -> Campaign:
        before = campaign_file.read_record(CampaignDirectory(config.campaign.path))
        return prepare.prepare(config, before, *arguments, **named)

    def prepare_short(self, **overrides: Any) -> Campaign:
        """One modality and no stage 2: the shortest chain there is, four tasks."""
        return self.prepare(data__modalities=["CT"], training__stage=1, **overrides)

    def script(self, actions: dict[str, list[str]]) -> None:
        """What tasks do, by "STAGE TASK"; see fake_stages."""
        (self.root / "script.json").write_text(json.dumps(actions))

    def start(self, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", f"tests.helpers.{program}", str(self.root), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        self.processes.append(process)
        return process

    def submit(self, parallel: int = 2, **environment: str) -> tuple[int, str]:
        process = self.start("fake_launcher", str(parallel), **environment)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def work(self, stage: str, task: str) -> tuple[int, str]:
        """Run a worker in this process, which is quicker; for one that is to be hurt there is `start`."""
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
        output = io.StringIO()
        try:
            with redirect_stdout(output), redirect_stderr(output), patch.dict(os.environ):
                code = fake_worker.main([str(self.root), stage, task])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return code, output.getvalue()

    def queued(self, name: str, stage: str, tasks: tuple[str, ...], job: str) -> None:
        """Write into the ledger that Slurm was handed an array, as a round of its own that was released."""
        path, facts = self.campaign().directory.ledger, {"round": name, "name": name}
        ledger.record(path, submissions.QUEUEING, **facts, directory=str(self.root))
        ledger.record(path, submissions.QUEUED, **facts, kind="tasks", stage=stage, tasks=tasks, job=job)
        ledger.record(path, submissions.RELEASED, round=name)

    def calls(self) -> list[str]:
        """The tasks whose stage function was called, in order."""
        return [line["task"] for line in disk.read_jsonl(self.root / "calls.jsonl")]

    def steps(self, task: str) -> list[int]:
        return [line["step"] for line in disk.read_jsonl(self.root / "steps.jsonl") if line["task"] == task]

    def campaign(self) -> Campaign:
        return campaign_file.open_campaign(self.root)

    def done(self) -> set[str]:
        campaign = self.campaign()
        return {" ".join(key) for key in markers.done_keys(campaign, campaign.plan)}


def wait_until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT_SECONDS
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value
