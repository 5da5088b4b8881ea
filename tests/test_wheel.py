"""The wheel is the whole product: what is installed from it needs no checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{words} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def uv() -> str:
    found = os.environ.get("UV") or shutil.which("uv")
    if found is None:
        pytest.skip("uv, which builds the wheel, is not here")
    return found


@pytest.fixture(scope="module")
def wheel(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("medsyn", "configs", "slurm"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("LICEN[CS]E*")]:
        shutil.copy(path, folder / "source")
    build = [uv, "build", "--wheel", "--out-dir", str(folder / "made"), str(folder / "source")]
    if subprocess.run([*build, "--offline"], capture_output=True, check=False).returncode:  # hatchling is not cached
        run(*build, cwd=folder)
    (made,) = (folder / "made").glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(uv: str, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--no-deps", "--offline", "--python", sys.executable, "--target", folder)
    run(uv, "pip", "install", *options, wheel, cwd=folder)
    return folder


def medsyn(installed: Path, *arguments: str | Path, cwd: Path) -> str:
    """Run the installed program; -S leaves out the links by which an editable checkout is found."""
    path = f"{installed}:{sysconfig.get_path('purelib')}"
    done = run(sys.executable, "-S", "-m", "medsyn", *arguments, cwd=cwd, PYTHONPATH=path, COLUMNS="200")
    return done.stdout


def test_everything_of_the_package_is_in_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "medsyn").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    assert {name for name in package if name.endswith((".py", ".html", ".safetensors", ".json"))}
    assert package - names == set()


def test_the_configurations_and_the_site_profiles_are_in_it(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for ours, theirs in (("configs", "configs"), ("slurm", "sites")):
        inside = {name for name in archive.namelist() if name.startswith(f"medsyn/{theirs}/")}
        assert inside == {f"medsyn/{theirs}/{path.name}" for path in (ROOT / ours).glob("*.yaml")}
        for name in inside:
            assert archive.read(name) == (ROOT / ours / Path(name).name).read_bytes()


def test_nothing_else_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if not re.match(r"medsyn/|medsyn_hpc-[\d.]+\.dist-info/", name)] == []
    licences = [path.name for path in ROOT.glob("LICEN[CS]E*")]
    assert all(any(name.endswith(f"licenses/{licence}") for name in names) for licence in licences)


def test_an_empty_folder_becomes_a_place_to_work_in(installed: Path, tmp_path: Path) -> None:
    code = "import medsyn, sys; sys.stdout.write(medsyn.__file__)"
    path = f"{installed}:{sysconfig.get_path('purelib')}"
    where = run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=path).stdout
    assert Path(where).is_relative_to(installed)
    told = medsyn(installed, "init", "mine", cwd=tmp_path)
    assert (tmp_path / "mine" / "tiny.yaml").read_bytes() == (ROOT / "configs" / "tiny.yaml").read_bytes()
    following = re.search(r"^next +.* -m medsyn submit (mine/tiny\.yaml --cluster local)$", told, re.MULTILINE)
    assert following, told
    told = medsyn(installed, "plan", *following[1].split(), cwd=tmp_path)
    assert f"campaign tiny, {tmp_path}/runs/tiny" in told and "generate" in told
