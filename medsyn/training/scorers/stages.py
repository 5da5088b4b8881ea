"""RLHF: the Selector and the Policy learn from expert ratings.

Stage 1 trains both on all ratings. Stage 2 continues with the Policy, once per modality, on the rated images that pass
the Selector, which resemble those it will score during generation; if it does not improve on the held-out ratings,
stage 1's weights are kept.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medsyn import disk
from medsyn.config import FREE_OF_SELECTOR, Config, TrainingSection, flatten
from medsyn.data.images.latent_cache import TensorCache, hash_files
from medsyn.data.tables.read import RatingRow
from medsyn.errors import InputError
from medsyn.models.device import choose_device
from medsyn.models.policy import Policy
from medsyn.models.scorers import WEIGHTS, load_policy, load_selector, save_scorer
from medsyn.models.selector import Selector
from medsyn.models.weights import weights_fingerprint
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.run import TrainingRun
from medsyn.training.scorers.loop import CHECKPOINTS_KEPT, finite, fit, standing
from medsyn.training.scorers.loss import TOGETHER, Learner
from medsyn.training.scorers.rated import RatedSet, load_rated, rated_rows
from medsyn.training.scorers.report import NOTE, describe_scorer, suggest_thresholds

if TYPE_CHECKING:
    from medsyn.models.stable_diffusion import SyntheticSystem

FEWEST_ROWS = 8  # of a modality, for stage 2 to learn anything


def run_stage1(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Train the Selector and the Policy on all ratings; writes selector/, policy/, metrics.jsonl and summary.json.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: too few ratings, or a model or checkpoint that was made with different settings.
        NoProgress: a loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    section = config.training.stage1
    rows = rated_rows(config)
    ratings = _Ratings(config, task, directory, rows)
    provenance = {**ratings.provenance, **dict(flatten(section.model_dump(), "training.stage1."))}
    folder = config.training.checkpoints.save_dir
    run = TrainingRun(config, task, directory, control, provenance, CHECKPOINTS_KEPT, folder)
    if not run.has_published(directory.policy()):
        rated = ratings.load(rows, control)
        train, held_out = np.flatnonzero(~rated.held_out), np.flatnonzero(rated.held_out)
        if len(np.unique(rated.good[train])) < 2:
            reason = f"{len(train)} of {len(rows)} ratings are left to train on, and they are all good or all poor"
            raise InputError(str(config.data.ratings_file), reason, key="data.held_out_fraction")
        scorers = _new_scorers(config, rated.pooled.shape[1], ratings.device)
        learners = {
            name: Learner(scorer, rated, run.key, config.raters.mismatch_negatives) for name, scorer in scorers.items()
        }
        for learner in learners.values():
            learner.learn_statistics(train)
        state = fit(learners, train, held_out, config.training, section.learning_rate, run, {})

        summary = {**rated.counts, "held_out": _held_out_counts(rated, held_out)}
        for name, learner in learners.items():
            summary[name] = describe_scorer(state.best[name], state.last[name], learner.judge_held_out(held_out), rated)
        if "selector" in learners:
            summary["thresholds"] = suggest_thresholds(learners["selector"].judge_held_out(held_out), rated)
        disk.write_json(run.directory / "summary.json", summary)
        if "selector" in scorers:
            save_scorer(scorers["selector"], directory.selector(), provenance)
        save_scorer(scorers["policy"], directory.policy(), provenance)  # last: where it is, everything is
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def run_stage2(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Continue training the Policy of `task.modality`; writes policy/, metrics.jsonl and summary.json.

    It trains on the images that pass the Selector (`training.stage2.selector_threshold`) and on rejected ones that the
    experts also rated poor: without them a Policy forgets what poor looks like. Images that only the Selector rejects
    are left out, since generation never shows such images to a Policy.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: stage 1 has not run, or a model or checkpoint was made with different settings.
        NoProgress: a loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    assert task.modality is not None
    section, first = config.training.stage2, directory.policy()
    if not first.is_dir():
        raise InputError(first, "is missing; the task 'rlhf-stage1 all' makes it")
    everything = rated_rows(config)
    rows = [row for row in everything if row.modality == task.modality]
    ratings = _Ratings(config, task, directory, rows)
    provenance = {
        **ratings.provenance,
        **dict(flatten(section.model_dump(), "training.stage2.")),
        "prompts": disk.fingerprint([row.prompt for row in everything]),
        "rlhf-stage1": [disk.sha256_file(at / WEIGHTS) for at in (directory.selector(), first) if at.is_dir()],
    }
    folder = config.training.checkpoints.save_dir
    run = TrainingRun(config, task, directory, control, provenance, CHECKPOINTS_KEPT, folder)
    if not run.has_published(directory.policy(task.modality)):
        policy = load_policy(first, ratings.device)
        summary: dict[str, Any] = {"ratings": len(rows), "kept": "stage 1", "reason": "too few ratings"}
        if len(rows) >= FEWEST_ROWS:
            rated = ratings.load(rows, control, everything)
            selector = load_selector(directory.selector(), ratings.device) if directory.selector().is_dir() else None
            passed = _passed(selector, section.selector_threshold, rated)
            learner = Learner(policy, rated, run.key, config.raters.mismatch_negatives)
            summary = {**rated.counts, **_continue(learner, passed, config.training, run)}
        disk.write_json(run.directory / "summary.json", summary)
        save_scorer(policy, directory.policy(task.modality), provenance)
    shutil.rmtree(run.checkpoints, ignore_errors=True)


def _continue(learner: Learner, passed: np.ndarray, section: TrainingSection, run: TrainingRun) -> dict[str, Any]:
    """Run stage 2's training: leave the learner's Policy with the better weights and return the summary."""
    rated = learner.rated
    train = np.flatnonzero(~rated.held_out & (passed | ~rated.good))
    held_out = np.flatnonzero(rated.held_out)
    before = standing(0, learner.judge_held_out(held_out))
    summary: dict[str, Any] = {
        "pass_rate": float(passed.mean()),
        "trained_on": {"passed": int(passed[train].sum()), "rejected_poor": int((~passed[train]).sum())},
        "left_out": int((~rated.held_out & ~passed & rated.good).sum()),
        "held_out": _held_out_counts(rated, held_out),
        "auroc_before": finite(before.auroc),
        "loss_before": finite(before.loss),
        "kept": "stage 1",
    }
    if len(train) < FEWEST_ROWS:
        return {**summary, "reason": "too few ratings passed the Selector"}
    if math.isnan(before.auroc):
        return {**summary, "reason": "too few ratings are held out to show an improvement"}
    extra = {"pass_rate": summary["pass_rate"]}
    peak = section.stage2.learning_rate
    state = fit({"policy": learner}, train, held_out, section, peak, run, {"policy": before}, extra)
    best, last = state.best["policy"], state.last["policy"]
    if best.epoch:
        summary |= {"kept": "stage 2", "reason": "better on the held-out ratings"}
    else:
        summary["reason"] = "no epoch was better on the held-out ratings"
    return {**summary, "policy": describe_scorer(best, last, learner.judge_held_out(held_out), rated)}


def _passed(selector: Selector | None, threshold: float, rated: RatedSet) -> np.ndarray:
    """bool [N]: the row's image passes the Selector; all pass if no Selector was trained."""
    if selector is None:
        return np.ones(len(rated.rating), dtype=bool)
    device = next(selector.parameters()).device
    scores = torch.cat([selector.score(batch.to(device).float() / 255) for batch in rated.pixels.split(TOGETHER)])
    return (scores.cpu().numpy() >= threshold)[rated.image]


class _Ratings:
    """The rated images of one task: hashed immediately, since everything depends on them; read on demand."""

    def __init__(self, config: Config, task: Task, directory: CampaignDirectory, rows: Sequence[RatingRow]) -> None:
        self._config = config
        self._cache = directory.root / "cache" / "ratings"  # shared: stage 2 reuses what stage 1 has made
        disk.sweep_temporaries(self._cache)
        self._hashes = hash_files((row.path for row in rows), self._cache / f"files-{task.stage}-{task.name}.json")
        self.device = choose_device(config.device).device
        training = config.training
        self.provenance: dict[str, Any] = {
            "campaign.seed": config.campaign.seed,
            "data.held_out_fraction": config.data.held_out_fraction,
            "data.ratings_file": disk.fingerprint(
                [
                    [row.file, row.rating, row.modality, row.expert_level, row.prompt, self._hashes[row.path]]
                    + ([row.group] if row.group else [])  # a group changes who is held out
                    for row in rows
                ]
            ),
            "data.resolution": config.data.resolution,
            **({"data.text_chunks": config.data.chunks} if config.data.chunks > 1 else {}),
            "model_paths.stable_diffusion": weights_fingerprint(config.model_paths.stable_diffusion),
            "training.batch_size": training.batch_size,
            "training.max_epochs": training.max_epochs,
            **dict(flatten(config.raters.model_dump(), "raters.")),
            **dict(flatten(config.selector.model_dump(exclude=set(FREE_OF_SELECTOR)), "selector.")),
            **dict(flatten(config.policy_model.model_dump(), "policy_model.")),
        }

    def load(
        self, rows: Sequence[RatingRow], control: Control, prompts_of: Sequence[RatingRow] | None = None
    ) -> RatedSet:
        """Load `rows` as tensors; wrong prompts come from `prompts_of`, by default from `rows`."""
        source, chunks = self._config.model_paths.stable_diffusion, self._config.data.chunks

        @functools.cache
        def load_system() -> SyntheticSystem:
            from medsyn.models.stable_diffusion import load_synthetic  # 7 s to import, for nothing once all is cached

            return load_synthetic(source, self.device, with_unet=False, text_chunks=chunks)

        cache = TensorCache(self._cache)
        return load_rated(self._config, rows, self._hashes, prompts_of or rows, load_system, cache, control)


def _new_scorers(config: Config, text_dim: int, device: torch.device) -> dict[str, Selector | Policy]:
    """Untrained scorers; the same ones for the same campaign seed."""
    scorers: dict[str, Selector | Policy] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(config.campaign.seed, "scorers"))
        if config.training.stage1.train_selector:
            scorers["selector"] = Selector(config.selector)
        scorers["policy"] = Policy(config.policy_model, text_dim)
    return {name: scorer.to(device) for name, scorer in scorers.items()}


def _held_out_counts(rated: RatedSet, rows: np.ndarray) -> dict[str, Any]:
    return {"ratings": len(rows), "images": len(np.unique(rated.image[rows])), "note": NOTE}
