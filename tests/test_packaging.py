"""The pins, the hash-locked list and the repository's shape stay in step."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import FIRST
from tests.helpers.paths import ROOT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pairs = (dependency.split("==") for dependency in project["dependencies"] if "==" in dependency)
    return {normal(name): version for name, version in pairs}


def entries(name: str) -> dict[str, tuple[str, str]]:
    """Version and the whole entry of every package that the requirements file lists."""
    blocks = re.split(r"\n(?=[A-Za-z0-9#])", (ROOT / name).read_text())
    heads = ((re.match(r"([A-Za-z0-9_.-]+)==(\S+)", block), block) for block in blocks)
    return {normal(head[1]): (head[2], block) for head, block in heads if head}


def locked(*names: str) -> dict[str, str]:
    """What an environment installs: by default the stack that `uv sync` resolves."""
    files = names or ("requirements-cu121.txt", "requirements.txt")
    return {package: version for name in files for package, (version, _) in entries(name).items()}


def test_every_pin_is_locked_at_the_same_version() -> None:
    lock = locked()
    assert {name: lock.get(name) for name in pinned()} == pinned()


def test_every_constraint_is_locked_at_the_same_version() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    constraints = dict(line.split("==") for line in tool["constraint-dependencies"])
    assert constraints == {name: version for name, version in locked().items() if name not in pinned()}


def test_torch_of_the_image_is_that_of_the_pins_for_cuda_11() -> None:
    image = locked("requirements-cu118.txt")
    assert image == {name: f"{pinned()[name]}+cu118" for name in ("torch", "torchvision")}


def test_the_8_bit_adam_of_the_image_is_the_extra_of_the_project() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bnb"]
    assert extra == [f"bitsandbytes=={locked('requirements-cuda11.txt')['bitsandbytes']}"]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_every_locked_package_has_a_hash_and_no_address(path: Path) -> None:
    assert entries(path.name)
    assert [name for name, (_, block) in entries(path.name).items() if "--hash=sha256:" not in block] == []
    text = re.sub(r"^#.*$", "", path.read_text(), flags=re.MULTILINE)
    assert not re.search(r"https?:|file:|--index|--find-links", text)


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


def test_the_files_that_are_dealt_to_the_processes_first_are_there() -> None:
    assert [file for file in FIRST if not (ROOT / "tests" / file).is_file()] == []


def test_uv_lock_is_not_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in tracked
    assert "requirements.txt" in tracked


@pytest.mark.parametrize(
    "module",
    [
        *("medsyn.config", "medsyn.stage", "medsyn.models.weights", "medsyn.campaign.estimate.architecture"),
        *("medsyn.data.tables.read", "medsyn.campaign.estimate.cost"),
    ],
)
def test_what_a_login_node_imports_does_not_import_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'diffusers', 'submitit')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Lowest first: a room may import what is on its own level or below, never what is above.
LAYERS: dict[str, list[set[str]]] = {
    "": [
        {"errors", "disk", "lease", "seeds", "schedulers", "config", "stage", "records", "specification", "text"}
        | {"progress", "modality_names", "prctl", "forks", "launcher", "ahead", "host_memory", "user_cache"}
        | {"time_use", "efficiency", "own_ratings", "arms"},
        {"data"},
        {"models"},
        {"training", "generation", "evaluation", "rating", "scoring"},
        {"campaign", "doctor"},
        {"cli"},
        {"__main__"},
    ],
    "campaign": [
        {"tasks"},
        {"state", "estimate"},
        {"notify"},
        {"plan", "worker", "repair", "tables"},
        {"slurm"},
        {"guards", "cancel"},
        {"status"},
        {"local"},
    ],
    "generation": [
        {"block_store", "filter"},
        {"write"},
        {"sample", "evidence"},
        {"make", "verify"},
        {"stage", "api"},
    ],
    "rating": [
        {"formats"},
        {"order", "checklists", "sources", "agreement", "quality"},
        {"pixels", "page", "sessions", "choose", "label_studio"},
        {"compose", "collect", "tables", "report"},
        {"export", "take"},
        {"next_set"},
    ],
    "scoring": [
        {"find", "load"},
        {"captions"},
        {"score"},
        {"table", "api"},
    ],
    "data": [
        {"modalities"},
        {"images", "tables", "phantoms", "degradations"},
        {"prompts"},
        {"contents"},
        {"known_images"},
        {"read_images"},
        {"check"},
    ],
}
PACKAGES = sorted({".".join(path.parent.relative_to(ROOT / "medsyn").parts) for path in ROOT.glob("medsyn/**/*.py")})


def imported_names(path: Path) -> Iterator[str]:
    """The dotted name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports(package: str) -> dict[str, set[str]]:
    """Which of its neighbours each room (module or package) of a package of medsyn imports."""
    dotted = ["medsyn", *package.split(".")] if package else ["medsyn"]
    folder = ROOT.joinpath(*dotted)
    rooms = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    found: dict[str, set[str]] = {room: set() for room in rooms - {"__init__"}}
    for path in folder.rglob("*.py"):
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room in found:
            inside = (name.split(".") for name in imported_names(path))
            named = {name[len(dotted)] for name in inside if name[: len(dotted)] == dotted and len(name) > len(dotted)}
            found[room] |= named & found.keys() - {room}
    return found


@pytest.mark.parametrize("package", LAYERS)
def test_imports_go_one_way(package: str) -> None:
    level = {name: number for number, names in enumerate(LAYERS[package]) for name in names}
    found = imports(package)
    assert level.keys() == found.keys(), "every room has a level"
    assert [(room, other) for room, others in found.items() for other in others if level[other] > level[room]] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_itself_by_way_of_another(package: str) -> None:
    left = imports(package)
    while free := [room for room, others in left.items() if not others & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}
