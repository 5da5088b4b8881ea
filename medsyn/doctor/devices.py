"""The devices torch can use here, and the choice that tasks will make."""

from __future__ import annotations

from collections.abc import Iterator

from medsyn.doctor import image
from medsyn.doctor.diagnosis import Diagnosis
from medsyn.text import gib

_PASCAL = {"sm_60", "sm_61"}  # binaries for sm_60 run on sm_61, the TITAN Xp


def check_devices() -> Iterator[Diagnosis]:
    """What torch was built for, and the devices it sees: capability and memory."""
    import torch

    yield cuda_build(torch.__version__, torch.version.cuda)
    yield _pascal(architectures())
    yield Diagnosis("cuda available", str(torch.cuda.is_available()), "good" if torch.cuda.is_available() else "note")
    yield Diagnosis("cuda devices", str(torch.cuda.device_count()))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        name = f"sm_{properties.major}{properties.minor}"
        compiled = architectures()
        # binaries run on any later minor version of the same major capability
        runs = any(arch.startswith(f"sm_{properties.major}") and int(arch[3:]) <= int(name[3:]) for arch in compiled)
        yield Diagnosis(
            f"device {index}",
            f"{properties.name}, {name}, {gib(properties.total_memory)} GiB",
            "good" if runs else "bad",
            "" if runs else f"this torch has no kernels for {name} ({', '.join(compiled)}): use the CUDA 11.8 image",
        )


def cards() -> list[int]:
    """Bytes of memory of each GPU that tasks will use here."""
    import torch

    from medsyn.config import DeviceSection
    from medsyn.models.device import choose_device

    if choose_device(DeviceSection()).device.type != "cuda":
        return []
    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


def check_choice() -> Iterator[Diagnosis]:
    """The device, precision and attention that tasks will choose."""
    import torch

    from medsyn.config import DeviceSection
    from medsyn.models.device import choose_device

    for reason in choose_device(DeviceSection()).reasons:
        yield Diagnosis("chosen", reason)
    yield _attention(torch.cuda.get_device_capability(0) if torch.cuda.is_available() else None)


def cuda_build(version: str, cuda: str | None) -> Diagnosis:
    """The installed torch and the CUDA it was built for; the image expects a certain one."""
    value = f"{version} ({f'CUDA {cuda}' if cuda else 'without CUDA'})"
    if image.inside() and cuda != image.CUDA:
        advice = f"the image is meant for CUDA {image.CUDA}; for an older driver build it with requirements-cu118.txt"
        return Diagnosis("torch", value, "note", advice)
    return Diagnosis("torch", value)


def _attention(capability: tuple[int, int] | None) -> Diagnosis:
    if capability is None:
        return Diagnosis("attention", "torch SDPA on the CPU")
    if capability < (8, 0):
        return Diagnosis("attention", "torch SDPA, memory-efficient kernels (flash attention needs sm_80)")
    return Diagnosis("attention", "torch SDPA, flash kernels")


def architectures() -> list[str]:
    """The GPU architectures this torch has kernels for, even without a GPU; empty without CUDA."""
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()  # torch.cuda.get_arch_list() needs a GPU
    return str(flags or "").split()


def _pascal(compiled: list[str]) -> Diagnosis:
    advice = "" if _PASCAL.intersection(compiled) else "no kernels for Pascal (sm_61): such cards need another build"
    return Diagnosis("architectures", " ".join(compiled) or "none", "note" if advice else "good", advice)
