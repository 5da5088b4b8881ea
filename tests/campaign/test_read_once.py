"""A submission reads its configuration, the campaign's record and the site profile once, and hands them on."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn.__main__ import COMMANDS
from medsyn.campaign import tasks
from medsyn.campaign.local import scheduler
from medsyn.campaign.slurm import site, submit
from medsyn.campaign.state import campaign_file
from medsyn.cli import app
from tests.helpers.fake_slurm import Slurm
from tests.helpers.trial import Trial

OWN: dict[str, Any] = {}
PHANTOMS: dict[str, Any] = {
    "data__table": "phantoms",
    "data__phantoms": {"images_per_kind": 12, "prompts_per_kind": 3, "image_size": 64},
}


class Count:
    """How often some functions are called, wherever in medsyn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.calls: Counter[str] = Counter()

    def calls_of(self, function: Callable[..., Any], name: str) -> None:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return function(*arguments, **named)

        for module in [module for key, module in sys.modules.items() if key.startswith("medsyn")]:
            for attribute, value in list(vars(module).items()):
                if value is function:
                    self.monkeypatch.setattr(module, attribute, counted)


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Count:
    count = Count(monkeypatch)
    count.calls_of(campaign_file.read_record, "campaign.json")
    count.calls_of(configuration.load, "configuration")
    count.calls_of(tasks.build, "plan")
    count.calls_of(site.load, "site profile")
    return count


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site profile, on a cluster that takes whatever is queued."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    Slurm(tmp_path / "slurm").cluster()
    monkeypatch.setattr(submit, "submit", lambda *_: submit.Outcome(0, 0, 9, 4, 4, 9))
    monkeypatch.setattr(scheduler, "run", lambda *_, **__: 0)
    path = tmp_path / "site.yaml"
    path.write_text("partition: cpu\n")
    return path


@pytest.mark.parametrize("cluster", ["slurm", "local"])
@pytest.mark.parametrize("table", [OWN, PHANTOMS], ids=["own table", "phantoms"])
def test_a_fresh_submission(trial: Trial, profile: Path, count: Count, table: dict[str, Any], cluster: str) -> None:
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config(**table, cluster__site=str(profile))))
    assert app.dispatch("medsyn", COMMANDS, ["submit", str(path), "--cluster", cluster]) == 0
    assert count.calls == {
        "campaign.json": 2,  # before anything is checked, and once more when the lock is held
        "configuration": 2,  # the user's, and what was saved, which tasks will read
        "plan": 1,
        **({"site profile": 1} if cluster == "slurm" else {}),
    }


def test_submitting_again_what_is_unchanged(trial: Trial, profile: Path, count: Count) -> None:
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config(cluster__site=str(profile))))
    words = ["submit", str(path), "--cluster", "slurm"]
    assert app.dispatch("medsyn", COMMANDS, words) == 0
    count.calls.clear()
    assert app.dispatch("medsyn", COMMANDS, words) == 0
    as_locked = 1  # once more under the lock: another process may have changed the campaign
    assert count.calls == {"campaign.json": 1 + as_locked, "configuration": 2, "plan": 1, "site profile": 1}
    count.calls.clear()
    assert app.dispatch("medsyn", COMMANDS, ["submit", str(trial.root), "--cluster", "slurm"]) == 0
    assert count.calls == {"campaign.json": 2 + as_locked, "configuration": 2, "plan": 1, "site profile": 1}
