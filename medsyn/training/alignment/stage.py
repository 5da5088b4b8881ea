"""The stage `align`: a modality's generator learns from what its scorers learned from experts.

In rounds: it samples candidates of the same prompts, the scorers' rewards say which are better, and the generator is
trained towards those, with well-rated real images in every batch. Only the step, the weights and the optimizer's state
are saved; everything else is a function of the seed, the round and the step.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsyn import disk
from medsyn.config import Config
from medsyn.data.images.latent_cache import caption_key
from medsyn.models.stable_diffusion import SyntheticSystem, load_unet
from medsyn.models.weights import weights_fingerprint
from medsyn.stage import CampaignDirectory, Control, Task
from medsyn.training.alignment import real_images
from medsyn.training.alignment.advantage import Rewards, Units, accepted, pairs, parts, rewards, weighted
from medsyn.training.alignment.candidates import Sampler, Scored, wanted
from medsyn.training.alignment.judge import FEWEST, Judge
from medsyn.training.alignment.judging import Judging, Seat
from medsyn.training.alignment.known import known_to
from medsyn.training.alignment.lessons import Lessons
from medsyn.training.alignment.loop import FIGURES, Round, train
from medsyn.training.alignment.publish import (
    ROUND,
    discard_rounds,
    end_round,
    keep_candidates,
    publish,
    round_folder,
)
from medsyn.training.alignment.sources import Sources
from medsyn.training.checkpoint import discard, path_of, saved_steps
from medsyn.training.finetune.dataset import LatentDataset
from medsyn.training.finetune.precision import training_dtype
from medsyn.training.finetune.publish import best_folder, discard_best
from medsyn.training.finetune.stage import noise_scheduler
from medsyn.training.finetune.state import first_state
from medsyn.training.own_samples import choose_prompts
from medsyn.training.run import CONDITIONS, TrainingRun

logger = logging.getLogger(__name__)


def run(config: Config, task: Task, directory: CampaignDirectory, control: Control) -> None:
    """Align the UNet of `task.modality`; writes model/, candidates/, metrics.jsonl and summary.json.

    Raises:
        InputProblems: rows or images that cannot be used, with `data.strict`.
        InputError: an earlier stage has not run, or a model or checkpoint was made with different settings.
        NoProgress: the loss is no longer finite, or no checkpoint can be read.
        Saved: a stop was requested; everything made so far is on disk.
    """
    assert task.modality is not None
    sources, section, model = Sources(config, task, directory), config.align, directory.aligned_unet(task.modality)
    training = TrainingRun(
        config,
        task,
        directory,
        control,
        sources.provenance,
        section.checkpoints_total_limit,
        max_lost_minutes=section.max_lost_minutes,
    )
    if not training.has_published(model):
        generator = sources.finetuned
        verdicts: list[dict[str, Any]] = []
        if (doubt := sources.doubt) is not None:
            verdicts.append({"kept": False, "reason": f"nothing was learned from this Selector: {doubt}"})
            logger.warning(verdicts[0]["reason"])
        for number in range(1, section.rounds + 1) if doubt is None else ():
            folder = round_folder(training.directory, number)
            if not folder.is_dir():
                _Round(sources, training, control, number, generator).run()
            verdicts.append(disk.read_json(folder / ROUND))
            training.conditions = verdicts[-1].pop(CONDITIONS)
            if not verdicts[-1]["kept"]:
                break
            generator = folder
        kept = sum(verdict["kept"] for verdict in verdicts)
        last = round_folder(training.directory, kept) if kept else None
        told = verdicts[kept - 1 if kept else 0]
        disk.write_json(training.directory / "summary.json", {**told, "kept": kept > 0, "rounds": verdicts})
        publish(model, sources.finetuned, last, training)
    discard_best(training)
    discard_rounds(training.directory)
    shutil.rmtree(training.checkpoints, ignore_errors=True)
    shutil.rmtree(sources.folder, ignore_errors=True)  # candidates are in candidates/


class _Round:
    """One round: candidates, what is learned from them, the training, and what the judge says of it."""

    def __init__(self, sources: Sources, training: TrainingRun, control: Control, number: int, generator: Path) -> None:
        self.sources, self.training, self.control = sources, training, control
        self.number, self.generator = number, generator
        self.config, self.section = sources.config, sources.config.align
        self.first = (number - 1) * self.section.max_train_steps
        self.key = (*training.key, number)

    def run(self) -> None:
        """Leaves the round's folder."""
        self.control.about = {"round": self.number, "rounds": self.section.rounds}
        for step in saved_steps(self.training.checkpoints):
            if step <= self.first:  # of the round before, killed on the way from its folder to here
                discard(path_of(self.training.checkpoints, step))
        sampler, scored, found, units = self._candidates()
        self._keep_candidates(sampler, scored, found, units)
        told: dict[str, Any] = {"round": self.number, "candidates": len(scored.wanted), "units": len(units)}
        told[CONDITIONS] = self.training.conditions
        if not len(units):
            reason = "no two candidates of a prompt differ by more than the scorers disagree on them"
            if self.section.method == "rejection":
                reason = "no candidate passed the Selector"
            end_round(self.training.directory, self.number, {**told, "kept": False, "reason": reason}, None)
            return
        del sampler
        end, judging, real = self._train(scored, units)
        told |= {"real_images": 0 if real is None else len(real), "steps": end - self.first}
        verdict = judging.verdict(end)
        best = best_folder(self.training, verdict["step"]) if verdict["kept"] else None
        self.training.wait()
        told[CONDITIONS] = self.training.conditions
        end_round(self.training.directory, self.number, {**told, **verdict}, best)
        discard_best(self.training)
        shutil.rmtree(self.training.checkpoints, ignore_errors=True)

    def _candidates(self) -> tuple[Sampler, Scored, Rewards, Units]:
        sources, config = self.sources, self.config
        load_system = functools.cache(functools.partial(sources.load_system, self.generator))
        model = sources.fingerprint(self.generator)
        sampler = Sampler(
            *(config, sources.modality, model, load_system, lambda: sources.scorers),
            *(sources.scorers_sha256, sources.cache),
        )
        lot = config.campaign.seed, "candidate", sources.modality, self.number
        scored = sampler.sampled(wanted(sources.prompts(self.number), self.section.candidates, *lot), self.control)
        load_system.cache_clear()
        found = rewards(scored.scores, scored.finite, scored.group, self.section.spread_weight)
        if self.section.method == "dpo":
            units = pairs(found, scored.group)
        elif self.section.method == "rejection":
            units = accepted(found, scored.scores["selector"] >= sources.threshold)
        else:
            units = weighted(found)
        return sampler, scored, found, units

    def _keep_candidates(self, sampler: Sampler, scored: Scored, found: Rewards, units: Units) -> None:
        keep_candidates(self.training.directory, self.number, sampler, scored, found, parts(units, found))

    def _train(self, scored: Scored, units: Units) -> tuple[int, Judging, LatentDataset | None]:
        sources, config, section, control = self.sources, self.config, self.section, self.control
        source, device = config.model_paths.stable_diffusion, sources.device.device
        load_plain = functools.cache(functools.partial(sources.load_system, None))
        weights, chunks = weights_fingerprint(source), config.data.chunks
        real = self._real_images(load_plain)
        captions = [caption_key(one.prompt, weights, chunks) for one in scored.wanted]
        texts = dict(zip(captions, (one.prompt for one in scored.wanted), strict=True))

        def embed(prompt: str) -> dict[str, torch.Tensor]:
            return {"hidden": load_plain().embed(prompt)[0]}

        sources.latents.fill(texts, str, embed, control, "caption")
        load_plain.cache_clear()
        scheduler, dtype = noise_scheduler(config), training_dtype(config.device, device)
        lessons = Lessons(
            key=self.key,
            units=units,
            latents=scored.keys,
            captions=captions,
            cache=sources.cache,
            texts=sources.latents,
            model=f"{sources.fingerprint(self.generator)} {dtype}",
            num_timesteps=scheduler.config.num_train_timesteps,
            latent_shape=tuple(sources.cache.read(scored.keys[0], "latents").shape),
            per_step=section.learned // units.rows.shape[1],
        )
        unet = load_unet(source, device, torch.float32, self.generator)
        unet.register_to_config(_name_or_path=source)  # and not where this campaign is
        lessons.predict(unet, scheduler, dtype, section.max_train_steps, section.train_batch_size, control)
        state = first_state(unet, section.as_finetuning(config.finetune), self.key, dtype)
        state.loss_sum = torch.zeros(len(FIGURES), device=device)
        start = max(self.first, state.resume(self.training))
        judging = self._judging(load_plain)
        this = Round(self.number, self.first, self.key, lessons, real)
        with self.training:
            end = train(config, state, start, scheduler, this, self.training, judging)
        return end, judging, real

    def _real_images(self, load_system: functools._lru_cache_wrapper[SyntheticSystem]) -> LatentDataset | None:
        """The well-rated real images; None where none are asked for, or there are none."""
        sources = self.sources
        if not self.section.real:
            return None
        passed = real_images.accepted(self._asking(load_system), sources.candidates_for_real)
        rows = passed + sources.rated_good
        if not rows:
            logger.warning("no real image of %s is known to be good: none is in the batches", sources.modality)
            return None
        return real_images.prepare(self.config, rows, sources.hashes, load_system, sources.latents, self.control)

    def _asking(self, load_system: Callable[[], SyntheticSystem]) -> real_images.Asking:
        sources = self.sources
        return real_images.Asking(
            *(self.config, sources.hashes, load_system, lambda: sources.scorers, sources.scorers_sha256),
            *(sources.threshold, sources.cache, self.control),
        )

    def _judging(self, load_system: functools._lru_cache_wrapper[SyntheticSystem]) -> Judging:
        sources, section = self.sources, self.section
        seen = {one for number in range(1, self.number + 1) for one in sources.prompts(number)}
        texts = [text for text in sources.judged_texts if text not in seen]
        if len(set(texts)) < FEWEST:  # there are few at all: it has other noise, at least
            texts = sources.judged_texts
        lot = self.config.campaign.seed, "judged", sources.modality
        images = wanted(choose_prompts(texts, section.judge_images, *lot), 1, *lot)

        def embed(those: Sequence[str]) -> np.ndarray:
            return load_system().pool_all(those).float().cpu().numpy()

        examples = {row.file for row in real_images.of_quality(self._asking(load_system), sources.held_out)}
        known = known_to(
            *(
                self.config,
                sources.held_out,
                examples,
                sources.judged,
                sources.group_of,
                sources.modality,
                sources.hashes,
            ),
            *(embed, sources.cache, self.control),
        )
        judge = Judge(known, embed([one.prompt for one in images]), self.config.campaign.seed)
        seat = Seat(
            *(self.config, sources.modality, images, load_system, lambda: sources.scorers, sources.threshold),
            *(judge, self.control),
        )
        return Judging(seat, self.training, self.number, self.first)
