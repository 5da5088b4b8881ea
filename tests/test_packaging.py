"""The pins, the hash-locked list and the repository's shape stay in step."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pairs = (dependency.split("==") for dependency in project["dependencies"] if "==" in dependency)
    return {normal(name): version for name, version in pairs}


def locked() -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def test_every_pin_is_locked_at_the_same_version() -> None:
    lock = locked()
    assert {name: lock.get(name) for name in pinned()} == pinned()


def test_every_locked_package_has_a_hash_and_no_address() -> None:
    text = (ROOT / "requirements.txt").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.split("\n", 5)[5])
    assert all("--hash=sha256:" in entry for entry in entries if entry.strip())
    assert not re.search(r"https?:|file:|--index|--find-links", re.sub(r"^#.*$", "", text, flags=re.MULTILINE))


def test_the_lock_is_what_this_environment_runs() -> None:
    """Holds on the pinned stack only; the current stack is tested by a command of its own."""
    if importlib.metadata.version("torch").split("+")[0] != locked()["torch"]:
        pytest.skip("this is not the pinned stack")
    installed = {normal(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()}
    wrong = {
        name: (version, installed[name])
        for name, version in locked().items()
        if installed.get(name, version) != version
    }
    assert wrong == {}


def test_uv_lock_is_not_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in tracked
    assert "requirements.txt" in tracked


@pytest.mark.parametrize(
    "module",
    [
        *("medsyn.config", "medsyn.stage", "medsyn.models.weights", "medsyn.models.architecture"),
        *("medsyn.data.tables", "medsyn.campaign.cost"),
    ],
)
def test_what_a_login_node_imports_does_not_import_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'diffusers', 'submitit')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


LAYERS = [
    {"errors", "disk", "seeds", "solvers", "config", "stage"},
    {"data"},
    {"models"},
    {"training", "generation", "evaluation"},
    {"campaign", "doctor", "prompts"},
    {"cli"},
    {"calibrate", "verify", "single"},
    {"__main__"},
]


def test_imports_go_one_way() -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    wrong = []
    for path in sorted((ROOT / "medsyn").rglob("*.py")):
        room = path.relative_to(ROOT / "medsyn").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for imported in re.findall(r"^\s*(?:from|import) medsyn\.(\w+)", path.read_text(), re.MULTILINE):
            if level[imported] > level[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports medsyn.{imported}")
    assert wrong == []
