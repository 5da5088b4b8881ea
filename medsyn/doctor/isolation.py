"""Where packages and modules come from: a home directory's or PYTHONPATH's silently shadow the pinned ones."""

from __future__ import annotations

import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import FrozenImporter, PathFinder
from pathlib import Path

from medsyn.doctor import image
from medsyn.doctor.diagnosis import Diagnosis
from medsyn.text import and_more

_NAMES_SHOWN = 10


def check_isolation() -> Iterator[Diagnosis]:
    """Every distribution and module found outside of this Python, by directory; and PYTHONPATH."""
    elsewhere: dict[str, set[str]] = {}
    for name, place in (*_distributions(), *_modules()):
        if not _is_own(place):
            elsewhere.setdefault(str(place), set()).add(name)
    for place_name, names in sorted(elsewhere.items()):
        listed = and_more(sorted(names), _NAMES_SHOWN)
        advice = "unset PYTHONPATH and set PYTHONNOUSERSITE=1"
        yield Diagnosis("packages from elsewhere", f"{place_name}: {listed}", image.verdict(), advice)
    if not elsewhere:
        yield Diagnosis("isolation", f"every package is from {sys.prefix}")
    if path := os.environ.get("PYTHONPATH"):
        advice = "its modules hide the installed ones" + (": enter the image without it" if image.inside() else "")
        yield Diagnosis("PYTHONPATH", path, image.verdict(), advice)


def _is_own(place: Path) -> bool:
    """Below this environment, or the standard library itself: other packages may be in directories below it."""
    standard = (sysconfig.get_path("stdlib"), sysconfig.get_config_var("DESTSHARED"))
    is_standard = place in [Path(folder).resolve() for folder in standard if folder]
    return is_standard or place.is_relative_to(Path(sys.prefix).resolve())


def _distributions() -> Iterator[tuple[str, Path]]:
    for distribution in importlib.metadata.distributions():
        yield distribution.name or "a package without a name", Path(str(distribution.locate_file(""))).resolve()


def _modules() -> Iterator[tuple[str, Path]]:
    """Every module of an installed distribution or of the standard library, and the directory it would come from."""
    installed = {name for name in importlib.metadata.packages_distributions() if name.isidentifier()}
    for name in sorted(installed | sys.stdlib_module_names):
        for place in _places(name):
            yield name, place


def _places(name: str) -> list[Path]:
    """The directories that `import name` reads from, several for a namespace package; none if it is not found.

    Nothing is imported, so finders that packages add (editable installs, setuptools' distutils) are not asked.
    """
    if name in sys.builtin_module_names or FrozenImporter.find_spec(name):
        return []
    spec = PathFinder.find_spec(name)
    if spec is None:
        return []
    found = list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
    return [Path(place).parent.resolve() for place in found]
