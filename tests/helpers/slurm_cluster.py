"""A running `slurm/devcluster` as the tests see it: commands in its environment, questions, waiting."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from tests.helpers.paths import ROOT

DEVCLUSTER = ROOT / "slurm" / "devcluster"
NO_PACKAGES = 3  # devcluster's exit status
FOREIGN = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SALLOC_", "SRUN_")
T = TypeVar("T")


def require_packages() -> None:
    """Skip the test, and say why, where Slurm's packages neither are nor can be fetched by root or sudo."""
    installed = subprocess.run([DEVCLUSTER, "install"], capture_output=True, text=True, check=False, timeout=1200)
    if installed.returncode == NO_PACKAGES:
        pytest.skip(installed.stderr.splitlines()[-1])
    assert installed.returncode == 0, installed.stderr


@dataclass(frozen=True)
class Cluster:
    """One cluster. `become` is put before every command (setpriv ..., to be another user)."""

    directory: Path
    become: tuple[str, ...] = ()
    program: Path = DEVCLUSTER

    @property
    def env(self) -> dict[str, str]:
        """This process' environment, with this cluster as the only Slurm in it."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return {**own, "SLURM_CONF": str(self.directory / "etc" / "slurm.conf")}

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        input: str | None = None,
        timeout: float = 120.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the "login node"; `env` is added to `.env`. With `check`, a failure shows its output."""
        words = [*self.become, *map(str, command)]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd or self.directory,
            env={**self.env, **(env or {})},
            input=input,
            timeout=timeout,
        )
        if check:
            assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def devcluster(self, *words: str, check: bool = True, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run `devcluster WORDS --dir DIRECTORY SETTING=VALUE ...`."""
        given = [f"{name}={value}" for name, value in settings.items()]
        return self.run(self.program, *words, "--dir", self.directory, *given, check=check, timeout=400)

    def stop(self) -> None:
        """End every job and daemon of this cluster."""
        self.devcluster("stop")

    def kill_node(self, node: str) -> None:
        """The node's power fails. Slurm takes 20 to 30 s to notice."""
        self.devcluster("kill-node", node)

    def start_node(self, node: str) -> None:
        """The node boots; on return it takes jobs."""
        self.devcluster("start-node", node)

    def reset(self) -> None:
        """Cancel every job, wait until the queue is empty, and bring every node back."""

        def empty() -> bool:
            jobs = {row["job"].split("_")[0] for row in self.squeue()}
            if jobs:
                self.run("scancel", "--quiet", *jobs, check=False)
            return not jobs

        self.wait_until(empty, what="an empty queue")
        self.devcluster("start")

    def sbatch(self, *options: str, script: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Submit the shell commands `script`; return the job id."""
        return self.run(
            "sbatch", "--parsable", *options, input=f"#!/bin/bash\n{script}\n", cwd=cwd, env=env
        ).stdout.strip()

    def squeue(self, *jobs: str) -> list[dict[str, str]]:
        """The queue (of these jobs), one row per array element: job, state, name, partition, nodes, reason."""
        which = ["--jobs", ",".join(jobs)] if jobs else []
        rows = self.run("squeue", "--noheader", "--array", "--all", "--format=%i|%T|%j|%P|%N|%r", *which, check=False)
        names = ("job", "state", "name", "partition", "nodes", "reason")
        return [dict(zip(names, line.split("|"), strict=True)) for line in rows.stdout.splitlines()]

    def sacct(self, *jobs: str, every_run: bool = False) -> list[dict[str, str]]:
        """What accounting says of the jobs, without their steps; `every_run`: also of runs before a requeue."""
        fields = ("JobID", "State", "ExitCode", "NodeList", "JobName", "Start", "End", "Partition")
        options = ["--parsable2", "--noheader", "--allocations", f"--format={','.join(fields)}"]
        if every_run:
            options.append("--duplicates")
        rows = self.run("sacct", *options, "--jobs", ",".join(jobs))
        return [dict(zip(fields, line.split("|"), strict=True)) for line in rows.stdout.splitlines()]

    def job(self, job: str) -> dict[str, str]:
        """The fields of `scontrol show job` (of the first element of an array); empty if Slurm forgot the job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job, check=False)
        words = [word.split("=", 1) for word in (shown.stdout.splitlines() or [""])[0].split(" ") if "=" in word]
        return dict(reversed(words))

    def wait_until(self, condition: Callable[[], T], timeout: float = 120.0, what: str = "") -> T:
        """Poll until the condition is true; return its value. Fails with the queue and what was waited for."""
        end = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {timeout:g} s for {what or condition}\n{self.run('squeue').stdout}"
            time.sleep(0.2)
        return value

    def wait_for_state(self, job: str, *states: str, timeout: float = 120.0) -> str:
        """Poll slurmctld until the job is in one of the states; return it."""
        return self.wait_until(
            lambda: (state := self.job(job).get("JobState", "")) in states and state,
            timeout,
            f"job {job} in {' or '.join(states)}; it is {self.job(job).get('JobState', 'unknown')}",
        )
