"""Whoever changes a campaign is asked the same questions, whichever command does it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from medsyn import config as configuration
from medsyn.__main__ import COMMANDS
from medsyn.campaign import guards
from medsyn.campaign.plan import prepare
from medsyn.campaign.state import locks
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.cli import app
from medsyn.errors import InputError
from tests.helpers.fake_slurm import Slurm
from tests.helpers.paths import ROOT
from tests.helpers.trial import Trial

BY_HAND = (
    ("finetune", "--task", "ct"),
    ("rlhf", "--stage", "1", "--task", "all"),
    ("rlhf", "--stage", "2", "--task", "ct"),
    ("generate", "--task", "ct-00000"),
    ("evaluate", "--task", "all"),
)
LOCAL = (*BY_HAND, ("submit", "--cluster", "local"), ("resume", "--cluster", "local"))
SLURM = (("submit", "--cluster", "slurm"), ("resume", "--cluster", "slurm"))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", f"{tmp_path / 'slurm'}:{os.environ['PATH']}")
    slurm = Slurm(tmp_path / "slurm")
    slurm.cluster()
    return slurm


@pytest.fixture
def queued(trial: Trial, slurm: Slurm) -> Trial:
    """A campaign of which a generate job waits in the queue."""
    trial.prepare()
    trial.queued("trial-generate", "generate", ("ct-00000", "oct-00000"), "20")
    slurm.queue("20_0|PENDING|Dependency|||1|trial-generate", "20_1|PENDING|Dependency|||1|trial-generate")
    return trial


def call(trial: Trial, command: str, *arguments: str) -> int:
    path = trial.data / "campaign.yaml"
    path.write_text(configuration.save(trial.config()))
    return app.dispatch("medsyn", COMMANDS, [command, str(path), *arguments])


def refused(trial: Trial, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What is said where a command ends with 65 and leaves the campaign as it is."""
    before = {path: path.read_bytes() for path in trial.root.rglob("*") if path.is_file()}
    assert call(trial, *words) == 65
    assert {path: path.read_bytes() for path in trial.root.rglob("*") if path.is_file()} == before
    assert trial.calls() == []
    return capsys.readouterr().err


@pytest.mark.parametrize("words", [*LOCAL, *SLURM], ids=" ".join)
def test_shards_are_not_dealt_anew_while_generate_jobs_are_queued(
    queued: Trial, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    said = refused(queued, capsys, *words, "generation.blocks_per_shard=5")
    assert "configuration, generation.blocks_per_shard: it re-shards the campaign, but generate jobs" in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"generation__img_num": 8}, "2 generate jobs in Slurm's queue, including ct-00000"),
        ({"data__modalities": ["CT"]}, "oct-00000"),
    ],
)
def test_nor_by_other_prompts_or_settings(queued: Trial, change: dict[str, Any], named: str) -> None:
    by_time = {"generation__blocks_per_shard": None}
    queued.prepare(**by_time)
    before = (queued.root / "campaign.json").read_bytes()
    with pytest.raises(InputError, match=f"it re-shards the campaign, and .*{named}"):
        guards.open_for_change(queued.config(**by_time, **change), here=False)
    assert (queued.root / "campaign.json").read_bytes() == before
    guards.open_for_change(queued.config(**by_time, generation__guidance_scale=3.0), here=False)
    assert queued.campaign().config.generation.guidance_scale == 3.0


def test_modalities_are_not_dropped_while_their_jobs_are_queued(trial: Trial, slurm: Slurm) -> None:
    trial.prepare()
    trial.queued("trial-finetune", "finetune", ("ct", "oct"), "20")
    slurm.queue("20_0|RUNNING|None|n1||1|trial-finetune", "20_1|PENDING|Resources|||1|trial-finetune")
    before = (trial.root / "campaign.json").read_bytes()
    with pytest.raises(InputError, match="it drops finetune oct, whose jobs are in Slurm's queue: cancel them first"):
        guards.open_for_change(trial.config(data__modalities=["CT"]), here=False)
    assert (trial.root / "campaign.json").read_bytes() == before
    slurm.queue("20_0|RUNNING|None|n1||1|trial-finetune")
    guards.open_for_change(trial.config(data__modalities=["CT"]), here=False)


@pytest.mark.parametrize(
    ("at_work", "change"),
    [
        (("generate", "ct-00000"), "generation.blocks_per_shard=2"),
        (("generate", "oct-00000"), "data.modalities=[CT]"),
        (("finetune", "ct"), "finetune.max_train_steps=7"),
        (("evaluate", "all"), "evaluation.kid_subsets=7"),
    ],
)
@pytest.mark.parametrize("words", [("finetune", "--task", "oct"), ("submit", "--cluster", "local")], ids=" ".join)
def test_what_a_task_at_work_makes_does_not_change(
    trial: Trial,
    slurm: Slurm,
    capsys: pytest.CaptureFixture[str],
    at_work: tuple[str, str],
    change: str,
    words: tuple[str, ...],
) -> None:
    directory = trial.prepare(generation__img_num=4).directory
    before = directory.config.read_bytes(), directory.campaign_file.read_bytes()
    with locks.exclusive(directory.attempts(*at_work)):
        assert call(trial, *words, "generation.img_num=4", change) == 75
    assert f"is at work on {' '.join(at_work)}, which the changed settings would make anew" in capsys.readouterr().err
    assert (directory.config.read_bytes(), directory.campaign_file.read_bytes()) == before
    assert trial.calls() == []


def test_what_no_task_at_work_reads_may_change(trial: Trial) -> None:
    directory = trial.prepare(generation__blocks_per_shard=5).directory
    with locks.exclusive(directory.attempts("generate", "ct-00000")):
        guards.open_for_change(trial.config(generation__blocks_per_shard=5, cluster__max_parallel=7), here=True)
        guards.open_for_change(trial.config(generation__blocks_per_shard=4), here=True)  # the same single shard


class TestMeanwhile:
    """What another process does after the first questions, while this one reads the inputs."""

    @pytest.fixture
    def meanwhile(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
        def happens(what: Callable[[], Any]) -> None:
            look, left = prepare.unchanged, [what]

            def unchanged(*arguments: Any) -> Campaign | None:
                found = look(*arguments)
                if left:
                    left.pop()()
                return found

            monkeypatch.setattr(prepare, "unchanged", unchanged)

        return happens

    @pytest.mark.parametrize("change", ["cluster.max_parallel=1", "cluster.max_parallel=7"])
    def test_jobs_are_queued(
        self,
        trial: Trial,
        slurm: Slurm,
        capsys: pytest.CaptureFixture[str],
        meanwhile: Callable[[Callable[[], Any]], None],
        change: str,
    ) -> None:
        trial.prepare(cluster__max_parallel=1)
        before = (trial.root / "campaign.json").read_bytes()

        def queue() -> None:
            trial.queued("trial-finetune", "finetune", ("ct",), "20")
            slurm.queue("20|RUNNING|None|n1||1|trial-finetune")

        meanwhile(queue)
        assert call(trial, "submit", "--cluster", "local", change) == 65
        assert "1 of its tasks are in Slurm's queue and would do the same work" in capsys.readouterr().err
        assert (trial.root / "campaign.json").read_bytes() == before
        assert trial.calls() == []

    def test_generate_jobs_are_queued_of_the_old_shards(
        self, trial: Trial, slurm: Slurm, meanwhile: Callable[[Callable[[], Any]], None]
    ) -> None:
        trial.prepare(generation__img_num=4)

        def queue() -> None:
            trial.queued("trial-generate", "generate", ("ct-00000",), "20")
            slurm.queue("20|PENDING|Dependency|||1|trial-generate")

        meanwhile(queue)
        with pytest.raises(InputError, match="it re-shards the campaign, and 1 generate job in Slurm's queue"):
            guards.open_for_change(trial.config(generation__img_num=4, generation__blocks_per_shard=2), here=False)

    def test_the_campaign_is_changed(self, trial: Trial, meanwhile: Callable[[Callable[[], Any]], None]) -> None:
        trial.prepare()
        meanwhile(lambda: guards.open_for_change(trial.config(finetune__max_train_steps=7), here=True))
        with ExitStack() as held:
            opened = guards.open_for_change(trial.config(), here=True, keep=held)
            assert opened == trial.campaign()
            assert opened.config.finetune.max_train_steps == trial.config().finetune.max_train_steps
            assert locks.is_held(trial.root / "ledger.jsonl")
        assert not locks.is_held(trial.root / "ledger.jsonl")


@pytest.mark.parametrize("words", LOCAL, ids=" ".join)
def test_nothing_runs_here_while_jobs_are_queued(
    queued: Trial, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    said = refused(queued, capsys, *words)
    assert said.startswith(f"{queued.root}: 2 of its tasks are in Slurm's queue")
    assert "medsyn cancel" in said and "medsyn resume --cluster slurm" in said


@pytest.mark.parametrize("words", [*LOCAL, *SLURM, ("cancel",), ("verify", "--repair"), ("merge",)], ids=" ".join)
def test_nobody_changes_the_campaign_of_another_user(
    trial: Trial,
    slurm: Slurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    trial.prepare()
    other = os.getuid() + 1
    monkeypatch.setattr(guards.os, "getuid", lambda: other)
    if words[0] in ("verify", "merge"):
        assert app.dispatch("medsyn", COMMANDS, [words[0], str(trial.root), *words[1:]]) == 65
        said = capsys.readouterr().err
    else:
        said = refused(trial, capsys, *words)
    assert f"{trial.root}, campaign.dir: this campaign belongs to {guards.user_name(other - 1)}, and only" in said


def test_what_schedulers_call_is_asked_nothing(queued: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    queued.work("finetune", "ct")
    assert app.dispatch("medsyn", COMMANDS, ["worker", str(queued.root), "finetune", "ct"]) == 0
    assert capsys.readouterr().out == "finetune ct is already done\n"


def test_once_the_queue_is_empty_the_shards_may_be_dealt_anew(
    queued: Trial, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.queue()
    queued.work("finetune", "ct")
    assert call(queued, "finetune", "--task", "ct", "generation.blocks_per_shard=5") == 0
    assert queued.campaign().config.generation.blocks_per_shard == 5


def test_while_slurm_does_not_answer_nothing_counts_as_gone_from_its_queue(
    queued: Trial, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.queue(code=1)
    before = (queued.root / "campaign.json").read_bytes()
    assert call(queued, "finetune", "--task", "ct", "generation.blocks_per_shard=5") == 1
    assert "squeue: Unable to contact slurm controller" in capsys.readouterr().err
    assert (queued.root / "campaign.json").read_bytes() == before


def test_a_campaign_that_slurm_was_never_handed_needs_no_slurm(
    trial: Trial, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.queue(code=1)
    trial.prepare()
    trial.work("finetune", "ct")
    assert call(trial, "finetune", "--task", "ct") == 0
    assert slurm.asked("squeue") == 0


def test_no_command_prepares_a_campaign_by_itself() -> None:
    calls = [path for path in ROOT.glob("medsyn/**/*.py") if "prepare.prepare(" in path.read_text()]
    assert calls == [ROOT / "medsyn" / "campaign" / "guards.py"]
