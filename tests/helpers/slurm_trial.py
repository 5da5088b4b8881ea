"""A small campaign with fake stages whose tasks a real Slurm runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from medsyn.campaign.slurm import queue, submit
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.queue import QueueView
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.slurm.submit import Outcome
from medsyn.campaign.state import attempts, locks
from tests.helpers import fake_job
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.trial import Trial


class SlurmTrial(Trial):
    """The trial of the local scheduler's tests, queued on a cluster."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster
        self.said: list[str] = []

    def site(self, **values: Any) -> Site:
        """Tasks go to the partition that is preempted, gates to the one that is not."""
        stages = {"gate": {"partition": "cpu"}}
        values = {"partition": "preempt", "time": 60, "signal_seconds": 30, "stages": stages, **values}
        values["environment"] = {"PYTHONPATH": str(ROOT), **values.get("environment", {})}
        return Site.model_validate(values)

    def queue(self, only: set[Any] | None = None, **values: Any) -> Outcome:
        """What `medsyn submit` and `resume` do once the campaign is prepared."""
        campaign = self.campaign()
        with locks.exclusive(campaign.directory.ledger):
            return submit.submit(campaign, self.site(**values), only, self.said.append, fake_job.__name__)

    def view(self) -> QueueView:
        found = queue.view(on_record.read(self.campaign().directory.ledger))
        assert found.problem is None
        return found

    def in_queue(self) -> int:
        found = self.view()
        return len(found.tasks) + len(found.gates)

    def job(self, stage: str, task: str) -> str:
        """Slurm's id of the task's newest job."""
        return on_record.newest(on_record.read(self.campaign().directory.ledger))[stage, task][1]

    def finish(self, timeout: float = 240) -> None:
        """Wait until nothing of the campaign is in the queue."""
        self.cluster.wait_until(lambda: self.in_queue() == 0, timeout, "the campaign to end")

    def wait_for_steps(self, task: str, count: int = 1) -> None:
        self.cluster.wait_until(lambda: len(self.steps(task)) >= count, 120, f"{count} steps of {task}")

    def codes(self, stage: str, task: str) -> list[int]:
        """Exit codes of the task's attempts that could write one down."""
        lines = attempts.attempt_lines(self.campaign().directory, (stage, task))
        return [line["exit_code"] for line in lines if line["event"] == "end"]

    def starts(self, stage: str, task: str) -> list[dict[str, Any]]:
        lines = attempts.attempt_lines(self.campaign().directory, (stage, task))
        return [line for line in lines if line["event"] == "start"]

    def repeated(self, task: str) -> int:
        """How many steps were made more than once."""
        made = self.steps(task)
        return len(made) - len(set(made))

    def log(self, stage: str, task: str) -> str:
        return self.campaign().directory.log(stage, task).read_text()


def settle_down(seconds: float = 1.0) -> None:
    """Give something that must not happen the time to happen."""
    time.sleep(seconds)
