"""What can be said of the Dockerfile and apptainer.def without building them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medsyn.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFINITION = (ROOT / "apptainer.def").read_text()
LOCKS = {"requirements.txt", "requirements-build.txt", "requirements-cu118.txt", "requirements-cuda11.txt"}
# set by an image, each of these would beat the host's value
OF_THE_HOST = ("HF_HOME", "HF_HUB", "TORCH_HOME", "TRANSFORMERS_CACHE", "OMP_NUM_THREADS", "LD_LIBRARY_PATH")


def program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; `uv sync` does it")
    return found


def section(name: str) -> str:
    match = re.search(rf"^%{re.escape(name)}\n(.*?)(?=^%|^#|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    assert match, f"apptainer.def has no %{name}"
    return match[1]


def joined(text: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", text)


def steps(shell: str) -> list[str]:
    """The commands that install something, in order, with paths written alike."""
    text = joined(shell).replace("$lock", "/opt/medsyn/lock").replace("$TORCH_REQUIREMENTS", "{{ TORCH_REQUIREMENTS }}")
    text = re.sub(r"--mount=\S+\s*", "", text).replace('"', "")
    commands = [command.strip().removeprefix("RUN ").strip() for command in re.split(r"\n|&&", text)]
    kinds = (
        "apt-get install",
        "/opt/medsyn/bin/pip install --no-cache-dir --no-deps --require-hashes",
        "find",
        "ls -d",
    )
    return [command for command in commands if command.startswith(kinds)]


def test_hadolint_has_nothing_to_say() -> None:
    checked = subprocess.run([program("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def shell_files() -> list[Path]:
    found = [path for path in ROOT.glob("slurm/**/*") if path.is_file() and path.suffix != ".yaml"]
    return sorted([*found, *ROOT.glob("tests/container/*.sh"), ROOT / ".ci" / "run"])


@pytest.mark.parametrize("path", shell_files(), ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say_of_scripts(path: Path) -> None:
    checked = subprocess.run([program("shellcheck"), path], capture_output=True, text=True, check=False)
    assert checked.stdout == ""


@pytest.mark.parametrize("name", ["post", "environment", "runscript", "test", "apprun finetune"])
def test_shellcheck_has_nothing_to_say_of_the_definition(name: str) -> None:
    script = "#!/bin/sh\n" + re.sub(r"\{\{ (\w+) \}\}", r"\1", section(name))
    # SC2269: an argument of the template that has its variable's name
    checked = subprocess.run(
        [program("shellcheck"), "--exclude=SC2269", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert checked.stdout == ""


def test_both_files_install_the_same_in_the_same_order() -> None:
    docker = steps(DOCKERFILE)
    assert docker == steps(section("post"))
    assert len(docker) == 6


def test_both_files_use_every_lock() -> None:
    named = re.compile(r"requirements[\w-]*\.txt")
    assert set(named.findall(DOCKERFILE)) == LOCKS
    assert set(named.findall(DEFINITION)) == LOCKS
    assert all((ROOT / name).is_file() for name in LOCKS)


def test_both_files_begin_with_the_same_base() -> None:
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base
    assert f"    BASE={base[1]}\n" in section("arguments")


def test_both_files_have_the_same_entry_points() -> None:
    entry = re.search(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.MULTILINE)
    assert entry
    start = json.loads(entry[1])[-1]
    assert section("runscript").split() == ["exec", start, '"$@"']
    apps = re.findall(r"^%apprun (\w+)$", DEFINITION, re.MULTILINE)
    assert apps == ["finetune", "rlhf", "generate", "evaluate", "doctor"]
    assert set(apps) <= set(COMMANDS)
    for app in apps:
        assert section(f"apprun {app}").split() == ["exec", start, app, '"$@"']


def test_both_files_set_the_same_variables_but_for_the_hosts_python_and_dockers_driver() -> None:
    block = re.search(r"^ENV (.*)$", joined(DOCKERFILE), re.MULTILINE)
    assert block
    docker = {word for word in block[1].split() if not word.startswith("NVIDIA_")}
    exported = {line.removeprefix("export ") for line in map(str.strip, section("environment").splitlines()) if line}
    assert docker == exported - {"PYTHONPATH=", "PYTHONHOME="}


def test_both_files_have_the_same_labels_and_the_version_of_the_project() -> None:
    docker = dict(re.findall(r'(org\.opencontainers\S+)="([^"]*)"', joined(DOCKERFILE)))
    assert docker == dict(line.strip().split(" ", 1) for line in section("labels").strip().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert docker["org.opencontainers.image.version"] == project["version"]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("heredocs, which Docker 20.10 and buildah 1.28 do not read", r"<<"),
        ("COPY --link, which they do not read either", r"--link"),
        ("a syntax line, which pulls a frontend from a registry", r"^#\s*syntax\s*="),
        ("PYTHONPATH, which would hide what is installed", r"PYTHONPATH"),
        ("tools of Slurm, which must be the cluster's own", r"slurm-client|munge"),
    ],
)
def test_the_dockerfile_has_no(what: str, pattern: str) -> None:
    assert re.search(pattern, DOCKERFILE, re.MULTILINE) is None, what


@pytest.mark.parametrize("name", OF_THE_HOST)
def test_no_image_sets_what_the_host_decides(name: str) -> None:
    assert not re.search(rf"^(ENV\s+|\s+){name}\w*=", DOCKERFILE, re.MULTILINE)
    assert f"export {name}" not in section("environment")


def test_no_file_of_the_image_has_an_address() -> None:
    for text in (DOCKERFILE, DEFINITION):
        assert not re.search(r"https?://", text)
