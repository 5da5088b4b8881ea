"""The project's image promises its pins, its torch and 8-bit Adam: what is a note elsewhere is bad in it."""

from __future__ import annotations

import sys

from medsyn.doctor.finding import Verdict

PREFIX = "/opt/medsyn"  # where the Dockerfile and apptainer.def install
CUDA = "11.8"  # which its torch is built for
BUILD_AGAIN = "build the image again"


def inside() -> bool:
    """Whether this Python is that of the image."""
    return sys.prefix == PREFIX


def verdict() -> Verdict:
    """How a broken promise of the image counts where this process runs."""
    return "bad" if inside() else "note"
