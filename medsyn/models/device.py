"""Choose the device and the precision: by the capability of the hardware, never by a guess."""

from __future__ import annotations

import importlib.util
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from medsyn.config import DeviceSection
from medsyn.errors import InputError
from medsyn.stage import BadNode

_TENSOR_CORES = (7, 0)  # below sm_70 half precision is stored but computed in fp32: no faster, only smaller
_BFLOAT16 = _TF32 = (8, 0)
_TRITON = (7, 0)  # with which torch.compile writes its kernels
_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # of x86, and of ARM: as Linux names them
_CPU_FEATURES = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Device:
    """A chosen device and dtype, and why they were chosen."""

    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, ...]
    compiled: bool = False  # whether the UNet is to be compiled


def choose_device(section: DeviceSection, number: int | None = None) -> Device:
    """Choose the device and the precision for inference; trained weights are always float32 regardless.

    Args:
        section: what is configured.
        number: the visible GPU that must be used; by default the first one, or the CPU if there is none.

    Raises:
        InputError: the device lacks the requested precision or cannot run what is compiled, or the requested GPU does
            not exist.
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
        if section.compile:
            raise _cannot_compile(f"a GPU, but {why}")
        if section.precision == "bfloat16" and cpu_has_bfloat16():
            return Device(torch.device("cpu"), torch.bfloat16, (f"CPU: {why}", "bfloat16: configured"))
        if section.precision in {"float16", "bfloat16"}:
            needs = "a GPU" if section.precision == "float16" else "a GPU, or a CPU with avx512_bf16 or amx_bf16"
            raise InputError(
                "configuration",
                f"{section.precision} needs {needs}, but {why}; use auto or float32",
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
    if section.compile and capability < _TRITON:
        raise _cannot_compile(f"sm_70 or newer, for Triton, but this GPU is {name}")
    if section.compile and importlib.util.find_spec("triton") is None:
        raise _cannot_compile("the package triton, which is not installed")
    tf32 = capability >= _TF32 and section.precision != "float32"  # for what is float32 beside half precision
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if section.precision != "auto":
        reasons.append(f"{section.precision}: configured")
        return Device(device, getattr(torch, section.precision), tuple(reasons), section.compile)
    if capability < _TENSOR_CORES:
        reasons.append("float32: below sm_70 there are no tensor cores, and fp32 is the fastest exact choice")
        return Device(device, torch.float32, tuple(reasons), section.compile)
    reasons.append("float16: tensor cores")
    return Device(device, torch.float16, tuple(reasons), section.compile)


def _cannot_compile(needs: str) -> InputError:
    return InputError("configuration", f"it needs {needs}: set it to false", key="device.compile")


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16; without that they take longer than in float32."""
    with suppress(OSError):
        lines = _CPU_FEATURES.read_text().splitlines()
        return any(_CPU_BFLOAT16 & set(line.split()) for line in lines if line.startswith(("flags", "Features")))
    return False


def has_tensor_cores(device: torch.device) -> bool:
    """Whether half precision is faster than float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TENSOR_CORES


def decoder_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a VAE decodes beside a UNet of `dtype`: bfloat16 has too few digits for grey levels."""
    return torch.float16 if dtype != torch.float32 and has_tensor_cores(device) else torch.float32


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device`. Nobody waits for the copy to a GPU, nor for what that was given to do before."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The layout in which a device convolves: tensor cores take channels last, and CPUs lost by it (measured)."""
    last = dtype != torch.float32 and has_tensor_cores(device)
    return torch.channels_last if last else torch.contiguous_format


def kernels(device: torch.device, dtype: torch.dtype, compiled: bool = False) -> list[str]:
    """What is chosen besides the device and the dtype and changes bits, as records name it."""
    found = ["compiled UNet"] if compiled else []
    if device.type != "cuda":
        return found
    if decoder_dtype(device, dtype) != torch.float32:
        found.append("VAE decoder in float16")
    if memory_format(device, dtype) == torch.channels_last:
        found.append("channels last")
    if torch.backends.cuda.matmul.allow_tf32:
        found.append("TF32")
    return found
