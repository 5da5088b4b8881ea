"""8-bit Adam, which makes full fine-tuning of SD v1.5 fit in 12 GB: bitsandbytes and its library for Pascal cards."""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from medsyn.doctor import image
from medsyn.doctor.diagnosis import Diagnosis
from medsyn.doctor.packages import installed_version

_PASCAL_LIBRARY = "libbitsandbytes_cuda118_nocublaslt.so"  # what bitsandbytes loads below sm_75
_SYMBOL = "cadam_8bit_blockwise_grad_fp32"


def check_bitsandbytes() -> Iterator[Diagnosis]:
    """Whether bitsandbytes is installed with the library that Pascal cards need; it is not imported."""
    version = installed_version("bitsandbytes")
    if version is None:
        advice = "finetune.use_8bit_adam needs it: "
        advice += image.BUILD_AGAIN if image.inside() else "pip install 'medsyn-hpc[bnb]'"
        yield Diagnosis("bitsandbytes", "absent", image.verdict(), advice)
        return
    yield Diagnosis("bitsandbytes", version)
    folder = importlib.metadata.distribution("bitsandbytes").locate_file("bitsandbytes")
    yield pascal_adam(Path(str(folder)) / _PASCAL_LIBRARY)


def pascal_adam(library: Path) -> Diagnosis:
    """Whether the library for Pascal is there and finds the CUDA 11 libraries it needs; no GPU is required."""
    check = "8-bit Adam on Pascal"
    if not library.is_file():
        mend = image.BUILD_AGAIN if image.inside() else "bitsandbytes 0.41.1 has it"
        advice = f"without it finetune.use_8bit_adam may fail on cards before Turing (sm_75): {mend}"
        return Diagnosis(check, f"{library.name} is absent", image.verdict(), advice)
    try:
        getattr(ctypes.CDLL(str(library)), _SYMBOL)
    except (OSError, AttributeError) as error:
        mend = image.BUILD_AGAIN if image.inside() else "install requirements-cuda11.txt, or use the image"
        return Diagnosis(check, str(error), image.verdict(), f"Pascal cards need it for use_8bit_adam: {mend}")
    return Diagnosis(check, f"{library.name} resolves")
