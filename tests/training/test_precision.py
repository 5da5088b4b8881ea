from __future__ import annotations

import pytest
import torch

from medsyn.config import DeviceSection
from medsyn.stage import NoProgress
from medsyn.training.finetune import precision
from medsyn.training.finetune.precision import LossScale, autocast, training_dtype

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "auto", "half", "brain"),
    [
        ((6, 1), torch.float32, torch.float32, torch.float32),
        ((7, 0), torch.float16, torch.float16, torch.float32),
        ((7, 5), torch.float16, torch.float16, torch.float32),
        ((8, 0), torch.bfloat16, torch.bfloat16, torch.bfloat16),
        ((9, 0), torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_the_capability_of_the_card_decides(
    capability: tuple[int, int],
    auto: torch.dtype,
    half: torch.dtype,
    brain: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    expected = {"auto": auto, "float16": half, "bfloat16": brain, "float32": torch.float32}
    for name, dtype in expected.items():
        section = DeviceSection.model_validate({"precision": name})
        assert training_dtype(section, GPU) == dtype, name
        assert training_dtype(section, torch.device("cpu")) == torch.float32


def test_a_forward_pass_computes_in_it() -> None:
    layer, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(dtype, cpu):
            assert layer(torch.ones(1, 2)).dtype == dtype


def parameter(gradient: float) -> torch.Tensor:
    made = torch.zeros(3, requires_grad=True)
    made.grad = torch.full((3,), gradient)
    return made


def test_gradients_have_their_own_size_when_they_are_clipped() -> None:
    scale, value = LossScale(on=True), torch.tensor(3.0, requires_grad=True)
    scale.scaled(value**2).backward()
    assert value.grad is not None and float(value.grad) == 6 * 2**16
    scale.unscale([value, torch.zeros(1)])
    assert float(value.grad) == 6


def test_an_overflow_leaves_a_step_out_and_halves_and_success_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_GROW_AFTER", 3)
    scale, norms = LossScale(on=True), [1.0, float("inf"), 2.0, float("nan"), 1.0, 1.0, 1.0, 1.0]
    seen = [
        (scale.allows(torch.tensor(norm), step), float(scale.scaled(torch.tensor(1.0))))
        for step, norm in enumerate(norms)
    ]
    allowed, scales = zip(*seen, strict=True)
    assert allowed == (True, False, True, False, True, True, True, True)
    assert [value / 2**16 for value in scales] == [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5, 0.5]


def test_what_never_becomes_finite_is_an_error() -> None:
    scale = LossScale(on=True)
    with pytest.raises(NoProgress, match=r"not finite in float16 at step 17: set device.precision=float32"):
        for step in range(20):
            scale.allows(torch.tensor(float("inf")), step + 1)


def test_a_restored_scale_goes_on_where_the_saved_one_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_GROW_AFTER", 3)
    straight = LossScale(on=True)
    for norm in (float("inf"), 1.0, 1.0):
        straight.allows(torch.tensor(norm), 1)
    resumed = LossScale(on=True)
    resumed.restore(straight.tensors())
    for scale in (straight, resumed):
        scale.allows(torch.tensor(1.0), 2)
    assert (
        straight.tensors()
        == resumed.tensors()
        == {
            "loss_scale": torch.tensor(2.0**16),
            "loss_scale_steps": torch.tensor(0),
        }
    )
    resumed.restore({})  # of a run on another card


def test_off_it_does_nothing() -> None:
    scale, value = LossScale(on=False), parameter(5.0)
    scale.unscale([value])
    assert value.grad is not None and float(value.grad[0]) == 5
    assert scale.allows(torch.tensor(float("nan")), 1) and scale.tensors() == {}
    loss = torch.tensor(2.0)
    assert scale.scaled(loss) is loss
