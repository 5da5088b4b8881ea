"""Choose the device and the precision: by the capability of the hardware, never by a guess."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from medsyn.config import DeviceSection
from medsyn.errors import InputError
from medsyn.stage import BadNode

_TENSOR_CORES = (7, 0)  # below sm_70 half precision is stored but computed in fp32: no faster, only smaller
_BFLOAT16 = (8, 0)


@dataclass(frozen=True)
class Device:
    """A chosen device and dtype, and why they were chosen."""

    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, ...]


def choose_device(section: DeviceSection, number: int | None = None) -> Device:
    """Choose the device and the precision for inference; trained weights are always float32 regardless.

    Args:
        section: what is configured.
        number: the visible GPU that must be used; by default the first one, or the CPU if there is none.

    Raises:
        InputError: the device lacks the requested precision, or the requested GPU does not exist.
        BadNode: a GPU was assigned to this process but cannot be used; days on a CPU are not what was meant.
    """
    torch.set_num_threads(section.cpu_threads)
    assigned = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if section.use_cuda and assigned not in ("", "-1") and not torch.cuda.is_available():
        reason = f"CUDA_VISIBLE_DEVICES is {assigned}, but no CUDA device is usable here"
        raise BadNode(f"{reason}; see `medsyn doctor`, or set device.use_cuda=false")
    if number is not None and number >= torch.cuda.device_count():
        there = f"{torch.cuda.device_count()} visible, from cuda:0" if torch.cuda.is_available() else "none visible"
        raise InputError("configuration", f"there is no GPU cuda:{number} ({there}); use auto or cpu", key="device")
    if not (section.use_cuda and torch.cuda.is_available()):
        why = "device.use_cuda is false" if not section.use_cuda else "no CUDA device is visible"
        if section.precision in {"float16", "bfloat16"}:
            raise InputError(
                "configuration",
                f"{section.precision} needs a GPU, but {why}; use auto or float32",
                key="device.precision",
            )
        return Device(torch.device("cpu"), torch.float32, (f"CPU: {why}", "float32: CPUs compute in float32"))
    device = torch.device("cuda", number or 0)
    capability = torch.cuda.get_device_capability(device)
    name = f"sm_{capability[0]}{capability[1]}"
    reasons = [f"CUDA: {torch.cuda.get_device_name(device)} ({name})"]
    if section.precision == "bfloat16" and capability < _BFLOAT16:
        reason = f"bfloat16 needs sm_80 or newer, but this GPU is {name}; use auto, float16 or float32"
        raise InputError("configuration", reason, key="device.precision")
    if section.precision != "auto":
        reasons.append(f"{section.precision}: configured")
        return Device(device, getattr(torch, section.precision), tuple(reasons))
    if capability < _TENSOR_CORES:
        reasons.append("float32: below sm_70 there are no tensor cores, and fp32 is the fastest exact choice")
        return Device(device, torch.float32, tuple(reasons))
    reasons.append("float16: tensor cores; the VAE stays in float32")
    return Device(device, torch.float16, tuple(reasons))
