from __future__ import annotations

import pytest
import torch

from medsyn.config import DeviceSection
from medsyn.errors import InputError
from medsyn.models.device import choose_device
from medsyn.stage import BadNode


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """No card of these kinds is here; what is chosen on them is decided by three answers of torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")


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
