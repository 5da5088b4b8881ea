from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from medsyn.config import ScorerSection
from medsyn.generation.block_store import Item
from medsyn.generation.sample.batch import ImageSampler, Recipe
from medsyn.models import weights
from medsyn.models.sampler import build_scheduler
from medsyn.models.stable_diffusion import load_synthetic

SMALL = ScorerSection(image_size=32, patch_size=8, hidden_dim=16, num_layers=1, num_heads=2, mlp_dim=16)
RECIPE = Recipe("X-Ray", 0, 32, 32, "dpm", 3, 3.0, batch_size=2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sampler(one_thread: None) -> ImageSampler:
    from painting.models import Judge

    system = load_synthetic(str(weights.embedded_directory()), torch.device("cpu"))
    judge = Judge.random(system, SMALL)
    return ImageSampler(RECIPE, system, judge.selector, judge.policy)


def test_the_clean_image_that_a_step_predicts_is_the_solvers_own() -> None:
    import early_rejection

    for prediction_type in ("epsilon", "v_prediction"):
        config = DPMSolverMultistepScheduler(prediction_type=prediction_type).config
        scheduler = build_scheduler("dpm", config, 10)
        prediction, latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).split(1)
        scheduler._init_step_index(scheduler.timesteps[4])
        expected = scheduler.convert_model_output(prediction, sample=latents)
        found = early_rejection.predicted_clean(scheduler, prediction, scheduler.timesteps[4], latents)
        assert torch.allclose(found, expected, atol=1e-5), prediction_type


def test_candidates_of_the_benchmark_are_scored_as_the_sampler_scores_them(sampler: ImageSampler) -> None:
    import early_rejection

    wanted = [(Item("a", "X-Ray: nodule, right", 0), 0), (Item("b", "X-Ray: clear lungs", 0), 2)]
    sampled = sampler.sample(wanted).candidates
    scores = early_rejection.observe(sampler, wanted, [1, 3], early_rejection.Clock(torch.device("cpu"), {}))
    assert scores.final.tolist() == [candidate.selector for candidate in sampled]
    assert scores.policy.tolist() == [candidate.policy for candidate in sampled]
    assert scores.early[1] == pytest.approx(scores.final, abs=1e-3), "the last step ends at what it predicts"
    assert not np.allclose(scores.early[0], scores.final, atol=1e-5)


def test_a_cut_loses_no_more_than_is_allowed() -> None:
    import early_rejection

    early = np.random.default_rng(0).permutation(200) / 200
    accepted = early > 0.3
    for allowed in (0.0, 0.01, 0.05, 0.5):
        lost = (early[accepted] < early_rejection.cut(early, accepted, allowed)).mean()
        assert allowed - 0.01 < lost <= allowed
    assert early_rejection.cut(early, early > 1, 0.05) == -np.inf, "nothing was accepted: nothing is known"


def test_looking_costs_and_stopping_saves() -> None:
    import early_rejection

    costs = early_rejection.Costs(step=1.0, decode=1.0, select=0.5, align=0.5)
    without = 10 + 2
    assert early_rejection.relative(costs, 10, 4, 1.0, 0.5, 0.5) == pytest.approx((without + 1.5) / without)
    stopped = 4 + 1.5 + 0.5 * (6 + 2)
    assert early_rejection.relative(costs, 10, 4, 0.5, 0.5, 0.5) == pytest.approx(stopped / without)
    assert early_rejection.relative(costs, 10, 4, 0.5, 0.25, 0.5) == pytest.approx(2 * stopped / without)


def test_a_batch_runs_on_while_one_of_it_is_above_the_cut() -> None:
    import early_rejection

    final = np.array([0.9, 0.1, 0.1, 0.1] * 2)  # batches of two: every other one has nothing that passes
    half = early_rejection.Scores(early=final[None], final=final, policy=final)
    costs = early_rejection.Costs(1.0, 0.0, 0.0, 0.0)
    row = early_rejection.judge([(half, half)], [0.5], (0, 5), 0.0, (costs, costs), steps=10, batch=2)
    assert (row.accepts, row.rejected, row.lost) == (0.25, 0.75, 0.0)
    assert row.batch == pytest.approx((5 + 0.5 * 5) / 10)
    assert row.repacked == row.perfect == row.unet == pytest.approx((5 + 0.25 * 5) / 10)
    assert row.selector == pytest.approx((0.9, 0.9))


@pytest.mark.parametrize("name", ["diffusers", "medsyn"])
def test_both_ways_make_the_images_that_were_asked_for(sampler: ImageSampler, name: str, tmp_path: Path) -> None:
    from painting import ways
    from painting.models import Judge

    def way(threshold: float) -> Any:
        assert sampler.selector is not None and sampler.policy is not None
        judge = Judge(sampler.selector, sampler.policy, threshold)
        if name == "medsyn":
            return ways.Medsyn(ImageSampler(RECIPE, sampler.system), judge)
        return ways.Diffusers(sampler.system, judge, "dpm", 3, batch=2, pixels=32)

    assert way(0.0)(3, "painting", tmp_path / "painting") == ways.Made(3, 3)
    assert way(0.0)(3, "files", tmp_path / "files") == ways.Made(3, 3)
    assert len(list((tmp_path / "files").rglob("*.png"))) == 3
    none_pass = way(1.1)(2, "filter", tmp_path / "none")
    assert none_pass == ways.Made(2 * ways.MAX_ATTEMPTS, 0)
    assert not list((tmp_path / "none").rglob("*.png"))
    assert way(0.0)(2, "filter", tmp_path / "all") == ways.Made(2, 2)


def test_growth_is_that_of_seconds_by_that_of_prompts() -> None:
    import scale

    sizes = [scale.Size(100, {"merge": 2.0}, {"merge": 1.0}), scale.Size(1000, {"merge": 10.0}, {"merge": 10.0})]
    assert scale.growth(sizes, "merge") == "0.50, CPU 1.00"
    assert scale.growth(sizes[:1], "merge") == "-"
