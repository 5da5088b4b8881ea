"""Every test runs on one thread: two torch threads on a small shared machine can be 20 times slower than one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import SHARED_DATA

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from medsyn.config import ENVIRONMENT
from tests.helpers.small_campaign import finish

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
    """A small campaign that nothing interrupted, for comparison."""
    directory = tmp_path_factory.mktemp("undisturbed") / "campaign"
    assert str(directory / "report.html") in finish(directory).replace("\n", "")
    return directory
