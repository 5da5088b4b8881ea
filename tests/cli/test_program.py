"""One program, whatever it is started as: its commands, its help, and how it names itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medsyn
from medsyn.__main__ import COMMANDS
from medsyn.cli import app, invocation
from tests.helpers.paths import ROOT

STARTED = {
    "launch.py": [sys.executable, str(ROOT / "launch.py")],
    "python -m medsyn": [sys.executable, "-m", "medsyn"],
    "medsyn": [str(Path(sys.executable).with_name("medsyn"))],
}


def run(started: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = [*STARTED[started], *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "UV"} | {"PATH": "/usr/bin:/bin"}
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.mark.parametrize("started", STARTED)
def test_it_is_the_same_program_whatever_it_is_started_as(started: str, tmp_path: Path) -> None:
    listed = run(started, "--help").stdout
    assert listed.startswith(f"usage: {started} COMMAND")
    assert re.findall(r"^  (\w+)", listed, re.MULTILINE) == list(COMMANDS)
    assert run(started, "--version").stdout == f"medsyn {medsyn.__version__}\n"
    assert run(started, "submti").stderr == f"{started}: unknown command 'submti'; did you mean submit?\n"
    said = run(started, "status", str(ROOT / "configs" / "tiny.yaml"), f"campaign.dir={tmp_path / 'none'}")
    how = " ".join([*STARTED[started], "submit", str(ROOT / "configs" / "tiny.yaml"), f"campaign.dir={tmp_path}/none"])
    assert said.returncode == 65
    assert said.stderr == f"{ROOT}/configs/tiny.yaml: this campaign has not been submitted; run `{how}`\n"


def test_every_command_belongs_to_something_that_users_do() -> None:
    assert {its.group for its in COMMANDS.values()} == {
        *("a campaign", "single tasks, and single prompts", "data", "ratings", "any images", "tools"),
    }
    assert all(its.help for its in COMMANDS.values())


@pytest.mark.parametrize(
    ("argv", "orig_argv", "uv", "typed"),
    [
        (["launch.py"], ["python3", "launch.py"], False, "python3 launch.py"),
        (["launch.py"], ["/x/.venv/bin/python", "launch.py"], True, "uv run launch.py"),
        (["/x/medsyn/__main__.py"], ["python3", "-m", "medsyn"], False, "python3 -m medsyn"),
        (["/x/medsyn/__main__.py"], ["python", "-m", "medsyn"], True, "uv run python -m medsyn"),
        (["/x/.venv/bin/medsyn"], ["/x/.venv/bin/python", "/x/.venv/bin/medsyn"], True, "uv run medsyn"),
        (["BIN/medsyn"], ["/x/python", "BIN/medsyn"], False, "medsyn"),
        (["other place/medsyn"], ["/x/python", "other place/medsyn"], False, "'other place/medsyn'"),
        (["/usr/bin/pytest"], ["/x/python", "/usr/bin/pytest"], False, "medsyn"),
    ],
)
def test_what_to_type_next_is_what_the_user_types(
    argv: list[str], orig_argv: list[str], uv: bool, typed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "medsyn").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [argv[0].replace("BIN", str(tmp_path))])
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    monkeypatch.delenv("UV", raising=False)
    if uv:
        monkeypatch.setenv("UV", "/usr/bin/uv")
    assert invocation.command("status", ["a b.yaml"]) == f"{typed} status 'a b.yaml'"


@pytest.mark.parametrize("command", ["plan", "submit", "resume", "status", "logs", "cancel", "finetune", "calibrate"])
def test_help_and_errors_tell_what_is_optional(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as left:
            app.dispatch("medsyn", COMMANDS, [command, *words])
        assert left.value.code == code
    said = capsys.readouterr()
    assert "CONFIG" in said.out and "[key=value ...]" in said.out
    assert said.err.splitlines()[-1] == f"medsyn {command}: error: the following arguments are required: CONFIG"


def test_finding_a_command_imports_nothing_that_may_be_broken() -> None:
    """`doctor` must answer where the packages that read configurations cannot be imported."""
    code = "import sys, medsyn.__main__; print([n for n in ('yaml', 'pydantic', 'rich', 'torch') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.stdout == "[]\n", said.stderr
