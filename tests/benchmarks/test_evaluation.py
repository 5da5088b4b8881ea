from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from medsyn.data.phantoms.phantom import FINDINGS, KINDS, draw_phantom
from medsyn.evaluation import judge
from tests.helpers.paths import ROOT
from tests.helpers.synthetic_campaign import Builder

BENCHMARKS = ROOT / "benchmarks"


def load(name: str) -> ModuleType:
    if not (BENCHMARKS / f"{name}.py").is_file():
        pytest.skip("the benchmarks are not part of an installed package")
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_working_seconds_are_what_the_stages_recorded(tmp_path: Path) -> None:
    end_to_end = load("end_to_end")
    whole, builder = Builder(tmp_path / "whole").everything(), Builder(tmp_path / "empty")
    made = SimpleNamespace(directory=whole.directory, config=whole.config)
    assert end_to_end.working_seconds(made, "generate") == 2.5 * 12, "twelve images at 2.5 s"
    images = 80 * whole.config.finetune.train_batch_size * whole.config.finetune.gradient_accumulation_steps
    assert end_to_end.working_seconds(made, "finetune") == pytest.approx(2 * images / 40.0)
    assert end_to_end.working_seconds(made, "rlhf-stage1") is None
    empty = SimpleNamespace(directory=builder.directory, config=builder.config)
    assert end_to_end.working_seconds(empty, "finetune") == 0


def test_both_ways_to_start_tasks_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    end_to_end = load("end_to_end")
    ways: list[str] = []
    monkeypatch.setenv("MEDSYN_FORK", "unset")
    monkeypatch.setattr(end_to_end.judge, "load_or_train", lambda directory: None)
    monkeypatch.setattr(end_to_end, "submit", lambda *arguments: ways.append(os.environ["MEDSYN_FORK"]))
    turns = end_to_end.compare(Path("a.yaml"), [], 2)
    assert ways == ["0", "1", "0", "1"]
    assert {name: len(its) for name, its in turns.items()} == {"new processes": 2, "forks": 2}
    console = Console(record=True, width=100)
    end_to_end.show_turns(
        console, {"new processes": [{"wall": 4, "cpu": 9}, {"wall": 6, "cpu": 8}], "forks": [{"wall": 1, "cpu": 6}]}
    )
    assert "wall 0.25, CPU 0.75" in console.export_text()


@pytest.mark.parametrize("cold", [True, False])
def test_two_states_run_in_turns_each_with_its_own_code_configuration_and_cache(
    monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    end_to_end, ran = load("end_to_end"), []
    for name in ("PYTHONPATH", "MEDSYN_CACHE"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setattr(end_to_end.subprocess, "run", lambda *arguments, **options: None)

    def turn(config: Path, overrides: list[str], root: Path) -> dict[str, float]:
        assert config == root / "configs" / "tiny.yaml" and os.environ["PYTHONPATH"] == str(root)
        ran.append((root == end_to_end.ROOT, Path(os.environ["MEDSYN_CACHE"]).name))
        return {"wall": 1.0, "cpu": 1.0}

    monkeypatch.setattr(end_to_end, "turn", turn)
    turns = end_to_end.compare_states("a1b2c3", end_to_end.ROOT / "configs" / "tiny.yaml", [], 1, cold)
    assert ran == [(False, "cache-False"), (True, "cache-True")] * (1 if cold else 2)
    assert {name: len(its) for name, its in turns.items()} == {"a1b2c3": 1, "this": 1}


def test_prompts_of_the_benchmark_are_balanced() -> None:
    prompt_following = load("prompt_following")
    assert judge.RECIPE.seed not in (prompt_following.PROMPT_SEED, prompt_following.REAL_SEED)
    for kind in KINDS:
        first, seed = prompt_following.FIRST_INDEX, prompt_following.PROMPT_SEED
        asked = [draw_phantom(kind, first + k, seed, quality=3) for k in range(6)]
        assert sorted(phantom.finding for phantom in asked) == sorted(2 * FINDINGS[kind])


def test_the_quick_starts_interval_is_over_seeds_and_images() -> None:
    quick_start = load("quick_start")
    rng = np.random.default_rng(0)
    better = [quick_start.Seed({("CT", "finding"): np.stack([np.zeros(36), np.ones(36)], axis=1)}) for _ in range(3)]
    assert quick_start.is_better("finding", better)
    noise = [quick_start.Seed({("CT", "held-out loss"): rng.normal(size=(36, 2))}) for _ in range(3)]
    assert not quick_start.is_better("held-out loss", noise)
    mean, low, high = quick_start.interval([np.zeros(36), np.ones(36)])
    assert (mean, low, high) == (0.5, 0, 1), "seeds that disagree are no evidence, however many images they have"
    assert quick_start.differences("finding", better, "MRI") == []


def test_the_distance_to_real_images_is_clean_fids_and_its_interval_is_over_images() -> None:
    real_images = load("finetune_real")
    kernel_distance = pytest.importorskip("cleanfid.fid").kernel_distance
    rng = np.random.default_rng(0)
    real, near, far = (rng.normal(shift, 1, size=(40, 16)) for shift in (0.0, 0.1, 1.0))
    kernels = [real_images.Kernels.of(real, painted) for painted in (far, near)]
    once = np.ones(40)
    for one, painted in zip(kernels, (far, near), strict=True):
        expected = kernel_distance(real, painted, num_subsets=1, max_subset_size=40)
        assert one.distance(once, once) == pytest.approx(expected, abs=1e-6)
    assert kernels[0].distance(2 * once, once) == pytest.approx(kernels[0].distance(once, once), rel=0.1)
    found = real_images.Found(np.zeros((40, 2)), tuple(kernels))
    means, low, high = real_images.distance_interval([[found], [found]], draws=100)
    assert means[1] < means[0] and low < means[1] - means[0] < high < 0
    _, low, high = real_images.distance_interval([[real_images.Found(np.zeros((40, 2)), (kernels[1],) * 2)]], draws=50)
    assert low == high == 0, "the same images are drawn for both"
