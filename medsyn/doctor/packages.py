"""The packages Python finds: their versions, where they come from, combinations that fail, and 8-bit Adam's library."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from medsyn.doctor.finding import Finding, Verdict

DISTRIBUTION = "medsyn-hpc"
IMAGE_PREFIX = "/opt/medsyn"  # where the Dockerfile and apptainer.def install
_PASCAL_LIBRARY = "libbitsandbytes_cuda118_nocublaslt.so"  # bitsandbytes takes it below sm_75
_ADAM_SYMBOL = "cadam_8bit_blockwise_grad_fp32"


def installed_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pins() -> dict[str, str]:
    """Exact versions that medsyn asks for, by distribution name."""
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    exact = (line.split(";")[0].strip().split("==") for line in required if "==" in line and "extra" not in line)
    return {name.strip(): version.strip() for name, version in exact}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def check_bitsandbytes() -> Iterator[Finding]:
    """8-bit Adam: what makes full fine-tuning of SD v1.5 fit 12 GB."""
    version = installed_version("bitsandbytes")
    if version is None:
        yield Finding(
            "bitsandbytes", "absent", "note", "finetune.use_8bit_adam needs it: pip install 'medsyn-hpc[bnb]'"
        )
        return
    yield Finding("bitsandbytes", version)
    spec = importlib.util.find_spec("bitsandbytes")  # not imported: that asks for a GPU
    library = Path(spec.origin).with_name(_PASCAL_LIBRARY) if spec and spec.origin else None
    if library is not None and library.is_file():
        yield pascal_adam(library)


def pascal_adam(library: Path) -> Finding:
    """Whether bitsandbytes' library for Pascal finds the CUDA 11 libraries it needs; that takes no GPU."""
    try:
        getattr(ctypes.CDLL(str(library)), _ADAM_SYMBOL)
    except (OSError, AttributeError) as error:
        verdict: Verdict = "bad" if sys.prefix == IMAGE_PREFIX else "note"
        advice = "Pascal cards need it for use_8bit_adam: install requirements-cuda11.txt, or take the image"
        return Finding("8-bit Adam on Pascal", str(error), verdict, advice)
    return Finding("8-bit Adam on Pascal", f"{library.name} resolves")


def check_versions() -> Iterator[Finding]:
    """Installed versions against the pins."""
    wanted = pins()
    if not wanted:
        yield Finding("pins", f"{DISTRIBUTION} is not installed", "note", "run through `uv run`, or pip install -e .")
        return
    off = {
        name: installed_version(name) for name, version in wanted.items() if _is_other(installed_version(name), version)
    }
    if not off:
        yield Finding("pins", f"all {len(wanted)} packages as pinned")
    for name, found in off.items():
        missing = found is None
        yield Finding(f"pin {name}", found or "absent", "bad" if missing else "note", f"pinned at {wanted[name]}")


def _is_other(found: str | None, wanted: str) -> bool:
    """2.1.2+cu118 is the pinned 2.1.2, built for a certain CUDA."""
    return found is None or found.split("+")[0] != wanted


def check_isolation() -> Iterator[Finding]:
    """Packages from a home folder or from PYTHONPATH take the place of the pinned ones, unseen."""
    own = Path(sys.prefix).resolve()
    elsewhere: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        folder = Path(str(distribution.locate_file(""))).resolve()
        if not folder.is_relative_to(own):
            elsewhere.setdefault(distribution.name, str(folder))
    in_image = sys.prefix == IMAGE_PREFIX
    for place in sorted(set(elsewhere.values())):
        names = [name for name, where in elsewhere.items() if where == place]
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        advice = "unset PYTHONPATH and set PYTHONNOUSERSITE=1"
        yield Finding("packages from elsewhere", f"{place}: {listed}", "bad" if in_image else "note", advice)
    if not elsewhere:
        yield Finding("isolation", f"every package is from {sys.prefix}")
    if os.environ.get("PYTHONPATH"):
        yield Finding("PYTHONPATH", os.environ["PYTHONPATH"], "note", "its modules come before the installed ones")


def known_bad_combinations(version_of: Callable[[str], str | None] = installed_version) -> Iterator[Finding]:
    """Packages that install together and then fail: each was seen to."""
    found = {name: version_of(name) for name in ("peft", "diffusers", "transformers", "torch", "numpy", "setuptools")}
    release = {name: _release(version) for name, version in found.items() if version}
    if release.get("peft", (0,)) >= (0, 14) and release.get("transformers", (9,)) < (4, 47):
        yield Finding(
            "peft + transformers",
            f"peft {found['peft']} with transformers {found['transformers']}",
            "bad",
            "fails at UNet forward (EncoderDecoderCache): uninstall peft or take peft<0.14",
        )
    if release.get("torch", (9,)) < (2, 3) and release.get("numpy", (0,)) >= (2, 0):
        yield Finding("torch + numpy", f"torch {found['torch']} with numpy {found['numpy']}", "bad", "take numpy<2")
    if release.get("torch", (9,)) < (2, 4) and release.get("diffusers", (0,)) >= (0, 31):
        yield Finding(
            "torch + diffusers",
            f"torch {found['torch']} with diffusers {found['diffusers']}",
            "bad",
            "torch.library has no custom_op: take the pinned diffusers",
        )
    if release.get("setuptools", (0,)) >= (82,) and release.get("torch", (9,)) < (2, 3):
        yield Finding("setuptools", str(found["setuptools"]), "bad", "pkg_resources is gone: take setuptools<82")
