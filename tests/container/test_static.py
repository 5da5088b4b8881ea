"""What can be said of the Dockerfile and apptainer.def without building them."""

from __future__ import annotations

import difflib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medsyn.__main__ import COMMANDS
from tests.helpers.paths import ROOT

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


def without_comments(text: str) -> str:
    return re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)


def joined(text: str) -> str:
    return re.sub(r"\s*\\\n\s*", " ", text)


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order: the name of each and what follows it."""
    lines = joined(without_comments(DOCKERFILE)).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def given(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def alike(text: str) -> str:
    """The Dockerfile's words for what apptainer.def names otherwise, and no quotes."""
    text = text.replace('"', "").replace("$lock", "/opt/medsyn/lock").replace("$build", "/opt/medsyn-build")
    return re.sub(r"\{\{ (\w+) \}\}|\$\{(\w+)\}", r"$\1\2", text)


def commands(script: str) -> list[str]:
    """The commands that make the image, in order, without the shell's own words between them."""
    text = re.sub(r"--mount=\S+\s*", "", alike(joined(without_comments(script))))
    found = [command.strip() for command in re.split(r"\n|&&", text)]
    return [command for command in found if command and not re.match(r"(if|else|fi|echo)\b|\w+=", command)]


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


def test_both_files_run_the_same_commands_but_for_these() -> None:
    compared = difflib.ndiff(commands("\n".join(given("RUN"))), commands(section("post")))
    code = "/opt/medsyn/bin/pip install --no-cache-dir --no-deps --no-index --no-build-isolation"
    assert [line for line in compared if line.startswith(("-", "+"))] == [
        "+ set -eu",
        "+ cd /opt/medsyn-build/lock",
        "- python3 -m venv /opt/medsyn",
        "+ python3 -m venv --clear /opt/medsyn",
        "- useradd --uid 1000 --create-home medsyn",
        "+ cp -r /opt/medsyn-build/lock /opt/medsyn/lock",
        "+ cd /",
        f"- {code} /opt/medsyn/source",
        f"+ {code} --force-reinstall /opt/medsyn-build/source",
        "+ rm -rf /opt/medsyn/configs",
        "- mv /opt/medsyn/source/configs /opt/medsyn/configs",
        "+ mv /opt/medsyn-build/source/configs /opt/medsyn/configs",
        "- rm -r /opt/medsyn/source",
        "+ rm -r /opt/medsyn-build",
        "- chmod -R a+rX /opt/medsyn/configs /opt/medsyn/lock",
        "+ chmod -R a+rX /opt/medsyn",
    ]


def test_both_files_copy_the_same_in_the_same_order() -> None:
    copies = [alike(rest).split() for rest in given("COPY")]
    docker = [[source, target] for *sources, target in copies for source in sources]
    definition = alike(section("files")).replace("/opt/medsyn-build/", "/opt/medsyn/")
    assert docker == [line.split() for line in definition.splitlines() if line]


def test_code_comes_after_every_package_so_that_a_change_of_it_builds_in_seconds() -> None:
    lines = [f"{name} {rest}" for name, rest in instructions()]
    packages = [number for number, line in enumerate(lines) if "--require-hashes" in line]
    code = [number for number, line in enumerate(lines) if line.startswith("COPY") and "REQ" not in line.upper()]
    assert len(packages) == 3
    assert max(packages) < min(code)


def test_what_is_installed_is_compiled_as_pip_does_unless_told_otherwise() -> None:
    for text in (DOCKERFILE, DEFINITION):
        assert not re.search(r"--no-compile|PIP_NO_COMPILE|PYTHONDONTWRITEBYTECODE|\buv\b", text)
    readme = (ROOT / "README.md").read_text()
    assert "UV_COMPILE_BYTECODE=1 uv run launch.py" in readme, "uv does it only when told"


def test_every_installation_of_packages_can_have_secrets_and_needs_none() -> None:
    optional = [("pip_conf", "/etc/pip.conf,required=false"), ("ca", "/run/secrets/ca.crt,required=false")]
    for command in given("RUN"):
        wanted = optional if "--require-hashes" in command else []
        assert re.findall(r"--mount=type=secret,id=(\w+),target=(\S+)", command) == wanted


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
    *reaper, start = json.loads(*given("ENTRYPOINT"))
    assert reaper == ["/usr/bin/tini", "--"]
    assert section("runscript").split() == ["exec", start, '"$@"']
    apps = re.findall(r"^%apprun (\w+)$", DEFINITION, re.MULTILINE)
    assert apps == ["finetune", "rlhf", "generate", "evaluate", "doctor"]
    assert set(apps) <= set(COMMANDS)
    for app in apps:
        assert section(f"apprun {app}").split() == ["exec", start, app, '"$@"']


def test_both_files_set_the_same_variables_but_for_the_hosts_python_and_dockers_driver() -> None:
    docker = set(" ".join(given("ENV")).split())
    definition = {line.strip().removeprefix("export ") for line in section("environment").splitlines() if line}
    assert docker - definition == {"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}
    assert definition - docker == {"PYTHONPATH=", "PYTHONHOME="}
    assert {"PYTHONNOUSERSITE=1", "PYTHONSAFEPATH=1"} < docker & definition


def test_the_docker_image_runs_as_an_ordinary_user() -> None:
    assert given("USER") == ["1000"]


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
    for text in (DOCKERFILE, DEFINITION):
        assert not re.search(rf"\b{name}", without_comments(text))


def test_no_file_of_the_image_has_an_address() -> None:
    for text in (DOCKERFILE, DEFINITION):
        assert not re.search(r"https?://", text)
