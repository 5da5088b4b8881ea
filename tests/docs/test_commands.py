"""Every command that a document shows is one: the program is there, and its own parser takes the words."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest

from medsyn import __main__ as program
from medsyn import config as configuration
from medsyn import specification
from medsyn.cli import app
from tests.docs.pages import PAGES, Block, all_blocks, inline_code, name
from tests.helpers.paths import ROOT

Words = list[str]
BLOCKS = all_blocks("bash", "console")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

UV_VARIABLES = ("UV_COMPILE_BYTECODE",)
# Programs of other people, and the words of theirs that are used. What is ours in such a command is looked at below.
OTHERS = {
    "apptainer": {"build", "run", "exec", "test", "--build-arg", "--bind", "--app", "--nv", "-B"},
    "docker": {"build", "save", "run", "--build-arg", "-t", "-o", "--secret", "--gpus", "-v"},
    "scp": set(),
    "export": set(),
    "mkdir": {"-p"},
    "cp": set(),
    "python3.11": {"-m"},
    "pre-commit": {"install"},
}
# Slurm's own, which are asked where they are installed.
SLURM = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")


class Parsed(BaseException):
    """A parser has taken the words."""


@contextmanager
def only_parsing() -> Iterator[None]:
    """Every argument parser stops its program as soon as it has taken the words."""

    def stopping(parse: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def stop(self: argparse.ArgumentParser, args: Words | None = None, namespace: object = None) -> object:
            parse(self, args, namespace)
            raise Parsed

        return stop  # type: ignore[return-value]

    parser = argparse.ArgumentParser
    with (
        patch.object(parser, "parse_args", stopping(parser.parse_args)),
        patch.object(parser, "parse_intermixed_args", stopping(parser.parse_intermixed_args)),
    ):
        yield


def all_commands() -> dict[str, app.Command]:
    return {**getattr(importlib.import_module("launch"), "COMMANDS", {}), **program.COMMANDS}


def check_medsyn(words: Words) -> None:
    """A command of `medsyn` or `launch.py`; every `section.key=value` among its words is read as by the program."""
    if words == ["--help"] or words == ["--version"]:
        return
    with only_parsing(), pytest.raises(Parsed):
        code = app.dispatch("medsyn", all_commands(), words)
        pytest.fail(f"medsyn {' '.join(words)} ended with {code}")
    given = [word for word in words if re.match(r"[a-z_0-9]+(\.[a-z_0-9]+)+=", word)]
    configuration.load(ROOT / "configs" / "tiny.yaml", given, environment={})
    for word in words:
        if word.startswith(("configs/", "slurm/")) and word != "slurm/mine.yaml":
            assert (ROOT / word).is_file(), word


def check_benchmark(script: str, words: Words) -> None:
    path = ROOT / script
    assert path.is_file(), script
    with only_parsing(), patch.object(sys, "argv", [script, *words]), patch.object(sys, "path", [*sys.path]):
        sys.path.insert(0, str(path.parent))
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


def check_pytest(words: Words) -> None:
    known = {marker.partition(":")[0] for marker in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    rest = iter(words)
    for word in rest:
        if word == "-m":
            assert set(re.findall(r"\w+", next(rest))) - {"not", "and"} <= known
        elif word == "-n":
            assert next(rest).isdigit()
        else:
            assert (ROOT / word).exists(), word


def check_uv(words: Words) -> None:
    if words == ["sync"]:
        return
    assert words[0] == "run", words
    match words[1:]:
        case ["launch.py" | "medsyn", *rest]:
            check_medsyn(rest)
        case ["python", "-m", "medsyn", *rest]:
            check_medsyn(rest)
        case ["python", script, *rest] if script.startswith("benchmarks/"):
            check_benchmark(script, rest)
        case ["pytest", *rest]:
            check_pytest(rest)
        case ["ruff", "check"] | ["ruff", "format", "--check"] | ["mypy"]:
            pass
        case [script] if script.endswith(".sh"):
            assert (ROOT / script).stat().st_mode & 0o111, script
        case other:
            pytest.fail(f"uv run {' '.join(other)}: what is that?")


def check_devcluster(words: Words) -> None:
    """Commands, options and settings, against what `slurm/devcluster --help` lists."""
    usage = devcluster_help()
    rest = iter(words)
    for word in rest:
        if word == "--dir":
            next(rest)
        elif "=" in word:
            assert re.search(rf"^  {word.partition('=')[0]}=", usage, re.MULTILINE), word
        elif not re.fullmatch(r"n\d", word):
            assert re.search(rf"(^|[ |\[]){word}\b", usage, re.MULTILINE), word


@cache
def devcluster_help() -> str:
    return subprocess.run([ROOT / "slurm" / "devcluster", "--help"], capture_output=True, text=True, check=True).stdout


@cache
def slurm_help(command: str) -> str | None:
    """What a command of Slurm's says of its options; it wants a cluster's file even for that."""
    if shutil.which(command) is None:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write("ClusterName=none\nSlurmctldHost=localhost\nNodeName=localhost\nPartitionName=p Nodes=localhost\n")
        file.flush()
        own = {**os.environ, "SLURM_CONF": file.name}
        return subprocess.run([command, "--help"], capture_output=True, text=True, check=True, env=own).stdout


def check_slurm(command: str, words: Words) -> None:
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert (text := slurm_help(command)) is None or re.search(rf"{option}\b", text), f"{command} {option}"
            if option == "--wrap" and "=" not in word:
                check_words(next(rest).split())
        elif command == "srun":
            check_words([word, *rest])


def check_apptainer(words: Words) -> None:
    definition = (ROOT / "apptainer.def").read_text()
    for number, word in enumerate(words):
        if word == "--app":
            assert f"%apprun {words[number + 1]}\n" in definition
            image = words.index("medsyn.sif")
            check_medsyn([words[number + 1], *words[image + 1 :]])
        elif word == "--build-arg":
            assert re.search(rf"^    {words[number + 1].partition('=')[0]}=", definition, re.MULTILINE), words
    if words[0] == "exec":
        check_words(words[words.index("medsyn.sif") + 1 :])


def check_docker(words: Words) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    for option, value in pairwise(words):
        if option == "--build-arg":
            assert re.search(rf"^ARG {value.partition('=')[0]}\b", dockerfile, re.MULTILINE), words
        elif option == "--secret":
            assert f"id={re.findall('id=(.+?),', value)[0]}," in dockerfile, words
    if words[0] == "run":
        check_medsyn(words[words.index("medsyn") + 1 :])


def check_pip(words: Words) -> None:
    dependencies = {re.split("[=<]", dependency)[0] for dependency in PROJECT["project"]["dependencies"]}
    packages = [word for word in words if not word.startswith("-")]
    assert packages[0] == "install"
    assert set(packages[1:]) <= {*dependencies, "uv", "pytest", "pytest-xdist", "scipy"}


def check_words(words: Words) -> None:
    """Fail unless the command could be typed as it stands."""
    while re.match(r"[A-Z_0-9]+=", words[0]):
        variable, _, value = words.pop(0).partition("=")
        if variable in UV_VARIABLES:
            continue
        configuration.load(ROOT / "configs" / "tiny.yaml", environment={variable: value})
        assert variable in specification.ENVIRONMENT, variable
    if assigned := re.match(r"\w+=\$\(", words[0]):
        assert assigned
        return
    match words:
        case ["uv", *rest]:
            check_uv(rest)
        case ["medsyn" | "launch.py", *rest]:
            check_medsyn(rest)
        case ["slurm/devcluster", *rest]:
            check_devcluster(rest)
        case ["pip" | ".venv-current/bin/pip", *rest]:
            check_pip(rest)
        case [".venv-current/bin/python", "-m", "pytest"] | ["eval", _] | ["printenv", _] | ["sleep", _]:
            pass
        case [command, *rest] if command in SLURM:
            check_slurm(command, rest)
        case [command, *rest]:
            assert command in OTHERS, f"{command}: what is that?"
            check = {"apptainer": check_apptainer, "docker": check_docker}.get(command)
            unknown = [word for word in rest if word.startswith("-") and word not in OTHERS[command]]
            if check is not None:
                assert rest[0] in OTHERS[command], f"{command} {rest[0]}"
                check(rest)
                unknown = [word for word in unknown if word in rest[: _own_words(rest)]]
            assert unknown == [], f"{command}: {unknown}"


def _own_words(words: Words) -> int:
    """How many of a container program's words are its own: those after the image are of the program inside."""
    return next((number for number, word in enumerate(words) if word in ("medsyn.sif", "medsyn")), len(words))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_command_is_taken_by_its_own_parser(block: Block) -> None:
    assert block.commands
    for words in block.commands:
        check_words(list(words))


@pytest.mark.parametrize("block", all_blocks("bash"), ids=str)
def test_every_block_of_shell_is_shell(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@cache
def flags_of(command: str) -> set[str]:
    """The options of a command of medsyn's, and those of the tools that it may stand for."""
    flags: set[str] = set()

    def collect(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        for action in self._actions:
            flags.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                flags.update(flag for sub in action.choices.values() for a in sub._actions for flag in a.option_strings)
        raise Parsed

    parser = argparse.ArgumentParser
    for word in ["x", "--prompt=x"] if command == "generate" else ["x"]:
        with (
            patch.object(parser, "parse_args", collect),
            patch.object(parser, "parse_intermixed_args", collect),
            pytest.raises(Parsed),
        ):
            app.dispatch("medsyn", all_commands(), [command, word])
    return flags


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_that_is_named_in_a_text_is_there(page: Path) -> None:
    for code in inline_code(page):
        words = re.sub(r"^(uv run |python -m |python )+", "", code).split()
        if words[0] in ("medsyn", "launch.py") and len(words) > 1:
            words = words[1:]
        elif words[0] not in all_commands() or len(words) == 1:
            continue
        for command in [] if words[0].startswith("-") else words[0].split("|"):
            assert command in all_commands(), code
            for flag in [word for word in words[1:] if word.startswith("--")]:
                assert flag in flags_of(command), code
