"""Package versions: compared with the pins, and known bad combinations."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator

from medsyn.doctor import image
from medsyn.doctor.diagnosis import Diagnosis

DISTRIBUTION = "medsyn-hpc"
_IN_THE_IMAGE = "bnb"  # the extra that it has


def installed_version(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pins(extras: bool = False) -> dict[str, str]:
    """Exact versions that medsyn requires, by distribution name; with `extras` those of the image's extra too."""
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    wanted = (line.partition(";") for line in required)
    exact = (
        name.split("==")
        for name, _, marker in wanted
        if "==" in name and ("extra" not in marker or (extras and _IN_THE_IMAGE in marker))
    )
    return {name.strip(): version.strip() for name, version in exact}


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def check_versions() -> Iterator[Diagnosis]:
    """Installed versions against the pins; other versions work too, but the image must have exactly these."""
    wanted = pins(extras=image.inside())
    if not wanted:
        advice = image.BUILD_AGAIN if image.inside() else "run through `uv run`, or pip install -e ."
        yield Diagnosis("pins", f"{DISTRIBUTION} is not installed", image.verdict(), advice)
        return
    found = {name: installed_version(name) for name in wanted}
    off = {name: version for name, version in found.items() if _is_other(version, wanted[name])}
    if not off:
        yield Diagnosis("pins", f"all {len(wanted)} packages as pinned")
    for name, version in off.items():
        advice = f"pinned at {wanted[name]}" + (f"; {image.BUILD_AGAIN}" if image.inside() else "")
        yield Diagnosis(f"pin {name}", version or "absent", image.verdict() if version else "bad", advice)


def _is_other(found: str | None, wanted: str) -> bool:
    """Whether a version differs from the pin; 2.1.2+cu118 is the pinned 2.1.2, built for a certain CUDA."""
    return found is None or found.split("+")[0] != wanted


def known_bad_combinations(version_of: Callable[[str], str | None] = installed_version) -> Iterator[Diagnosis]:
    """Packages that install together and then fail; each combination was observed."""
    found = {name: version_of(name) for name in ("peft", "diffusers", "transformers", "torch", "numpy", "setuptools")}
    release = {name: _release(version) for name, version in found.items() if version}
    if release.get("peft", (0,)) >= (0, 14) and release.get("transformers", (9,)) < (4, 47):
        yield Diagnosis(
            "peft + transformers",
            f"peft {found['peft']} with transformers {found['transformers']}",
            "bad",
            "fails at UNet forward (EncoderDecoderCache): uninstall peft or install peft<0.14",
        )
    if release.get("torch", (9,)) < (2, 3) and release.get("numpy", (0,)) >= (2, 0):
        yield Diagnosis(
            "torch + numpy", f"torch {found['torch']} with numpy {found['numpy']}", "bad", "install numpy<2"
        )
    if release.get("torch", (9,)) < (2, 4) and release.get("diffusers", (0,)) >= (0, 31):
        yield Diagnosis(
            "torch + diffusers",
            f"torch {found['torch']} with diffusers {found['diffusers']}",
            "bad",
            "torch.library has no custom_op: install the pinned diffusers",
        )
    if release.get("setuptools", (0,)) >= (82,) and release.get("torch", (9,)) < (2, 3):
        yield Diagnosis("setuptools", str(found["setuptools"]), "bad", "pkg_resources is gone: install setuptools<82")
