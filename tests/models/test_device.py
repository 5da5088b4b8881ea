from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from medsyn.config import DeviceSection, Precision
from medsyn.errors import InputError
from medsyn.models import device as devices
from medsyn.models.device import choose_device, decoder_dtype, kernels, memory_format
from medsyn.stage import BadNode


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """No card of these kinds is here; what is chosen on them is decided by three answers of torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")


@pytest.fixture(autouse=True)
def tf32_as_before() -> Iterator[None]:
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


def test_without_a_gpu_it_is_the_cpu_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chosen = choose_device(DeviceSection())
    assert (chosen.device.type, chosen.dtype) == ("cpu", torch.float32)
    assert "no CUDA device" in chosen.reasons[0]


def test_half_precision_on_a_cpu_is_refused_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device\.precision"):
        choose_device(DeviceSection(precision="float16"))


@pytest.mark.parametrize(
    ("line", "has_it"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 sha_ni", True),
        ("flags\t\t: fpu amx_tile amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: avx512_bf16", False),
        (None, False),
    ],
)
def test_bfloat16_on_a_cpu_takes_a_cpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str | None, has_it: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(devices, "_CPU_FEATURES", tmp_path / "cpuinfo")
    if line is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    if has_it:
        assert choose_device(DeviceSection(precision="bfloat16")).dtype == torch.bfloat16
    else:
        with pytest.raises(
            InputError, match="bfloat16 needs a GPU, or a CPU with avx512_bf16 or amx_bf16, but no CUDA"
        ):
            choose_device(DeviceSection(precision="bfloat16"))
    assert choose_device(DeviceSection()).dtype == torch.float32, "never unasked: it changes bits"


@pytest.mark.parametrize(
    ("capability", "precision", "expected"),
    [
        ((6, 1), "auto", []),
        ((6, 1), "float16", []),
        ((7, 0), "auto", ["VAE decoder in float16", "channels last"]),
        ((7, 0), "float32", []),
        ((8, 0), "auto", ["VAE decoder in float16", "channels last", "TF32"]),
        ((8, 0), "bfloat16", ["VAE decoder in float16", "channels last", "TF32"]),
        ((9, 0), "float32", []),
    ],
)
def test_capability_decides_the_kernels_and_float32_is_float32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: Precision, expected: list[str]
) -> None:
    pretend_gpu(monkeypatch, capability)
    chosen = choose_device(DeviceSection(precision=precision))
    assert kernels(chosen.device, chosen.dtype) == expected
    assert torch.backends.cudnn.allow_tf32 == ("TF32" in expected)


@pytest.mark.parametrize("capability", [(7, 0), (9, 0)])
def test_a_unet_is_compiled_from_sm_70_on(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    pretend_gpu(monkeypatch, capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert not choose_device(DeviceSection()).compiled, "never unasked: it changes bits"
    for precision in ("auto", "float32"):
        chosen = choose_device(DeviceSection(compile=True, precision=precision))
        assert chosen.compiled
        assert kernels(chosen.device, chosen.dtype, chosen.compiled)[0] == "compiled UNet"


@pytest.mark.parametrize(
    ("capability", "said"),
    [
        ((6, 1), "device.compile: it needs sm_70 or newer, for Triton, but this GPU is sm_61: set it to false"),
        ((8, 0), "device.compile: it needs the package triton, which is not installed: set it to false"),
        (None, "device.compile: it needs a GPU, but no CUDA device is visible: set it to false"),
    ],
)
def test_where_a_unet_cannot_be_compiled_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, said: str
) -> None:
    if capability is not None:
        pretend_gpu(monkeypatch, capability)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=said):
        choose_device(DeviceSection(compile=True))


def test_a_cpu_decodes_in_float32_and_keeps_its_layout() -> None:
    cpu = torch.device("cpu")
    assert decoder_dtype(cpu, torch.bfloat16) == torch.float32
    assert memory_format(cpu, torch.bfloat16) == torch.contiguous_format
    assert kernels(cpu, torch.bfloat16) == []


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), torch.float32), ((7, 0), torch.float16), ((8, 6), torch.float16), ((9, 0), torch.float16)],
)
def test_capability_decides_the_precision(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    pretend_gpu(monkeypatch, capability)
    assert choose_device(DeviceSection()).dtype == dtype


def test_pascal_may_ask_for_half_storage_but_not_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (6, 1))
    assert choose_device(DeviceSection(precision="float16")).dtype == torch.float16
    with pytest.raises(InputError, match="sm_61"):
        choose_device(DeviceSection(precision="bfloat16"))


def test_a_gpu_can_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, (8, 0))
    assert choose_device(DeviceSection(use_cuda=False)).device.type == "cpu"


def test_a_gpu_that_was_handed_out_and_does_not_work_is_a_bad_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(BadNode, match="CUDA_VISIBLE_DEVICES is 1"):
        choose_device(DeviceSection())
    assert choose_device(DeviceSection(use_cuda=False)).device.type == "cpu"


def test_a_gpu_is_chosen_by_its_number_and_one_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"there is no GPU cuda:0 \(none visible\)"):
        choose_device(DeviceSection(), number=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1 + device.index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    assert [str(choose_device(DeviceSection(), number=number).device) for number in (None, 0, 1)] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    assert "sm_62" in choose_device(DeviceSection(), number=1).reasons[0]
    with pytest.raises(InputError, match=r"there is no GPU cuda:2 \(2 visible, from cuda:0\)"):
        choose_device(DeviceSection(), number=2)
