"""Every test runs on one thread: two torch threads on a small shared machine can be 20 times slower than one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from small_campaign import finish

from medsyn.config import ENVIRONMENT

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files stay together in one process; what waits for Slurm is one group, what compares whole campaigns another."""

    def group(item: pytest.Item) -> str:
        if "undisturbed" in getattr(item, "fixturenames", ()) or item.path.name == "test_end_to_end.py":
            return "campaigns"
        return "slurm" if "slurm" in item.path.parent.parts[-1:] else str(item.path)

    first = {"slurm": 0, "campaigns": 1}  # the longest begin first
    items.sort(key=lambda item: first.get(group(item), 2))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


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
