"""The compiled UNet, without a GPU: traced for real, with backends that need no compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor, nn

from medsyn.errors import InputError
from medsyn.models import compiled as module
from medsyn.models.compiled import WholeUNet, compiled
from medsyn.models.sampler import Guidance, Run, build_scheduler, initial_noise
from medsyn.schedulers import Shortcuts

SEEDS = [1, 2]
SHAPE = (4, 8, 8)


@pytest.fixture
def unet() -> Iterator[UNet2DConditionModel]:
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
    }
    yield (
        UNet2DConditionModel(sample_size=8, cross_attention_dim=8, norm_num_groups=4, attention_head_dim=4, **blocks)
        .eval()
        .requires_grad_(False)
    )
    torch._dynamo.reset()


def run(unet: Any, whole: WholeUNet | None, dtype: torch.dtype = torch.float32) -> Run:
    """Three guided steps and three without guidance: two sizes of a batch."""
    hidden = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(1))
    guidance = Guidance(torch.full((2,), 3.0), hidden[:1].to(dtype) * 0, Shortcuts((0.0, 0.5)))
    scheduler = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012}
    return Run(
        unet,
        lambda: build_scheduler("dpm", scheduler, 6),
        hidden.to(dtype),
        guidance,
        initial_noise(SEEDS, SHAPE),
        SEEDS,
        whole,
    )


def test_a_compiled_unet_makes_the_same_images_and_is_compiled_once_for_each_size(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(max((tuple(one.shape) for one in inputs if isinstance(one, Tensor)), key=len))
        return graph.forward

    monkeypatch.setattr(module, "BACKEND", backend)
    whole = compiled(unet)
    expected, _ = run(unet, None).begin()
    for _ in range(2):
        assert torch.equal(run(unet, whole).begin()[0], expected)
    assert sorted(shape[0] for shape in graphs) == [2, 4]


class Small(nn.Module):
    """What is called as a UNet is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, return_dict: bool = True) -> Any:
        made = self.convolution(sample)
        return UNet2DConditionOutput(made) if return_dict else (made,)


def wrong(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    return lambda *arguments: [1.1 * one for one in graph.forward(*arguments)]


def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
    raise OSError("no compiler here")


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        (wrong, r"device.compile: the compiled UNet computes something else here \(10 % away\): set it to false"),
        (broken, r"device.compile: the UNet cannot be compiled here \(.*no compiler here.*\): set it to false"),
    ],
)
def test_what_does_not_compile_or_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, backend: Any, said: str
) -> None:
    monkeypatch.setattr(module, "BACKEND", backend)
    torch._dynamo.reset()
    with torch.no_grad(), pytest.raises(InputError, match=said):
        compiled(Small())(torch.ones(2, 4, 8, 8), torch.tensor(1), torch.ones(2, 77, 8))


def test_what_overflows_in_half_precision_is_repeated_by_the_plain_unet_in_float32(
    unet: UNet2DConditionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []

    def whole(rows: Tensor, timestep: Tensor, hidden: Tensor) -> Tensor:
        asked.append(rows.dtype)
        return torch.full_like(rows, torch.inf)

    its = run(unet.to(torch.bfloat16), whole, torch.bfloat16)
    made = its.finish(*its.begin())
    assert made.finite == [True, True] and made.precision == ["float32"] * 2
    assert asked == [torch.bfloat16] * 6
