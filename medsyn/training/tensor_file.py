"""A safetensors file that is hashed while it is written: reading 14 GB again would take as long as writing them.

The order of the tensors is the safetensors library's own, so that both write the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from medsyn import disk

_PIECE = 1 << 24  # bytes; other threads compute while one is hashed or written
_NAMES = {  # in the order in which the library writes them: large numbers first, so that all are aligned
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write named tensors, on any device, one after another; return the size of the file and its SHA-256.

    Raises:
        OSError: it could not be written.
    """
    types = list(_NAMES)
    order = sorted(tensors, key=lambda name: (types.index(tensors[name].dtype), name))
    digest, size = hashlib.sha256(), 0
    with disk.writing(path), path.open("wb") as stream:
        for piece in _pieces(order, tensors):
            digest.update(piece)
            size += stream.write(piece)
    return size, digest.hexdigest()


def _pieces(order: Sequence[str], tensors: Mapping[str, Tensor]) -> Iterator[memoryview | bytes]:
    yield _header(order, tensors)
    for name in order:
        numbers = tensors[name].detach().to("cpu").contiguous().reshape(-1)
        content = memoryview(numbers.view(torch.uint8).numpy())
        for start in range(0, len(content), _PIECE):
            yield content[start : start + _PIECE]


def _header(order: Sequence[str], tensors: Mapping[str, Tensor]) -> bytes:
    end, entries = 0, {}
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
