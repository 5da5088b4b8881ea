"""One real Slurm for all tests here, and others where a test needs another configuration."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import FOREIGN, Cluster, require_packages
from tests.helpers.slurm_trial import SlurmTrial
from tests.helpers.trial import need_no_content

PREFIX = "medsyn-test-"  # below /tmp: a unix socket's path has at most 107 characters


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            # once more: on a busy machine Slurm's own clocks (nodes that do not answer in 10 s) can strike by chance
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def slurm_packages() -> None:
    """Slurm's packages are on this machine; they are fetched where root or sudo may, else the tests say why not."""
    require_packages()


@pytest.fixture(scope="session")
def short_directory(slurm_packages: None) -> Iterator[Callable[[], Path]]:
    """Make directories for clusters; when the session ends, whatever runs in one is stopped."""
    _end_clusters_of_dead_sessions()
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir="/tmp")))
        return made[-1]

    yield make
    for directory in made:
        _remove(directory)


def _remove(directory: Path) -> None:
    if (directory / "run").is_dir():
        Cluster(directory).devcluster("stop", check=False)
    shutil.rmtree(directory, ignore_errors=True)


def _end_clusters_of_dead_sessions() -> None:
    for directory in Path("/tmp").glob(f"{PREFIX}*-*"):
        process = directory.name.removeprefix(PREFIX).split("-")[0]
        if directory.stat().st_uid == os.getuid() and not Path("/proc", process).exists():
            _remove(directory)


@pytest.fixture(scope="session")
def cluster(short_directory: Callable[[], Path]) -> Cluster:
    """The shared cluster: 4 nodes of 4 CPUs and 2 GPUs, accounting, GraceTime 15, the user's signal on preemption."""
    shared = Cluster(short_directory())
    shared.devcluster("start")
    return shared


@pytest.fixture(scope="module")
def other_cluster(short_directory: Callable[[], Path]) -> Iterator[Callable[..., Cluster]]:
    """Start a cluster with other settings; the same settings give the same cluster until the module ends."""
    started: dict[tuple[tuple[str, object], ...], Cluster] = {}

    def start(**settings: object) -> Cluster:
        key = tuple(sorted(settings.items()))
        if key not in started:
            started[key] = Cluster(short_directory())
            started[key].devcluster("start", **settings)
        return started[key]

    yield start
    for one in started.values():
        one.stop()


@pytest.fixture
def empty_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """The shared cluster without a job and with every node, before and after the test."""
    cluster.reset()
    yield cluster
    cluster.reset()


@pytest.fixture
def make_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Cluster], SlurmTrial]:
    """A small campaign with fake stages on a cluster."""
    need_no_content(monkeypatch)

    def make(cluster: Cluster) -> SlurmTrial:
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        return SlurmTrial(tmp_path, cluster)

    return make


@pytest.fixture
def trial(make_trial: Callable[[Cluster], SlurmTrial], empty_cluster: Cluster) -> SlurmTrial:
    """A small campaign on the shared cluster."""
    return make_trial(empty_cluster)
