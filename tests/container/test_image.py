"""Images built from the unmodified Dockerfile and apptainer.def, with a reduced lock, and entered."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from medsyn.campaign.state import attempts, campaign_file
from medsyn.disk import sha256_file
from tests.helpers.container_images import APPTAINER, AS_USER, NO_TORCH, ROOT, Sif, make_private, tool
from tests.helpers.slurm_cluster import Cluster
from tests.helpers.small_campaign import SMALLER

SITE_PACKAGES = "/opt/medsyn/lib/python3.11/site-packages"
WAITS = """
import os, signal, sys, time
def say(text):  # a second signal may come while the first is answered: print cannot be entered twice
    os.write(1, text.encode())
def leave(number, frame):
    say("asked by " + signal.Signals(number).name + chr(10))
    sys.exit(75)
def answer(number, frame):
    signal.signal(signal.SIGWINCH, signal.SIG_IGN)
    say("ready" + chr(10))
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGUSR2, leave)
signal.signal(signal.SIGWINCH, answer)
time.sleep(180)
"""


def test_docker_image_runs_medsyn_as_an_unknown_user(docker_image: str) -> None:
    inspected = tool("buildah", "inspect", "--type", "image", docker_image)
    config = json.loads(inspected.stdout)["OCIv1"]["config"]
    assert config["User"] == "1000"
    container = tool("buildah", "from", "--pull-never", docker_image).stdout.strip()
    try:
        start = ["buildah", "run", "--isolation", "chroot", "--user", "12345", container, "--", *config["Entrypoint"]]
        helped = tool(*start, *config["Cmd"])
        assert "usage: medsyn COMMAND" in helped.stdout
        refused = tool(*start, "finetune", "/no/such.yaml", check=False)
        assert refused.returncode == 65
        assert "there is no such configuration file" in refused.stderr
        copied = tool(*start[:-1], "sh", "-c", "cat /opt/medsyn/configs/*.yaml /opt/medsyn/lock/*")
        assert "finetune:" in copied.stdout
        made = tool(*start, "init", "/tmp/mine").stdout
        assert "/tmp/mine/tiny.yaml\n" in made and "/tmp/mine/slurm/apptainer.yaml\n" in made
    finally:
        tool("buildah", "rm", container)


def test_docker_image_is_built_again_in_seconds_when_only_code_changed(docker_image: str, context: Path) -> None:
    changed = context / "medsyn" / "seeds.py"
    before = changed.read_text()
    changed.write_text(f"{before}\n# changed\n")
    name = f"{docker_image}-changed"
    try:
        built = tool("docker", context, NO_TORCH, name).stdout
    finally:
        changed.write_text(before)
        tool("buildah", "rmi", "--force", name, check=False)
    assert "Successfully installed medsyn-hpc" in built
    assert "Collecting" not in built  # nothing was fetched


def test_docker_image_keeps_no_secret(docker_image: str) -> None:
    container = tool("buildah", "from", "--pull-never", docker_image).stdout.strip()
    try:
        root = Path(tool("buildah", "mount", container).stdout.strip())
        assert (root / "opt" / "medsyn" / "bin" / "medsyn").is_file()
        assert not (root / "etc" / "pip.conf").exists()
        assert list(root.rglob("ca.crt")) == []
    finally:
        tool("buildah", "rm", container)


def test_definition_upon_the_docker_image_fetches_nothing(docker_image: str, context: Path, work: Path) -> None:
    archive, made = work / "medsyn.tar", work / "from-docker.sif"
    tool("archive", docker_image, archive)
    built = tool("sif", context, NO_TORCH, made, archive)
    archive.unlink()
    assert made.is_file()
    made.unlink()
    output = built.stdout + built.stderr
    assert "only the code is installed" in output
    assert "Successfully installed medsyn-hpc" in output
    assert "Collecting" not in output


def test_sif_passes_its_own_test(sif: Sif) -> None:
    tested = sif.run("test")
    assert tested.returncode == 0, tested.stderr


@pytest.mark.parametrize("place", ["medsyn", "nvidia/cuda_runtime/lib"])
def test_sif_fails_its_own_test_with_next_to_nothing_in_place_of(place: str, sif: Sif) -> None:
    (sif.home / "__init__.py").touch()  # medsyn can still be imported, but not started
    tested = sif.run("test", options=("--bind", f"{sif.home}:{SITE_PACKAGES}/{place}"))
    assert tested.returncode == 1
    assert "Error" in tested.stderr


@pytest.mark.parametrize("app", ["finetune", "rlhf", "generate", "evaluate", "doctor"])
def test_sif_has_an_app_for(app: str, sif: Sif) -> None:
    helped = sif.run("run", "--help", options=("--app", app))
    assert helped.returncode == 0, helped.stderr
    assert app in helped.stdout.splitlines()[0]


def test_sif_tells_of_itself(sif: Sif) -> None:
    labels = json.loads(sif.run("inspect", options=("--json", "--labels")).stdout)
    assert labels["data"]["attributes"]["labels"]["org.opencontainers.image.version"]
    assert "run --app finetune" in sif.run("run-help").stdout
    assert "usage: medsyn COMMAND" in sif.run("run", "--help").stdout


@pytest.mark.parametrize("code", [0, 65, 70, 75, 78])
def test_exit_code_comes_out_of_the_sif(code: int, sif: Sif) -> None:
    assert sif.python(f"raise SystemExit({code})").returncode == code


def test_bad_input_ends_with_65_inside_as_outside(sif: Sif) -> None:
    refused = sif.run("run", "/no/such.yaml", "--task", "oct", options=("--app", "finetune"))
    assert refused.returncode == 65
    assert "there is no such configuration file" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signal_reaches_python_in_the_sif_and_75_comes_out(number: signal.Signals, sif: Sif) -> None:
    process = subprocess.Popen(
        [*AS_USER, *sif.command("exec", "python3", "-c", WAITS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=sif.home,
        env=sif.environment,
    )
    assert process.stdout is not None
    end = time.monotonic() + 120
    # Apptainer forwards signals some moments after it has started Python; this one harms nobody before that
    while not select.select([process.stdout], [], [], 1.0)[0]:
        assert time.monotonic() < end
        process.send_signal(signal.SIGWINCH)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert output == f"asked by {number.name}\n"
    assert process.returncode == 75


def test_sif_is_read_only_and_needs_no_writable_home(sif: Sif) -> None:
    code = "import os, medsyn; print(os.access('/opt/medsyn', os.W_OK), os.getuid()); open('/opt/medsyn/x', 'w')"
    written = sif.python(code, options=("--no-home",))
    assert written.stdout.split() == ["False", str(sif.home.stat().st_uid)]
    assert "Read-only file system" in written.stderr
    helped = sif.run("run", "--help", options=("--no-home", "--containall"))
    assert "usage: medsyn COMMAND" in helped.stdout, helped.stderr


def test_poisoned_home_and_variables_do_not_reach_the_inside(sif: Sif) -> None:
    planted = sif.home / ".local" / "lib" / "python3.11" / "site-packages"
    planted.mkdir(parents=True)
    for name in ("numpy.py", "medsyn.py", "sitecustomize.py", "usercustomize.py"):
        (planted / name).write_text("raise SystemExit('poison')\n")
        shutil.copy(planted / name, sif.home)  # which is the working directory
    poison = {"PYTHONPATH": str(planted), "PYTHONHOME": "/no/such/python", "PYTHONUSERBASE": str(sif.home / ".local")}
    code = f"import os, numpy, medsyn; print(numpy.__file__, medsyn.__file__, os.path.exists('{planted}'))"
    found = sif.python(code, environment=poison)
    assert found.returncode == 0, found.stderr
    ours = [f"{SITE_PACKAGES}/numpy/__init__.py", f"{SITE_PACKAGES}/medsyn/__init__.py"]
    assert found.stdout.split() == [*ours, "True"]  # the poison is in sight


def test_variables_of_the_host_and_of_env_reach_the_inside(sif: Sif) -> None:
    code = "import os; print(*(os.environ.get(name) for name in ('HF_HOME', 'OMP_NUM_THREADS', 'SLURM_JOB_ID')))"
    given = {"HF_HOME": "/scratch/hf", "OMP_NUM_THREADS": "3", "SLURM_JOB_ID": "17"}
    assert sif.python(code, environment=given).stdout.split() == ["/scratch/hf", "3", "17"]
    told = sif.python(code, environment=given, options=("--env", "HF_HOME=/other", "--env", "OMP_NUM_THREADS=1"))
    assert told.stdout.split() == ["/other", "1", "17"]


def test_newer_code_is_bound_over_that_of_the_image(sif: Sif, work: Path) -> None:
    newer = work / "newer"
    shutil.copytree(work / "context" / "medsyn", newer)
    (newer / "__init__.py").write_text("__version__ = 'newer'\n")
    make_private(newer)
    bind = ("--bind", f"{newer}:{SITE_PACKAGES}/medsyn:ro")
    assert sif.python("import medsyn; print(medsyn.__version__)", options=bind).stdout == "newer\n"


def test_nv_brings_the_drivers_library_and_nvidia_smi_of_a_stub_driver(sif: Sif) -> None:
    """Shows the flag and the paths; says nothing about CUDA."""
    driver = sif.home / "driver"
    driver.mkdir()
    library = driver / "libcuda.so.1"
    shutil.copy("/lib/x86_64-linux-gnu/libdl.so.2", library)
    known = f'echo "\tlibcuda.so.1 (libc6,x86-64) => {library}"'
    for name, script in {"ldconfig": f'/sbin/ldconfig "$@"; {known}', "nvidia-smi": "echo 520.61.05"}.items():
        (driver / name).write_text(f"#!/bin/sh\n{script}\n")
        (driver / name).chmod(0o755)
    stub = {"PATH": f"{driver}:{os.environ['PATH']}"}
    code = "import ctypes, subprocess; ctypes.CDLL('libcuda.so.1'); subprocess.run('nvidia-smi')"
    assert sif.python(code, environment=stub, options=("--nv",)).stdout == "520.61.05\n"
    assert sif.python(code, environment=stub).returncode != 0


def test_sif_keeps_no_secret_and_no_build_folder(sif: Sif) -> None:
    code = """
import pathlib
print(*[p for d in ("/etc", "/opt", "/mnt", "/root", "/run/secrets", "/tmp/pip") if pathlib.Path(d).is_dir()
        for p in pathlib.Path(d).rglob("*") if p.name in ("pip.conf", "ca.crt", "medsyn-build")])
"""
    searched = sif.python(code, options=("--containall",))
    assert (searched.stdout, searched.returncode) == ("\n", 0), searched.stderr


def test_doctor_inside_finds_only_the_torch_that_was_left_out(sif: Sif) -> None:
    examined = sif.run("run", "--json", options=("--app", "doctor"), environment={"PYTHONPATH": str(sif.home)})
    assert examined.returncode == 78
    findings = {finding["check"]: finding for finding in json.loads(examined.stdout)}
    assert findings["pin torch"]["verdict"] == "bad"
    assert findings["isolation"]["value"] == "every package is from /opt/medsyn"
    assert not {"pin numpy", "pin pydantic", "packages from elsewhere"} & set(findings)


def test_array_in_the_sif_with_torch_bound_from_outside_is_preempted_and_goes_on(
    sif_file: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """The Python and medsyn of the image; torch is that of the tests, read-only. Root enters without privileges."""
    here = tmp_path / "here"  # Apptainer mounts the folder in which the job was submitted
    here.mkdir()
    for name in ("medsyn", "submitit", "torch"):
        (here / f"{name}.py").write_text("raise SystemExit('poison')\n")
    directory, profile = tmp_path / "campaign", tmp_path / "site.yaml"
    packages = str(Path(torch.__file__).parents[1])
    bound = [f"{path}:{path}:ro" for path in (packages, sys.pycache_prefix) if path]  # with the bytecode, where it is
    profile.write_text(
        f"""
partition: preempt
time: 60
signal_seconds: 30
container:
  image: {sif_file}
  runtime: {APPTAINER}
  options: [--no-privs]
  binds: {bound}
  environment: {{PYTHONPATH: {packages}}}
stages:
  gate: {{partition: cpu}}
"""
    )
    named = [ROOT / "configs" / "tiny.yaml", *SMALLER, "finetune.max_train_steps=200", f"campaign.dir={directory}"]
    launch = [sys.executable, ROOT / "launch.py"]
    site = [f"cluster.site={profile}", "--cluster", "slurm"]
    cluster.run(*launch, "submit", *named, *site, cwd=here, timeout=300)
    campaign = campaign_file.open_campaign(directory)
    tasks = [planned.key for planned in campaign.plan.by_stage["finetune"]]
    assert len(tasks) == 2

    def all_at_work() -> bool:
        beats = [campaign.directory.heartbeat(*key) for key in tasks]
        return all(beat.is_file() and json.loads(beat.read_text())["step"] >= 1 for beat in beats)

    cluster.wait_until(all_at_work, 300, "both tasks at work in the image")
    urgent = cluster.sbatch("--partition=gpu", "--nodes=2", "--exclusive", script="sleep 1")
    cluster.wait_for_state(urgent, "COMPLETED", timeout=180)
    done = [campaign.directory.done(*key) for key in tasks]
    cluster.wait_until(lambda: all(path.is_file() for path in done), 300, "the array to end")
    cluster.run(*launch, "cancel", *named, cwd=here)
    for key in tasks:
        codes = [
            line["exit_code"] for line in attempts.attempt_lines(campaign.directory, key) if line["event"] == "end"
        ]
        assert codes == [75, 0]
    script = next(directory.glob("tasks/slurm/*finetune*/*.sh")).read_text()
    assert f"MEDSYN_IMAGE=sha256:{sha256_file(sif_file)}" in script
    assert f"{APPTAINER} exec --bind {directory}" in script
