"""What holds for every test: one thread, bytecode that is kept, an environment without settings of medsyn.

Two torch threads on a small shared machine can be 20 times slower than one.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "MEDSYN_CACHE" not in os.environ:  # else this is a process that the first one has started
    os.environ["MEDSYN_CACHE"] = tempfile.mkdtemp(prefix="medsyn-cache-")
    atexit.register(shutil.rmtree, os.environ["MEDSYN_CACHE"], ignore_errors=True)

import pytest

from medsyn.specification import ENVIRONMENT, OTHER_VARIABLES
from tests.helpers import bytecode
from tests.helpers.once import once
from tests.helpers.paths import SHARED_DATA
from tests.helpers.small_campaign import finish

bytecode.keep()

# Files are dealt to the processes in this order: what takes minutes first, and what waits for Slurm (most of what is in
# the left column) beside what computes.
FIRST = (
    "slurm/test_interruptions.py",
    *("slurm/test_queue.py", "test_end_to_end.py"),
    *("container/test_image.py", "generation/test_exactly_once.py"),
    *("slurm/test_retries.py", "docs/test_runs.py"),
    *("slurm/test_campaign.py", "training/test_finetune.py", "training/test_finetune_ranks.py"),
    *("slurm/test_pages.py", "generation/test_claim.py"),
    *("slurm/test_status_on_slurm.py", "campaign/test_repair.py"),
    *("slurm/test_devcluster.py", "training/scorers/test_stages.py", "training/alignment/test_stage.py"),
    *("slurm/test_in_container.py", "models/test_embedded_model.py"),
)


def place(item: pytest.Item) -> int:
    file = item.path.relative_to(Path(__file__).parent).as_posix()
    return FIRST.index(file) if file in FIRST else len(FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=place)


@pytest.fixture(autouse=True)
def one_thread_and_clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*ENVIRONMENT, *OTHER_VARIABLES):
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
    """A small campaign that nothing interrupted, for comparison. All processes read it, so none writes to it.

    Beside it is `again.txt`, what a second submission said, and whose first line is how many seconds that took.
    """

    def make(folder: Path) -> None:
        directory = folder / "campaign"
        assert str(directory / "report.html") in finish(directory).replace("\n", "")
        started = time.monotonic()
        output = finish(directory)
        (folder / "again.txt").write_text(f"{time.monotonic() - started}\n{output}")

    return once(tmp_path_factory, "undisturbed", make) / "campaign"


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of that campaign in another place, to be damaged."""
    shutil.copytree(undisturbed, tmp_path / "campaign")
    return tmp_path / "campaign"
