"""The header of a safetensors file: what is in it and whether all of it is there, in a millisecond, without torch.

A file is 8 bytes with the header's length, the header (JSON: type, shape and place of every tensor), then the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsyn.errors import InputError
from medsyn.text import and_more

_LARGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raise InputError if a file that begins like this is what Git LFS leaves in the place of one."""
    if beginning.startswith(_POINTER):
        raise InputError(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, by name.

    Raises:
        InputError: it is a Git LFS pointer or no safetensors file, or is not as long as its header says.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(64)
            refuse_pointer(path, beginning)
            length = int.from_bytes(beginning[:8], "little")
            size = path.stat().st_size
            if len(beginning) < 8 or length > _LARGEST:
                raise InputError(path, "is not a safetensors file")
            if size < 8 + length:
                raise InputError(path, f"is cut off: {size:,} bytes are there, and its header is not complete")
            stream.seek(8)
            header = json.loads(stream.read(length))
        shapes, end = _shapes(header)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(path, "is not a safetensors file: its header is not readable") from None
    whole = 8 + length + end
    if size != whole:
        what = "is cut off" if size < whole else "is longer than its header says"
        raise InputError(path, f"{what}: it has {size:,} bytes, not {whole:,}; copy or download it again")
    return shapes


def _shapes(header: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes, and where the last tensor ends."""
    tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
    shapes = {name: tuple(map(int, facts["shape"])) for name, facts in tensors.items()}
    return shapes, max((int(facts["data_offsets"][1]) for facts in tensors.values()), default=0)


def differences(has: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> str | None:
    """What keeps tensors with these shapes from being loaded, in words; None if nothing does."""
    absent = [name for name in wanted if name not in has]
    if absent:
        others = [name for name in has if name not in wanted]
        reason = missing_tensors(absent, len(wanted))
        return reason + (f"; it has {and_more(others, 3)}, which the model has not" if others else "")
    wrong = [name for name in wanted if tuple(has[name]) != tuple(wanted[name])]
    if not wrong:
        return None
    first = wrong[0]
    more = f", and {len(wrong) - 1} more tensors differ" if len(wrong) > 1 else ""
    return f"{first} is {_shape(has[first])}, but config.json asks for {_shape(wanted[first])}{more}"


def missing_tensors(absent: Sequence[str], of: int) -> str:
    """That these tensors are missing, of so many that the configuration asks for."""
    return f"{len(absent)} of the {of} tensors that config.json asks for are missing: {and_more(absent, 3)}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
