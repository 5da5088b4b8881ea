from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from medsyn.config import FinetuneSection
from medsyn.training.schedule import draws, epoch_order, learning_rate, samples_of_step, warmup_cosine

KEY = (7, "finetune", "ct")


def section(**values: object) -> FinetuneSection:
    return FinetuneSection.model_validate({"max_train_steps": 100, "learning_rate": 1e-3, **values})


def test_warm_up_rises_to_the_peak_and_never_starts_at_zero() -> None:
    rates = [learning_rate(step, section(lr_warmup_steps=10)) for step in range(12)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[9] == rates[10] == rates[11] == 1e-3
    assert all(a < b for a, b in pairwise(rates[:10]))


def test_cosine_falls_from_the_peak_to_almost_zero() -> None:
    cosine = section(lr_scheduler="cosine", lr_warmup_steps=10)
    rates = [learning_rate(step, cosine) for step in range(10, 100)]
    assert rates[0] == 1e-3
    assert rates[45] == pytest.approx(5e-4)
    assert 0 < rates[-1] < 1e-6
    assert all(a > b for a, b in pairwise(rates))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 100, 5000])
def test_no_warm_up_and_a_warm_up_longer_than_the_run_are_fine(schedule: str, warmup: int) -> None:
    rates = [learning_rate(step, section(lr_scheduler=schedule, lr_warmup_steps=warmup)) for step in range(100)]
    assert all(0 < rate <= 1e-3 for rate in rates)


@pytest.mark.parametrize("total", [1, 7, 150, 5500])
@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_every_training_keeps_the_rates_that_its_weights_were_made_with(total: int, warmup: int) -> None:
    for step in range(warmup, total):
        angle = math.pi * (step - warmup) / max(1, total - warmup)
        assert warmup_cosine(step, total, 3e-4, warmup) == 3e-4 * 0.5 * (1 + math.cos(angle)), "the scorers"
        rate = 1.2e-3 * (0.02 + 0.98 * 0.5 * (1 + math.cos(angle)))
        assert warmup_cosine(step, total, 1.2e-3, warmup, 0.02) == rate, "the embedded model"


def test_behind_its_end_a_schedule_stays_where_it_is() -> None:
    assert [warmup_cosine(step, 10, 1.0, 2, 0.25) for step in (10, 11, 500)] == [0.25] * 3


@pytest.mark.parametrize(("count", "batch"), [(5, 3), (3, 8), (1, 4), (10, 5), (7, 7)])
def test_every_epoch_visits_every_sample_once_whatever_the_batch(count: int, batch: int) -> None:
    epochs = 6
    steps = -(-count * epochs // batch)
    visited = np.concatenate([samples_of_step(KEY, step, batch, count) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(visited[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_tasks_and_seeds_have_orders_of_their_own() -> None:
    orders = [epoch_order(key, epoch, 30) for key in (KEY, (8, *KEY[1:]), (7, "finetune", "mri")) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 6


def test_a_cached_order_cannot_be_altered_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(KEY, 0, 5)[0] = 3


def draw(
    step: int = 3, batch: int = 8, count: int = 20, dropout: float = 0.5, key: tuple = KEY
) -> dict[str, np.ndarray]:
    return vars(draws(key, step, batch, count, (4, 8, 8), 1000, dropout))


def test_a_step_draws_the_same_whenever_and_after_whatever_it_is_asked() -> None:
    first = draw(step=3)
    for step in (9, 0, 2):
        draw(step=step)
    again = draw(step=3)
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("change", [{"step": 4}, {"key": (8, "finetune", "ct")}, {"key": (7, "finetune", "mri")}])
def test_another_step_seed_or_task_draws_anew(change: dict) -> None:
    first, other = draw(), draw(**change)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_noise_is_standard_normal_float32_and_no_two_samples_share_it() -> None:
    chosen = draws(KEY, 0, 64, 100, (4, 16, 16), 1000, 0.1)
    assert chosen.noise.dtype == chosen.posterior.dtype == np.float32
    assert abs(float(chosen.noise.mean())) < 0.02
    assert float(chosen.noise.std()) == pytest.approx(1, abs=0.02)
    flat = np.concatenate([chosen.noise, chosen.posterior]).reshape(128, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(128)).max() < 0.2


def test_timesteps_cover_the_whole_schedule_and_nothing_else() -> None:
    timesteps = np.concatenate([draw(step=step, batch=64)["timesteps"] for step in range(200)])
    assert timesteps.min() == 0
    assert timesteps.max() == 999
    assert timesteps.mean() == pytest.approx(499.5, abs=15)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.5])
def test_captions_are_dropped_as_often_as_asked(dropout: float) -> None:
    dropped = np.concatenate([draw(step=step, batch=64, dropout=dropout)["unconditional"] for step in range(100)])
    assert dropped.mean() == pytest.approx(dropout, abs=0.02)


def test_which_samples_a_step_takes_does_not_depend_on_dropout_or_latent_size() -> None:
    a = draws(KEY, 5, 4, 9, (4, 8, 8), 1000, 0.0)
    b = draws(KEY, 5, 4, 9, (4, 32, 32), 1000, 0.9)
    assert np.array_equal(a.samples, b.samples)
    assert np.array_equal(a.timesteps, b.timesteps)


def test_a_noise_offset_moves_whole_channels_and_nothing_else() -> None:
    plain, moved = (draws(KEY, 3, 64, 100, (4, 8, 8), 1000, 0.1, offset) for offset in (0.0, 0.5))
    for name in ("samples", "timesteps", "unconditional", "posterior"):
        assert np.array_equal(getattr(plain, name), getattr(moved, name))
    shift = moved.noise - plain.noise
    assert np.allclose(shift, shift[:, :, :1, :1], atol=1e-6)
    assert shift[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.2)
    again = draws(KEY, 3, 64, 100, (4, 8, 8), 1000, 0.1, 0.5)
    assert np.array_equal(again.noise, moved.noise)
