from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from medsyn.config import FinetuneSection
from medsyn.models import noise_schedule, tiny
from medsyn.models.sampler import Guidance, Run, build_scheduler, initial_noise, sample
from medsyn.models.stable_diffusion import SyntheticSystem, load_synthetic
from medsyn.schedulers import SOLVERS, SchedulerName, Shortcuts, wrong_steps

NAMES = get_args(SchedulerName)
CALLS = {  # of the UNet in n steps, where it is not n
    "pndm": lambda n: n + (n > 1),
    "heun": lambda n: 2 * n - 1,
    "dpm2": lambda n: 2 * n - 1,
    "dpm2_a": lambda n: 2 * n - 1,
}
SHAPE = (4, 8, 8)
SEEDS = [11, 22, 33, 44]


def scheduler_config(prediction_type: str = "epsilon") -> dict[str, Any]:
    return dict(tiny.make_scheduler(prediction_type).config)


@pytest.fixture(scope="module")
def system(tiny_model: Path) -> SyntheticSystem:
    return load_synthetic(str(tiny_model), torch.device("cpu"))


def guide(scale: float, negative_hidden: Tensor, interval: tuple[float, float] = (0.0, 1.0)) -> Guidance:
    return Guidance(torch.full((4,), scale), negative_hidden, Shortcuts(interval))


def features(system: SyntheticSystem, prompts: list[str]) -> Tensor:
    return torch.stack([system.embed(prompt)[0] for prompt in prompts])


class Oracle(nn.Module):
    """The exact answer when the data is one point: every sampler must end there. It counts its rows and calls."""

    def __init__(self, point: float, prediction_type: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-9, 9, 1000).to(dtype), requires_grad=False)
        self.point = point
        self.prediction_type = prediction_type
        alphas = tiny.make_scheduler().alphas_cumprod.numpy()
        self.sigmas = np.sqrt((1 - alphas) / alphas)
        self.rows: list[int] = []
        self.overflow_in_half: set[int] = set()  # rows that come out infinite in half precision
        self.always_broken: set[int] = set()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.dtype

    def forward(self, rows: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> SimpleNamespace:
        assert rows.dtype == self.dtype == encoder_hidden_states.dtype
        assert len(rows) == len(encoder_hidden_states)
        self.rows.append(len(rows))
        sigma = float(np.interp(float(timestep), np.arange(len(self.sigmas)), self.sigmas))
        signal, noise = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5
        epsilon = (rows - signal * self.point) / noise
        prediction = epsilon if self.prediction_type == "epsilon" else signal * epsilon - noise * self.point
        prediction = prediction.clone()
        for row in self.always_broken | (self.overflow_in_half if self.dtype != torch.float32 else set()):
            prediction[row] = float("inf")
        return SimpleNamespace(sample=prediction)


def run_oracle(
    oracle: Oracle,
    name: SchedulerName,
    steps: int = 10,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, int]:
    scheduler = build_scheduler(name, scheduler_config(oracle.prediction_type), steps)
    hidden = torch.zeros(4, 77, 8, dtype=oracle.dtype)
    return sample(oracle, scheduler, hidden, guide(guidance, hidden[:1], interval), initial_noise(SEEDS, SHAPE), SEEDS)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_finds_the_point_that_the_model_knows(name: SchedulerName, prediction_type: str) -> None:
    latents, _ = run_oracle(Oracle(0.75, prediction_type), name, steps=20)
    # DDIM's and PNDM's last step ends at the schedule's first noise level (0.03), not at zero
    assert (latents - 0.75).abs().max() < 0.15
    assert (latents.mean() - 0.75).abs() < 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if SOLVERS[name].zero_snr])
def test_what_is_said_to_begin_at_zero_terminal_snr_does(name: SchedulerName) -> None:
    assert {"dpm", "ddim", "euler"} <= {each for each in NAMES if SOLVERS[each].zero_snr}
    section = FinetuneSection(zero_terminal_snr=True, snr_gamma=None)
    saved = {key: value for key, value in scheduler_config("v_prediction").items() if key != "_use_default_values"}
    config = noise_schedule.trained_with(saved, section)
    scheduler = build_scheduler(name, config, 20)
    assert float(scheduler.timesteps[0]) == 999
    alphas = DDIMScheduler.from_config(config).alphas_cumprod.clamp(min=2**-24).numpy()
    assert alphas[-1] == 2**-24
    oracle = Oracle(0.75, "v_prediction")
    oracle.sigmas = np.sqrt((1 - alphas) / alphas)
    hidden = torch.zeros(4, 77, 8)
    latents, _ = sample(oracle, scheduler, hidden, guide(1.0, hidden[:1]), initial_noise(SEEDS, SHAPE), SEEDS)
    assert (latents - 0.75).abs().max() < 0.15


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_rows_the_unet_computes_are_counted(name: SchedulerName, steps: int) -> None:
    for guidance, halves in ((1.0, 1), (7.5, 2)):
        oracle = Oracle(0.0, "epsilon")
        latents, evaluations = run_oracle(oracle, name, steps, guidance)
        assert oracle.rows == [4 * halves] * len(oracle.rows), "guidance is one batch"
        assert evaluations * 4 == sum(oracle.rows)
        assert len(oracle.rows) == CALLS.get(name, lambda n: n)(steps)
        assert latents.isfinite().all()


def test_dpm_is_the_second_order_solver_whatever_the_models_scheduler_was() -> None:
    config = scheduler_config() | {"algorithm_type": "sde-dpmsolver", "solver_order": 3}
    built = build_scheduler("dpm", config, 5)
    assert (built.config.algorithm_type, built.config.solver_order) == ("dpmsolver++", 2)


def test_the_models_noise_schedule_and_prediction_type_are_kept() -> None:
    for name in NAMES:
        built = build_scheduler(name, scheduler_config("v_prediction") | {"beta_end": 0.013}, 5)
        assert built.config.prediction_type == "v_prediction"
        assert built.config.beta_end == 0.013


def test_guidance_is_the_extrapolation_from_unconditional_to_conditional(system: SyntheticSystem) -> None:
    hidden, negative = features(system, ["a", "b", "c", "d"]), features(system, [""])
    noise = initial_noise(SEEDS, SHAPE)

    def one_step(context: Tensor, guidance: float) -> Tensor:
        scheduler = build_scheduler("ddim", system.scheduler_config, 1)
        return sample(system.unet, scheduler, context, guide(guidance, negative), noise, SEEDS)[0]

    conditional, unconditional = one_step(hidden, 1.0), one_step(negative.expand_as(hidden), 1.0)
    # one DDIM step is linear in the prediction
    expected = unconditional + 3.0 * (conditional - unconditional)
    assert torch.allclose(one_step(hidden, 3.0), expected, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_companions_and_position_change_no_bit(system: SyntheticSystem, name: SchedulerName) -> None:
    prompts = ["CT: normal", "Brain MRI: tumour", "OCT: drusen", "Fundus: normal"]
    others = ["X-Ray: pneumonia", "X-Ray: normal", "CT: nodule", "CT: normal"]
    negative = features(system, [""])

    def run(prompts: list[str], seeds: list[int]) -> Tensor:
        scheduler = build_scheduler(name, system.scheduler_config, 3)
        hidden = features(system, prompts)
        return sample(system.unet, scheduler, hidden, guide(5.0, negative), initial_noise(seeds, SHAPE), seeds)[0]

    first = run(prompts, SEEDS)
    assert torch.equal(first, run(prompts, SEEDS))
    assert torch.equal(first.flip(0), run(prompts[::-1], SEEDS[::-1]))
    mixed = run([others[0], prompts[2], prompts[2], others[3]], [9, SEEDS[2], SEEDS[2], 8])
    assert torch.equal(mixed[1], first[2]) and torch.equal(mixed[2], first[2])
    assert not torch.equal(mixed[0], first[0])


def test_a_stochastic_scheduler_draws_from_the_seeds_and_from_nothing_else(system: SyntheticSystem) -> None:
    hidden, negative = features(system, ["a"] * 4), features(system, [""])
    noise = initial_noise(SEEDS, SHAPE)

    def run(seeds: list[int], name: SchedulerName = "euler_a") -> Tensor:
        scheduler = build_scheduler(name, system.scheduler_config, 3)
        return sample(system.unet, scheduler, hidden, guide(2, negative), noise, seeds)[0]

    before = torch.random.get_rng_state()
    first = run(SEEDS)
    torch.manual_seed(123)
    assert torch.equal(first, run(SEEDS)), "the global generator plays no part"
    changed = run([11, 22, 99, 44])
    assert [torch.equal(a, b) for a, b in zip(first, changed, strict=True)] == [True, True, False, True]
    assert torch.equal(run(SEEDS, "dpm"), run([1, 2, 3, 4], "dpm")), "a deterministic scheduler needs no seed"
    torch.random.set_rng_state(before)


def test_noise_is_unit_gaussian_and_a_function_of_the_images_seed() -> None:
    noise = initial_noise(range(200), (4, 16, 16))
    assert noise.dtype == torch.float32 and noise.shape == (200, 4, 16, 16)
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    assert torch.equal(initial_noise([7, 150], (4, 16, 16))[1], noise[150])


def test_seeds_that_agree_in_their_low_32_bits_give_different_noise() -> None:
    """PyTorch's CPU generator would not tell them apart."""
    one, other = initial_noise([5, 5 + 2**32], SHAPE)
    assert not torch.equal(one, other)


def test_used_up_schedulers_are_the_only_state(system: SyntheticSystem) -> None:
    """Sampling leaves nothing behind in the model: another run in between changes no bit."""
    hidden, negative = features(system, ["a", "b", "c", "d"]), features(system, [""])

    def run(seeds: list[int]) -> Tensor:
        scheduler = build_scheduler("unipc", system.scheduler_config, 3)
        return sample(system.unet, scheduler, hidden, guide(2, negative), initial_noise(seeds, SHAPE), seeds)[0]

    first = run(SEEDS)
    run([1, 2, 3, 4])
    assert torch.equal(first, run(SEEDS))


@contextmanager
def half_oracle(**broken: set[int]) -> Iterator[Oracle]:
    oracle = Oracle(0.5, "epsilon", torch.bfloat16)
    for name, rows in broken.items():
        setattr(oracle, name, rows)
    weights = oracle.weights.clone()
    yield oracle
    assert oracle.dtype == torch.bfloat16, "the UNet is given back in its precision"
    assert torch.equal(oracle.weights, weights)


def finite(oracle: Oracle) -> Any:
    hidden = torch.zeros(4, 77, 8, dtype=oracle.dtype)
    noise = initial_noise(SEEDS, SHAPE)
    run = Run(
        oracle, lambda: build_scheduler("dpm", scheduler_config(), 5), hidden, guide(1.0, hidden[:1]), noise, SEEDS
    )
    return run.finish(*run.begin())


def test_an_overflow_in_half_precision_is_repeated_in_float32_for_the_images_concerned() -> None:
    with half_oracle() as oracle:
        sound = finite(oracle)
    assert sound.precision == ["bfloat16"] * 4 and sound.finite == [True] * 4 and sound.evaluations == 5
    with half_oracle(overflow_in_half={2}) as oracle:
        repaired = finite(oracle)
    assert repaired.precision == ["bfloat16", "bfloat16", "float32", "bfloat16"]
    assert repaired.finite == [True] * 4
    assert repaired.evaluations == 10 and oracle.rows == [4] * 10, "the repetition has the same batch size"
    for image in (0, 1, 3):
        assert torch.equal(repaired.latents[image], sound.latents[image]), "companions keep their bits"
    assert (repaired.latents[2] - 0.5).abs().max() < 0.1


def test_what_is_not_finite_in_float32_either_is_told() -> None:
    with half_oracle(always_broken={0}) as oracle:
        broken = finite(oracle)
    assert broken.finite == [False, True, True, True]
    assert broken.precision[0] == "float32"
    oracle = Oracle(0.5, "epsilon")
    oracle.always_broken = {3}
    broken = finite(oracle)
    assert broken.finite == [True, True, True, False]
    assert broken.evaluations == 5, "float32 is not tried twice"


def test_the_unet_comes_back_in_half_precision_after_an_error() -> None:
    class Interrupted(Exception):
        pass

    with half_oracle(overflow_in_half={0}) as oracle:
        plain = Oracle.forward

        def interrupted(self: Oracle, *args: Any, **kwargs: Any) -> Any:
            if self.dtype == torch.float32:
                raise Interrupted
            return plain(self, *args, **kwargs)

        oracle.forward = interrupted.__get__(oracle)  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            finite(oracle)


@pytest.mark.parametrize("name", NAMES)
def test_outside_the_guidance_interval_only_the_conditional_half_is_computed(name: SchedulerName) -> None:
    oracle = Oracle(0.0, "epsilon")
    latents, evaluations = run_oracle(oracle, name, 10, 7.5, (0.25, 0.75))
    calls = len(oracle.rows)
    guided = [index for index in range(calls) if 0.25 <= index / calls < 0.75]
    assert [index for index, rows in enumerate(oracle.rows) if rows == 8] == guided
    assert evaluations * 4 == sum(oracle.rows) < 2 * 4 * calls
    assert latents.isfinite().all()


def test_each_image_has_its_own_guidance_and_negative_prompt(system: SyntheticSystem) -> None:
    hidden, noise = features(system, ["a", "b", "c", "d"]), initial_noise(SEEDS, SHAPE)
    negative = features(system, ["", "noise", "", "noise"])

    def run(scales: list[float], negative: Tensor) -> Tensor:
        guidance = Guidance(torch.tensor(scales), negative)
        return sample(system.unet, build_scheduler("dpm", system.scheduler_config, 3), hidden, guidance, noise, SEEDS)[
            0
        ]

    mixed = run([2.0, 2.0, 5.0, 5.0], negative)
    assert torch.equal(mixed[0], run([2.0] * 4, negative[:1])[0])
    assert torch.equal(mixed[3], run([5.0] * 4, negative[1:2])[3])
    assert not torch.equal(mixed[1], run([2.0] * 4, negative[:1])[1]), "the negative prompt has an effect"


@pytest.mark.parametrize("name", NAMES)
def test_the_registry_tells_which_samplers_add_noise(system: SyntheticSystem, name: SchedulerName) -> None:
    hidden, negative = features(system, ["a"] * 4), features(system, [""])

    def run(seeds: list[int]) -> Tensor:
        scheduler = build_scheduler(name, system.scheduler_config, 4)
        return sample(system.unet, scheduler, hidden, guide(2, negative), initial_noise(SEEDS, SHAPE), seeds)[0]

    assert torch.equal(run(SEEDS), run([5, 6, 7, 8])) == (not SOLVERS[name].stochastic)


@pytest.mark.parametrize("name", NAMES)
def test_the_range_of_steps_is_the_one_that_the_sampler_takes(name: SchedulerName) -> None:
    solver = SOLVERS[name]
    for steps in (solver.fewest_steps, solver.most_steps):
        assert wrong_steps(name, steps) is None
        build_scheduler(name, scheduler_config(), steps)
    reason = wrong_steps(name, solver.most_steps + 1)
    assert reason is not None and str(solver.most_steps) in reason
    if solver.most_steps < 1000:
        with pytest.raises(ValueError, match=str(solver.most_steps)):
            build_scheduler(name, scheduler_config(), solver.most_steps + 1)
