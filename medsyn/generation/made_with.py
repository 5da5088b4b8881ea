"""What a campaign's images are made with, on record once for all; a task that would compute otherwise refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.errors import InputError

CIRCUMSTANCES_FILE = "made-with.json"
CIRCUMSTANCES = ("dtype", "attention", "container", "software")  # what can be chosen, and changes bits


def read_circumstances(path: Path) -> dict[str, Any] | None:
    """What a campaign's images are made with, or None where nothing is on record; raises ValueError if damaged."""
    try:
        found = disk.read_json(path)
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict) or found.keys() != set(CIRCUMSTANCES):
        raise ValueError(f"does not say {', '.join(CIRCUMSTANCES)}")
    return found


def require_same(path: Path, facts: Mapping[str, Any], keep: bool) -> None:
    """Raise InputError if the campaign's images are made with something else than this process would use.

    Args:
        path: where it is on record what they are made with.
        facts: what this process would make them with.
        keep: put that on record if nothing is; of several processes the first one's stays.
    """
    ours = {key: facts[key] for key in CIRCUMSTANCES if key in facts}
    try:
        theirs = read_circumstances(path)
        if theirs is None and keep and len(ours) == len(CIRCUMSTANCES):
            write_circumstances(path, ours)
            theirs = read_circumstances(path)
    except ValueError as error:
        reason = f"is damaged ({error}); `python -m medsyn verify --repair` writes it again"
        raise InputError(path, reason) from None
    differing = [
        f"{key} {theirs[key]!r}, here it is {value!r}" for key, value in ours.items() if theirs and theirs[key] != value
    ]
    if differing:
        way_out = "make them alike (device.precision, the container, the software), or choose another campaign.dir"
        raise InputError(path, f"this campaign's images are made with {'; '.join(differing)}: {way_out}")


def write_circumstances(path: Path, facts: Mapping[str, Any]) -> None:
    """Put on record what the campaign's images are made with, unless another process has."""
    disk.make_directory(path.parent)
    temporary = disk.temporary_sibling(path)
    disk.write_json(temporary, {key: facts[key] for key in CIRCUMSTANCES})
    try:
        path.hardlink_to(temporary)  # unlike a rename it fails where there is one already
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
