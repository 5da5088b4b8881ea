"""The shell around a task, run without Slurm: a stub of scontrol writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from medsyn.campaign.slurm import sbatch
from medsyn.errors import EXIT_BAD_SETUP, EXIT_SAVED

TASK = 'touch "$MEDSYN_BEGUN"; echo task'


def run(folder: Path, *setup: str, task: str = TASK) -> subprocess.CompletedProcess[str]:
    """A job that is an array's element 7_1; what it does ends up in its output."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "scontrol").write_text('#!/bin/sh\n[ "$2" = show ] || echo "scontrol $*"\nexit 1\n')
    (bin_ / "scontrol").chmod(0o755)
    after = sbatch.after_task(folder, folder / "bad-nodes", max_requeues=3)
    lines = [*sbatch.before(folder, {}, setup, None, after), task, *sbatch.END]
    script = folder / "job.sh"
    script.write_text("\n".join(lines))
    own = {"PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    return subprocess.run(["bash", script], capture_output=True, text=True, check=False, env=own, cwd=folder)


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        (["module load cuda/99.9"], "setup: exit code 127 of: module load cuda/99.9"),
        (["module() { return 1; }", "module load cuda/99.9", "true"], "setup: exit code 1 of: module load cuda/99.9"),
        (["cd /no/such; ls >/dev/null"], "setup: exit code 1 of: cd /no/such; ls >/dev/null"),
        (["source ./bad.sh"], "setup: exit code 1 of: source ./bad.sh"),
        (["[ -d /no/such ] || exit 3"], "setup: exit code 3 of: exit 3"),
        (["set -eu", "echo $NO_SUCH"], "setup: exit code 1 of: echo $NO_SUCH"),
    ],
)
def test_a_line_of_setup_that_fails_ends_the_job_before_its_task(tmp_path: Path, setup: list[str], said: str) -> None:
    (tmp_path / "bad.sh").write_text("true\nfalse\n")
    first = run(tmp_path, *setup)
    assert "task" not in first.stdout.splitlines()
    assert f"medsyn: {said}\n" in first.stderr
    assert "scontrol requeue 7_1" in first.stdout  # it may have been the machine's
    second = run(tmp_path, *setup)
    assert second.returncode == EXIT_BAD_SETUP
    assert "scontrol requeue" not in second.stdout
    assert second.stderr.splitlines()[-1].endswith(f"before the task began, twice; {said}")


@pytest.mark.parametrize(
    "setup",
    [
        [],
        ["[ -d /no/such ] && export X=1", "export Y=1"],
        ["if false; then", "  false", "fi", "grep -q x /dev/null || true"],
        ["source ./good.sh"],
        ["module() { false; true; }", "module load x"],
        ["X=$(false; echo 1)", "(exit 0)", "set -eu"],
        ["trap 'rm -f scratch' EXIT", "set -o pipefail", "trap 'true' ERR"],
    ],
)
def test_what_does_not_fail_does_not_end_it_and_does_not_outlive_the_setup(tmp_path: Path, setup: list[str]) -> None:
    (tmp_path / "good.sh").write_text("false\ngrep -q x /dev/null\ntrue\n")
    (tmp_path / "scratch").touch()
    done = run(tmp_path, *setup)
    assert (done.returncode, done.stdout) == (0, "task\n"), done.stderr
    assert (tmp_path / "scratch").exists() != any("scratch" in line for line in setup)
    saved = run(tmp_path, *setup, task=f"{TASK}; (exit {EXIT_SAVED})")
    assert saved.returncode == EXIT_SAVED
    assert "scontrol requeue 7_1" in saved.stdout


def test_a_gate_goes_on_where_the_tasks_setup_failed(tmp_path: Path) -> None:
    lines = sbatch.before(tmp_path, {}, ["module load cuda/99.9"], None, guarded=False)
    script = "\n".join([*lines, "echo gate", *sbatch.END])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "gate\n")
