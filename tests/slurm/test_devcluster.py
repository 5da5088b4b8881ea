from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import DEVCLUSTER, NO_PACKAGES, Cluster

Start = Callable[..., Cluster]
QUIET = "--output=/dev/null"
SMALL = {"accounting": 0, "nodes": 2, "grace": 0}


@pytest.fixture
def passing_cluster(short_directory: Callable[[], Path]) -> Iterator[Cluster]:
    cluster = Cluster(short_directory())
    yield cluster
    cluster.stop()


def processes_of(cluster: Cluster) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if os.fsencode(cluster.directory) in words and int(process.name) != os.getpid():
            found.append(f"{process.name} {words[:80]!r}")
    return found


def daemons(cluster: Cluster) -> dict[str, int]:
    return {file.stem: int(file.read_text().split()[0]) for file in cluster.directory.glob("run/*.pid")}


def ports(cluster: Cluster) -> set[int]:
    text = (cluster.directory / "etc" / "slurm.conf").read_text()
    return set(map(int, re.findall(r"\b(?:SlurmctldPort|AccountingStoragePort|Port)=(\d+)", text)))


def running(process: str) -> bool:
    try:
        return Path("/proc", process, "cmdline").read_bytes() != b""  # empty for a zombie
    except OSError:
        return False


def listens(port: int) -> bool:
    sockets = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return re.search(rf":{port:04X} [0-9A-F]+:0000 0A ", sockets) is not None


def test_a_job_sees_the_gpus_that_it_asked_for(cluster: Cluster, tmp_path: Path) -> None:
    for gpus, visible in ((1, "0"), (2, "0,1")):
        output = tmp_path / f"{gpus}.txt"
        job = cluster.sbatch(
            "--partition=gpu", f"--gres=gpu:{gpus}", f"--output={output}", script="srun printenv CUDA_VISIBLE_DEVICES"
        )
        cluster.wait_for_state(job, "COMPLETED")
        assert output.read_text().split() == [visible]
        cluster.reset()


def test_accounting_knows_how_a_job_ended(cluster: Cluster) -> None:
    job = cluster.sbatch(QUIET, script="exit 7")
    cluster.wait_until(lambda: [row["State"] for row in cluster.sacct(job)] == ["FAILED"])
    assert cluster.sacct(job)[0]["ExitCode"] == "7:0"


def test_preemption_first_sends_the_jobs_own_signal(cluster: Cluster, tmp_path: Path) -> None:
    warned = f"srun bash -c 'trap \"touch {tmp_path}/warned; exit 0\" USR2; touch {tmp_path}/ready; sleep 600 & wait'"
    cluster.sbatch("--partition=preempt", "--signal=USR2@60", "--gres=gpu:2", "--nodes=4", QUIET, script=warned)
    cluster.wait_until((tmp_path / "ready").exists, what="the job's start")
    cluster.sbatch("--partition=gpu", "--gres=gpu:2", QUIET, script="true")
    cluster.wait_until((tmp_path / "warned").exists, what="USR2")
    cluster.reset()


def test_what_runs_on_a_lost_node_ends_and_the_node_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    started = tmp_path / "process"
    cluster.sbatch("--nodelist=n2", QUIET, script=f"echo $$ >{started}.new; mv {started}.new {started}; exec sleep 600")
    cluster.wait_until(started.exists, what="the job's start")
    process = started.read_text().strip()
    assert running(process)
    cluster.kill_node("n2")
    cluster.wait_until(lambda: not running(process), what="the end of the node's processes")
    assert "slurmd-n2 down" in cluster.devcluster("status", check=False).stdout
    cluster.start_node("n2")
    assert cluster.devcluster("status").returncode == 0
    cluster.reset()


def test_a_job_of_the_gpu_partition_sends_one_of_preempt_back_to_the_queue(other_cluster: Start) -> None:
    cluster = other_cluster(**SMALL)
    low = [cluster.sbatch("--partition=preempt", "--gres=gpu:2", QUIET, script="srun sleep 600") for _ in ("n1", "n2")]
    for job in low:
        cluster.wait_for_state(job, "RUNNING")
    high = cluster.sbatch("--partition=gpu", "--gres=gpu:2", QUIET, script="true")
    cluster.wait_for_state(high, "COMPLETED")
    cluster.wait_until(lambda: sorted(cluster.job(job)["Restarts"] for job in low) == ["0", "1"], what="one requeue")
    for job in low:
        cluster.wait_for_state(job, "RUNNING")
    cluster.reset()


def test_without_accounting_sacct_has_no_answer(other_cluster: Start) -> None:
    answer = other_cluster(**SMALL).run("sacct", check=False)
    assert answer.returncode != 0
    assert "accounting storage is disabled" in answer.stderr


def test_starting_twice_changes_nothing(other_cluster: Start) -> None:
    cluster = other_cluster(**SMALL)
    before = daemons(cluster)
    assert "already up" in cluster.devcluster("start").stderr
    assert daemons(cluster) == before
    refused = cluster.devcluster("start", check=False, grace=1)
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    assert daemons(cluster) == before


def test_two_clusters_side_by_side_share_nothing(cluster: Cluster, other_cluster: Start) -> None:
    other = other_cluster(**SMALL)
    assert not ports(cluster) & ports(other)
    job = other.sbatch("--hold", QUIET, script="true")
    assert [row["job"] for row in other.squeue(job)] == [job]
    assert cluster.squeue(job) == []
    other.reset()


def test_stop_leaves_no_process_and_no_port(passing_cluster: Cluster, tmp_path: Path) -> None:
    passing_cluster.devcluster("start", nodes=2)
    stubborn = f"trap '' TERM; touch {tmp_path}/ready; while true; do sleep 1; done"
    passing_cluster.sbatch(QUIET, script=stubborn)
    passing_cluster.wait_until((tmp_path / "ready").exists, what="the job's start")
    used = ports(passing_cluster)
    assert len(used) == 4
    assert all(listens(port) for port in used)
    passing_cluster.stop()
    assert processes_of(passing_cluster) == []
    assert not any(listens(port) for port in used)
    passing_cluster.stop()
    assert passing_cluster.devcluster("status", check=False).returncode == 1


def test_after_kill_9_of_every_daemon_start_finds_queue_and_accounting_again(passing_cluster: Cluster) -> None:
    passing_cluster.devcluster("start", nodes=1)
    job = passing_cluster.sbatch("--hold", "--job-name=early-bird", QUIET, script="true")
    saved = passing_cluster.directory / "state" / "job_state"  # slurmctld writes it seconds after sbatch
    passing_cluster.wait_until(lambda: saved.exists() and b"early-bird" in saved.read_bytes(), what="the saved queue")
    for process in daemons(passing_cluster).values():
        os.kill(process, signal.SIGKILL)
    passing_cluster.devcluster("start")
    assert passing_cluster.job(job)["JobState"] == "PENDING"
    passing_cluster.run("scontrol", "release", job)
    passing_cluster.wait_until(lambda: [row["State"] for row in passing_cluster.sacct(job)] == ["COMPLETED"])


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_has_a_cluster(short_directory: Callable[[], Path]) -> None:
    directory = short_directory()
    shutil.copytree(DEVCLUSTER.parent, directory / "slurm")  # the checkout may lie where others cannot read
    shutil.chown(directory, "www-data", "www-data")
    user = (
        "setpriv",
        "--reuid=www-data",
        "--regid=www-data",
        "--clear-groups",
        "--no-new-privs",
        "--bounding-set=-all",
    )
    cluster = Cluster(directory, user, directory / "slurm" / DEVCLUSTER.name)
    cluster.devcluster("start", nodes=1)
    try:
        job = cluster.sbatch(QUIET, "--gres=gpu:1", script="srun true")
        cluster.wait_until(lambda: [row["State"] for row in cluster.sacct(job)] == ["COMPLETED"])
        assert cluster.job(job)["UserId"].startswith("www-data")
    finally:
        cluster.stop()
    assert processes_of(cluster) == []


def test_missing_packages_are_told_with_the_line_that_installs_them(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for program in Path("/usr/bin").iterdir():
        if not program.name.startswith(("sbatch", "munge", "mariadb")):
            (tools / program.name).symlink_to(program)
    directory = Path(f"/tmp/medsyn-missing-{os.getpid()}")
    start = subprocess.run(
        [DEVCLUSTER, "start", "--dir", directory],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert start.returncode == NO_PACKAGES
    assert "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd" in start.stderr
    assert len(start.stderr.splitlines()) == 1
    assert not directory.exists()


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["start", "nods=3"], "no setting 'nods'; there are: nodes cpus"),
        (["start", "nodes=0"], "nodes=0: a whole number from 1"),
        (["start", "accounting=yes"], "accounting=yes: 0 or 1"),
        (["start", "--dir", "/tmp/" + "d" * 60], "has 65 characters; at most 64"),
        (["start", "--dir", "/tmp/a b"], "only letters, digits"),
        (["status", "--dir", "/tmp/no-such-cluster"], "devcluster start makes one"),
        (["begin"], "no command 'begin'"),
        (["start", "fast"], "what is 'fast'?"),
    ],
)
def test_a_word_that_cannot_work_is_answered_in_one_line(words: list[str], answer: str) -> None:
    refused = subprocess.run([DEVCLUSTER, *words], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert answer in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
