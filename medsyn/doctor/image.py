"""The container image guarantees its pins, its torch and 8-bit Adam: what is a note elsewhere is bad in it."""

from __future__ import annotations

import sys

from medsyn.doctor.diagnosis import Verdict

PREFIX = "/opt/medsyn"  # where the Dockerfile and apptainer.def install
CUDA = "11.8"  # what its torch is built for
BUILD_AGAIN = "rebuild the image"


def inside() -> bool:
    """Whether this Python is the image's."""
    return sys.prefix == PREFIX


def verdict() -> Verdict:
    """The verdict on a violated guarantee of the image, where this process runs."""
    return "bad" if inside() else "note"
