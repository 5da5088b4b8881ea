"""RLHF: the Selector and the Policy learn from experts.

Stage 1 trains both on everything. Stage 2 goes on, once per modality: with the Policy on the rated images that pass the
Selector, which resemble those it will score during generation; with the Selector on the modality's own generator, which
samples the same prompts well and, on purpose, badly. What is not better afterwards, on groups of images that a member
has not seen, is left as stage 1 made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsyn import disk
from medsyn.config import SAMPLING, Config, flatten
from medsyn.data.images.own_sampling import Sampling
from medsyn.errors import InputError
from medsyn.models.policy import Policy
from medsyn.models.scorers import WEIGHTS, load_policy, load_selector, save_scorer
from medsyn.models.scores import Card
from medsyn.models.selector import Selector
from medsyn.models.weights import UNET_WEIGHTS, unet_sha256
from medsyn.seeds import seed
from medsyn.stage import CampaignDirectory, Control, Task, slug
from medsyn.training.run import TrainingRun
from medsyn.training.schedule import RandomKey
from medsyn.training.scorers.calibration import Line
from medsyn.training.scorers.degraded import degraded_comparisons
from medsyn.training.scorers.exam import Record
from medsyn.training.scorers.kept import kept_epoch, remove_checkpoints
from medsyn.training.scorers.lessons import Lessons, lessons_of
from medsyn.training.scorers.loop import CHECKPOINTS_KEPT, Keep, State, fit
from medsyn.training.scorers.measured import TOGETHER
from medsyn.training.scorers.policy_learner import PolicyLearner
from medsyn.training.scorers.publish import finish, gain, lines_before, set_threshold
from medsyn.training.scorers.rated import Loading, RatedPairs, RatedSet
from medsyn.training.scorers.report import ALONE, NOTE, auroc_after, figures_of_epoch
from medsyn.training.scorers.sampled import sampled_comparisons
from medsyn.training.scorers.selector_learner import SelectorLearner
from medsyn.training.scorers.sources import Sources

Scorer = Selector | Policy
FEWEST_ROWS = 8  # of a modality, for stage 2 to learn anything


def run_stage1(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Train the Selector and the Policy on everything; writes selector/, policy/, metrics.jsonl and summary.json.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: too few ratings, or a model or checkpoint that was made with different settings.
        NoProgress: a loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    section = config.training.stage1
    sources = Sources(config, task, directory)
    provenance = {**sources.provenance, **dict(flatten(section.model_dump(), "training.stage1."))}
    folder = config.training.checkpoints.save_dir
    run = TrainingRun(config, task, directory, control, provenance, CHECKPOINTS_KEPT, folder)
    if not run.has_published(directory.policy()):
        loading = sources.loading(control)
        rated, pairs = sources.load(loading)
        scorers = _new_scorers(config, sources.folds.count, rated.pooled.shape[1], sources.device)
        learners: dict[str, SelectorLearner | PolicyLearner] = {}
        if isinstance(selector := scorers.get("selector"), Selector):
            damaged = sources.degraded(loading, degraded_comparisons)
            lessons = lessons_of(rated, pairs, sources.folds, damaged, [])
            _require_both_kinds(config, lessons)
            learners["selector"] = SelectorLearner(selector, lessons, run.key, loading.remembered)
        learners["policy"] = _policy_learner(
            scorers["policy"], config, sources, loading, rated, pairs, run.key, learners.get("selector")
        )
        for learner in learners.values():
            learner.learn_statistics()
        figures = partial(figures_of_epoch, learners)
        rows = np.arange(len(rated.line))
        keep = _keeper(config, run, scorers, learners, sources.sampling(False))
        state = fit(learners, rows, config.training, section.learning_rate, run, figures, keep=keep)
        summary = {**rated.counts, "held_out": _held_out(sources, rated)}
        for name, learner in learners.items():
            summary[name] = _finish(scorers[name], learner, state.records[name], sources.sampling(False))
        if "selector" in scorers:
            summary["thresholds"] = _thresholds(scorers["selector"].card)
        disk.write_json(run.directory / "summary.json", summary)
        if "selector" in scorers:
            save_scorer(scorers["selector"], directory.selector(), provenance)
        save_scorer(scorers["policy"], directory.policy(), provenance)  # last: where it is, everything is
    remove_checkpoints(run.checkpoints, config.training.checkpoints.keep)


def run_stage2(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Go on with the scorers of `task.modality`; writes selector/, policy/, metrics.jsonl and summary.json.

    The Policy trains on the images that pass the Selector (`training.stage2.selector_threshold`) and on rejected ones
    that the experts also rated poor: without them a Policy forgets what poor looks like. Images that only the Selector
    rejects are left out, since generation never shows such images to a Policy.

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
    sources = Sources(config, task, directory)
    has_selector = directory.selector().is_dir()
    made = [directory.selector(), first] if has_selector else [first]
    provenance = {
        **sources.provenance,
        **dict(flatten(section.model_dump(), "training.stage2.")),
        "rlhf-stage1": [disk.sha256_file(at / WEIGHTS) for at in made],
    }
    generator = None
    if sources.judges_samples:
        generator = directory.finetuned_unet(config.finetune.task_for(task.modality))
        if not (generator / "unet" / UNET_WEIGHTS).is_file():
            name = slug(config.finetune.task_for(task.modality))
            raise InputError(generator, f"is missing; the task 'finetune {name}' makes it")
        sampling = config.generation.model_dump(include=set(SAMPLING))
        provenance |= {"finetune": unet_sha256(generator), **dict(flatten(sampling, "generation."))}
        provenance["selector.sampled_prompts"] = config.selector.sampled_prompts
    folder = config.training.checkpoints.save_dir
    run = TrainingRun(config, task, directory, control, provenance, CHECKPOINTS_KEPT, folder)
    if not run.has_published(directory.policy(task.modality)):
        scorers: dict[str, Scorer] = {"policy": load_policy(first, sources.device)}
        if has_selector:
            scorers["selector"] = load_selector(directory.selector(), sources.device)
        summary = _continue(scorers, config, sources, generator, control, run)
        disk.write_json(run.directory / "summary.json", summary)
        if has_selector:
            save_scorer(scorers["selector"], directory.selector(task.modality), provenance)
        save_scorer(scorers["policy"], directory.policy(task.modality), provenance)
    remove_checkpoints(run.checkpoints, config.training.checkpoints.keep)


def _continue(
    scorers: dict[str, Scorer],
    config: Config,
    sources: Sources,
    generator: Path | None,
    control: Control,
    run: TrainingRun,
) -> dict[str, Any]:
    """Run stage 2's training: leave in `scorers` the better ones and return the summary."""
    summary: dict[str, Any] = {"ratings": len(sources.ratings), "kept": "stage 1", "reason": "too few ratings"}
    if len(sources.ratings) < FEWEST_ROWS:
        return summary
    loading = sources.loading(control)
    rated, pairs = sources.load(loading)
    selector, policy = scorers.get("selector"), scorers["policy"]
    passed = np.ones(len(rated.line), dtype=bool)
    learners: dict[str, SelectorLearner | PolicyLearner] = {}
    if isinstance(selector, Selector):
        damaged = sources.degraded(loading, degraded_comparisons)
        sampled = sources.sampled(loading, generator, sampled_comparisons)
        lessons = lessons_of(rated, pairs, sources.folds, damaged, sampled)
        passed = _passed(selector, config.training.stage2.selector_threshold, rated, sources)
    taught = passed | ~rated.good
    summary = {
        **rated.counts,
        "pass_rate": float(passed.mean()),
        "trained_on": {"passed": int(passed.sum()), "rejected_poor": int((~passed & ~rated.good).sum())},
        "left_out": int((~passed & rated.good).sum()),
        "held_out": _held_out(sources, rated),
        "kept": "stage 1",
    }
    if isinstance(selector, Selector) and lessons.sampled.any():
        learners["selector"] = SelectorLearner(selector, lessons, run.key, loading.remembered)
    if taught.sum() < FEWEST_ROWS:
        return {**summary, "reason": "too few ratings passed the Selector"}
    if sources.folds.count == 1:
        return {**summary, "reason": ALONE}
    learners["policy"] = _policy_learner(
        policy, config, sources, loading, rated, pairs, run.key, learners.get("selector"), taught
    )
    before = {name: deepcopy(scorers[name]) for name in learners}
    figures = partial(figures_of_epoch, learners)
    passing = {"pass_rate": summary["pass_rate"]}
    state = fit(
        learners,
        np.arange(len(rated.line)),
        config.training,
        config.training.stage2.learning_rate,
        run,
        lambda records, epoch: {**figures(records, epoch), **passing},
        before=True,
        keep=_keeper(config, run, scorers, learners, sources.sampling(True)),
    )
    for name, learner in learners.items():
        found = _decide(name, scorers, before[name], learner, state, sources.sampling(name == "selector"))
        summary |= found if name == "policy" else {"selector": {**found.pop(name, {}), **found}}
    if "selector" in learners:
        summary["thresholds"] = _thresholds(scorers["selector"].card)
    return summary


def _decide(
    name: str,
    scorers: dict[str, Scorer],
    before: Scorer,
    learner: SelectorLearner | PolicyLearner,
    state: State,
    sampling: Sampling | None,
) -> dict[str, Any]:
    """Keep a scorer as it is now if it is better, else as it came; say which, and why."""
    record, lines = state.records[name], lines_before(before)
    its = gain(learner.exam, record, before.card.modalities, lines)
    found: dict[str, Any] = {"auroc_before": auroc_after(learner, record, 0), "gain": its.ratings.model_dump()}
    is_better = _above_0(its.ratings.low)
    if name == "selector":
        found["gain_on_sampled"] = its.sampled.model_dump()
        is_better = _above_0(its.sampled.low) and not (its.ratings.high is not None and its.ratings.high < 0)
    if is_better and record.best > 0:
        found |= {"kept": "stage 2", "reason": "better on images that its members had not seen"}
        return found | {name: _finish(scorers[name], learner, record, sampling, lines)}
    scorers[name] = before
    if name == "selector":
        set_threshold(before, learner, record, str(learner.exam.modality[0]))
    return found | {"kept": "stage 1", "reason": "not better on images that its members had not seen"}


def _above_0(low: float | None) -> bool:
    return low is not None and low > 0


def _keeper(
    config: Config,
    run: TrainingRun,
    scorers: Mapping[str, Scorer],
    learners: Mapping[str, SelectorLearner | PolicyLearner],
    sampling: Sampling | None,
) -> Keep | None:
    """What keeps the scorers as they are after an epoch, where `training.checkpoints.keep` asks for it."""
    if not config.training.checkpoints.keep:
        return None

    def keep(epoch: int, records: Mapping[str, Record]) -> None:
        folder = kept_epoch(run.checkpoints, epoch)
        for name, learner in learners.items():
            scorer = deepcopy(scorers[name])
            described = _finish(scorer, learner, records[name].only(epoch), sampling)
            save_scorer(scorer, folder / name, run.provenance | {"epoch": epoch, "described": described})

    return keep


def _finish(
    scorer: Scorer,
    learner: SelectorLearner | PolicyLearner,
    record: Record,
    sampling: Sampling | None,
    before: Sequence[Line] | None = None,
) -> dict[str, Any]:
    """Calibrate a scorer and write its card; returns its part of the summary."""
    if isinstance(learner, SelectorLearner):
        lessons = learner.lessons
        its = np.flatnonzero(lessons.familiar)
        modality, group = lessons.modality[its], lessons.group[its]
    else:
        its = np.arange(len(learner.rated.pixels))
        modality, group = learner.rated.image_modality, learner.rated.image_group
    metrics = learner.images.metrics[0, its].cpu().numpy()
    return finish(scorer, learner, record, (metrics, modality, group), before, sampling)


def _policy_learner(
    policy: Scorer,
    config: Config,
    sources: Sources,
    loading: Loading,
    rated: RatedSet,
    pairs: RatedPairs,
    key: RandomKey,
    beside: SelectorLearner | PolicyLearner | None,
    taught: np.ndarray | None = None,
) -> PolicyLearner:
    assert isinstance(policy, Policy)
    taught = np.ones(len(rated.line), dtype=bool) if taught is None else taught
    same = beside is not None and config.selector.image_size == config.policy_model.image_size
    measured = beside.images if beside is not None and same else None
    captioned, texts = sources.with_captions(loading)
    return PolicyLearner(
        *(policy, rated, pairs, captioned, texts, sources.folds, taught, key),
        config.raters.mismatch_negatives,
        measured,
        loading.remembered,
    )


@torch.no_grad()
def _passed(selector: Selector, threshold: float, rated: RatedSet, sources: Sources) -> np.ndarray:
    """bool [N]: the row's image passes the Selector, in the eyes of the member that was not trained on it."""
    folds, scores = sources.folds.of(rated.image_group.tolist()), np.zeros(len(rated.pixels))
    for fold in np.unique(folds):
        for modality in np.unique(rated.image_modality[folds == fold]):
            places = np.flatnonzero((folds == fold) & (rated.image_modality == modality))
            for chunk in np.split(places, range(TOGETHER, len(places), TOGETHER)):
                logits = selector(rated.pixels[torch.from_numpy(chunk)].to(sources.device).float() / 255)[max(fold, 0)]
                scores[chunk] = selector.calibration(logits, selector.row_of(str(modality))).cpu().numpy()
    return (scores >= threshold)[rated.image]


def _require_both_kinds(config: Config, lessons: Lessons) -> None:
    """Raise InputError if all that a Selector would learn from is good, or all is poor."""
    targets = np.concatenate([lessons.ratings.target, lessons.pulls.target])
    if len(np.unique(targets)) < 2:
        reason = f"{len(lessons.ratings.target)} ratings are left to train on, and they are all good or all poor"
        raise InputError(str(config.data.ratings_file), reason, key="rating")


def _new_scorers(config: Config, members: int, text_dim: int, device: torch.device) -> dict[str, Scorer]:
    """Untrained scorers; the same ones for the same campaign seed."""
    card = Card(modalities=config.data.modalities)
    scorers: dict[str, Scorer] = {}
    selector, policy = (
        section.model_copy(update={"members": members}) for section in (config.selector, config.policy_model)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed(config.campaign.seed, "scorers"))
        if config.training.stage1.train_selector:
            scorers["selector"] = Selector(selector, card)
        scorers["policy"] = Policy(policy, text_dim, card)
    return {name: scorer.to(device) for name, scorer in scorers.items()}


def _thresholds(card: Card) -> dict[str, Any]:
    return {name: one.model_dump() for name, one in card.thresholds.items()}


def _held_out(sources: Sources, rated: RatedSet) -> dict[str, Any]:
    groups = np.unique(rated.image_group[rated.image])
    return {"folds": sources.folds.count, "groups": len(groups), "note": NOTE if sources.folds.count > 1 else ALONE}
