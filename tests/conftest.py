"""What holds for every test: one thread, bytecode that is kept, an environment without settings of medsyn.

Two torch threads on a small shared machine can be 20 times slower than one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from medsyn.config import ENVIRONMENT
from tests.helpers import bytecode
from tests.helpers.once import once
from tests.helpers.paths import SHARED_DATA
from tests.helpers.small_campaign import finish

bytecode.keep()

# Files are dealt to processes in this order: those that take minutes begin first, and one that waits for Slurm runs
# beside one that computes.
FIRST = (
    "test_interruptions",
    "test_end_to_end",
    "test_queue",
    "test_exactly_once",
    "test_campaign",
    "test_image",
    "test_devcluster",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def one_thread_and_clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real, openly licensed images for development; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the development images (../shared/data) are not here")
    return SHARED_DATA


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small campaign that nothing interrupted, for comparison; all processes share it, so none writes to it."""

    def make(directory: Path) -> None:
        assert str(directory / "report.html") in finish(directory).replace("\n", "")

    return once(tmp_path_factory, "undisturbed", make)


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that campaign in another place, to be damaged."""
    shutil.copytree(undisturbed, tmp_path / "campaign")
    return tmp_path / "campaign"
