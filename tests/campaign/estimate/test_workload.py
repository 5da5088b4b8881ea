from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from medsyn.campaign.estimate.workload import scheduler_calls, unet_calls
from medsyn.campaign.plan import inputs
from medsyn.campaign.plan.inputs import Checked
from medsyn.config import GenerationSection
from medsyn.models.sampler import build_scheduler
from medsyn.schedulers import SchedulerName
from tests.helpers.trial import Trial

NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("scheduler", get_args(SchedulerName))
def test_a_sampler_calls_the_unet_as_often_as_is_counted(scheduler: SchedulerName) -> None:
    for steps in (1, 2, 3, 10, 25):
        assert scheduler_calls(scheduler, steps) == len(build_scheduler(scheduler, NOISE, steps).timesteps)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.0, 0.5), (0.99, 1.0)])
def test_calls_with_guidance_are_those_that_the_sampler_makes(interval: tuple[float, float]) -> None:
    for steps in (1, 7, 25):
        section = GenerationSection(guidance_interval=list(interval), num_inference_steps=steps)
        inside = sum(interval[0] <= index / steps < interval[1] for index in range(steps))
        assert unet_calls(section) == (inside, steps - inside)


def test_calls_of_the_outermost_layers_alone_are_not_counted() -> None:
    section = GenerationSection(num_inference_steps=10, deep_cache_every=2, text_attention_until=0.6)
    assert unet_calls(section) == (3, 2)  # steps 0, 2, 4; 6, 8
    assert unet_calls(section, guided=False) == (0, 5)


def test_a_prompts_own_settings_come_before_the_configurations() -> None:
    section = GenerationSection(num_inference_steps=25)
    assert unet_calls(section) == (25, 0)
    assert unet_calls(section, steps=10) == (10, 0)
    assert unet_calls(section, guided=False) == (0, 25)
    assert unet_calls(GenerationSection(guidance_scale=1.0), guided=True) == (25, 0)


def checked(trial: Trial, *rows: dict[str, Any], **overrides: Any) -> Checked:
    path = trial.data / "wanted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return inputs.check(trial.config(data__prompts=str(path), data__modalities=["CT"], **overrides))


def seconds(its: Checked) -> float:
    return sum(cost.seconds for cost in its.estimate.of("generate"))


def test_a_list_asks_for_the_calls_that_its_prompts_say(trial: Trial) -> None:
    rows = [
        {"prompt": "CT: a", "n": 3},
        {"prompt": "CT: b", "num_inference_steps": 10},
        {"prompt": "CT: c", "guidance_scale": 1},
    ]
    counts = checked(trial, *rows, generation__img_num=2).counts
    assert {what: counts[what]["CT"] for what in ("asked", "guided", "plain")} == {
        "asked": 7,
        "guided": 3 * 25 + 2 * 10,
        "plain": 2 * 25,
    }


def test_hours_and_shards_follow_the_prompts_own_settings(trial: Trial) -> None:
    """On a processor so slow that nothing but the work counts."""
    settings: dict[str, Any] = {"generation__blocks_per_shard": None, "cluster__tflops": 0.01}
    plain, more, unguided = (
        checked(trial, {"prompt": "CT: a", "n": 4000, **row}, **settings)
        for row in ({}, {"num_inference_steps": 100}, {"guidance_scale": 1})
    )
    by_key = checked(
        trial, {"prompt": "CT: a", "n": 4000}, **settings, generation__num_inference_steps=100
    )  # what the prompt says is what the configuration may say
    assert seconds(more) == pytest.approx(seconds(by_key))
    assert seconds(more) > 2 * seconds(plain) > 2 * seconds(unguided)
    assert plain.blocks_per_shard["CT"] > 2 * more.blocks_per_shard["CT"]
    assert more.blocks_per_shard == by_key.blocks_per_shard
