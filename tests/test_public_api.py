"""What other programs may rely on: the names, their documentation, and what a type checker sees of them."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medsyn
from tests.helpers.generated_campaign import generated_campaign
from tests.helpers.paths import ROOT

DOCUMENTS = ("docs/python-api.md", "README.md")
BLOCKS = [
    pytest.param(code, id=f"{document}, block {number}")
    for document in DOCUMENTS
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S), 1)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the documentation is: a finished campaign, and the project's configurations."""
    root = tmp_path_factory.mktemp("reader")
    generated_campaign(root / "runs" / "tiny")
    shutil.copytree(ROOT / "configs", root / "configs")
    return root


@pytest.mark.parametrize("code", BLOCKS)
def test_a_block_of_the_documentation_runs(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "documentation", "exec"), {"__name__": "documentation"})


def test_every_name_is_documented_with_its_signature() -> None:
    text = (ROOT / DOCUMENTS[0]).read_text()
    headings = {name for line in re.findall(r"^## (.*)$", text, re.M) for name in re.findall(r"\w+", line)}
    assert set(medsyn.__all__) - {"__version__", "InputError", "InputProblems"} <= headings
    assert all(f"`{name}`" in text for name in ("InputError", "InputProblems"))


def test_it_shows_what_may_be_relied_on() -> None:
    assert dir(medsyn) == sorted(medsyn.__all__)


def names(statements: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(name, where it is imported from) of import statements."""
    for statement in statements:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            original = f":{alias.name}" if alias.asname else ""
            yield alias.asname or alias.name, f"{statement.module}{original}"


def test_type_checkers_and_programs_get_the_same_names() -> None:
    tree = ast.parse(Path(medsyn.__file__).read_text())
    for_checkers = next(node.body for node in tree.body if isinstance(node, ast.If))
    assert dict(names(for_checkers)) == medsyn._HOME
    assert sorted([*medsyn._HOME, "__version__"]) == medsyn.__all__
    assert set(medsyn.__all__) <= set(dir(medsyn))
    assert all(hasattr(medsyn, name) for name in medsyn.__all__)


def test_importing_medsyn_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'pydantic', 'yaml', 'pyarrow'}"
    code = f"import sys, medsyn; dir(medsyn); assert not {heavy} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


GOOD = """
from pathlib import Path
from typing import Any
import numpy.typing as npt
import pandas as pd
from medsyn import GeneratedImage, Generator, InputError, InputProblems, Item, check_tables, load_config
from medsyn import open_campaign, read_attempts, read_image, read_manifest

def first(generator: Generator, prompt: str) -> GeneratedImage:
    return next(generator.images([prompt, Item("a", prompt, 0, seed=1)], count=2))

image = first(Generator("embedded", seed=3, scheduler="euler", guidance_interval=(0.1, 0.9)), "CT: nodule")
pixels: npt.NDArray[Any] | None = image.pixels
seed: int | None = image.record["seed"]
image.save(Path("x.png"))
other = Generator.from_config(load_config("x.yaml", ["a.b=1"]), "CT", "baseline")
campaign_seed: int = open_campaign(Path("runs/x")).config.campaign.seed
frame: pd.DataFrame = read_manifest("runs/x")
frame = read_attempts(Path("runs/x"))
grey: npt.NDArray[Any] = read_image("x.dcm", "CT").pixels
lines: list[str] = [str(problem) for problem in check_tables(["a.csv", Path("b.csv")], progress=print)]
problems = [problem.reason for error in (InputError("a", "b"), InputProblems([])) for problem in error.problems]
"""
BAD = """
from medsyn import Generator, read_image

Generator(batch_sise=3)
Generator(scheduler="eulr")
Generator.from_config("x.yaml", "CT")
next(Generator().images("CT: a")).record["sead"]
read_image("x.png").pixls
from medsyn import read_images
"""


@pytest.mark.slow
def test_a_users_script_type_checks_against_the_package(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    cache = ROOT / ".mypy_cache" / "users"  # torch's and pandas' types take most of a minute the first time
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(cache)]
    done = subprocess.run([*command, "good.py", "bad.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(":")[:2] for line in errors] == [["bad.py", str(number)] for number in (4, 5, 6, 7, 8, 9)], (
        errors
    )
