"""The header of a safetensors file: what is in it and whether all of it is there, in a millisecond, without torch.

A file is 8 bytes with the header's length, the header (JSON: type, shape and place of every tensor), then the tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medsyn import disk
from medsyn.errors import InputError
from medsyn.text import and_more

_LARGEST = 100_000_000  # bytes of a header, the limit of the safetensors library
# bytes of a number, by the library's name of its type
_BYTES = dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1) | dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
_BYTES |= dict.fromkeys(("I32", "U32", "F32"), 4) | dict.fromkeys(("I64", "U64", "F64"), 8)
_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raise InputError if a file that begins like this is what Git LFS leaves in the place of one."""
    if beginning.startswith(_POINTER):
        raise InputError(path, "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository")


class Entry(NamedTuple):
    """Where in its file a tensor is."""

    dtype: str  # by the library's name: F32
    shape: tuple[int, ...]
    begin: int  # bytes from the beginning of the file
    end: int


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file, by name; errors as for `read_entries`."""
    return {name: entry.shape for name, entry in read_entries(path).items()}


def read_entries(path: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file, by name.

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
            header = disk.from_json(stream.read(length))
        entries, end = _entries(path, header, 8 + length)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise InputError(path, "is not a safetensors file: its header is not readable") from None
    if size != end:
        what = "is cut off" if size < end else "is longer than its header says"
        raise InputError(path, f"{what}: it has {size:,} bytes, not {end:,}; copy or download it again")
    return entries


def _entries(path: Path, header: Mapping[str, Any], start: int) -> tuple[dict[str, Entry], int]:
    """The tensors, and where the last one ends; raises InputError unless tensor follows tensor, each of its size."""
    entries: dict[str, Entry] = {}
    for name, facts in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(map(operator.index, facts["shape"]))
        begin, end = map(operator.index, facts["data_offsets"])
        if facts["dtype"] not in _BYTES:
            raise InputError(path, f"cannot be loaded: {name} is of the unknown type {facts['dtype']!r:.40}")
        if min(shape, default=0) < 0 or end - begin != math.prod(shape) * _BYTES[facts["dtype"]]:
            raise InputError(path, f"cannot be loaded: the size of {name} is not that of its shape; download it again")
        entries[name] = Entry(facts["dtype"], shape, start + begin, start + end)
    reached = start
    for begin, end, name in sorted((entry.begin, entry.end, name) for name, entry in entries.items()):
        if begin != reached:
            raise InputError(path, f"cannot be loaded: {name} does not begin where the one before it ends")
        reached = end
    return entries, reached


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
