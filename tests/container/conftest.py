"""Images, built once for each test run where this machine can build them; elsewhere the tests say why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.container_images import AS_USER, CACHE, NO_TORCH, USER, Sif, reduced_context, tool
from tests.helpers.slurm_cluster import Cluster, require_packages


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem == "test_image":
            item.add_marker(pytest.mark.container)


@pytest.fixture(scope="session")
def tools() -> None:
    """buildah, Apptainer and a base image, all from Debian's archive."""
    if os.getuid() != 0:
        pytest.skip("building images here takes root")
    if shutil.which("apt-get") is None:
        pytest.skip("buildah and Apptainer are fetched with apt-get, which is not here")
    prepared = tool("tools", check=False)
    if prepared.returncode != 0:
        pytest.skip(f"no tools for images: {(prepared.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    entered = subprocess.run([*AS_USER, "true"], capture_output=True, text=True, check=False)
    if entered.returncode != 0:
        pytest.skip(f"no mount namespace for an ordinary user: {entered.stderr.strip()}")


@pytest.fixture(scope="session")
def work(tools: None) -> Iterator[Path]:
    """A folder that the ordinary user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="tests-", dir=CACHE))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def context(work: Path) -> Path:
    """What the images are built from."""
    warnings.warn(
        "images are built from a reduced lock: no torch, no 8-bit Adam. tests/container/full.sh builds the whole image",
        stacklevel=1,
    )
    return reduced_context(work / "context")


@pytest.fixture(scope="session")
def docker_image(context: Path) -> Iterator[str]:
    """The name of the image that the unmodified Dockerfile makes."""
    name = f"medsyn:{context.parent.name}"
    tool("docker", context, NO_TORCH, name)
    yield name
    tool("buildah", "rmi", "--force", name, check=False)


@pytest.fixture(scope="session")
def base_archive(work: Path) -> Path:
    """Debian's base image as an archive."""
    path = work / "base-image.tar"
    tool("archive", "debian:bookworm-slim", path)
    return path


@pytest.fixture(scope="session")
def sif_file(context: Path, base_archive: Path) -> Path:
    """The SIF that the unmodified apptainer.def makes from the bare base, built by an ordinary user."""
    path = context.parent / "medsyn.sif"
    tool("sif", context, NO_TORCH, path, base_archive)
    return path


@pytest.fixture
def sif(sif_file: Path) -> Iterator[Sif]:
    """The SIF, and a new home of an ordinary user."""
    home = Path(tempfile.mkdtemp(prefix="home-", dir=sif_file.parent))
    shutil.chown(home, USER, USER)
    yield Sif(sif_file, home)
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def cluster(tools: None) -> Iterator[Cluster]:
    """A real Slurm of two nodes."""
    require_packages()
    started = Cluster(Path(tempfile.mkdtemp(prefix="medsyn-image-", dir="/tmp")))
    started.devcluster("start", nodes=2, accounting=0)
    yield started
    started.stop()
    shutil.rmtree(started.directory, ignore_errors=True)
