"""Pairs that the generator makes itself: the same prompt sampled well, as the campaign does, and badly on purpose.

Everything is sampled in batches of the campaign's size, and each batch is kept in a cache under a hash of all that it
depends on, so that a killed task goes on where it was and ends with the same bits (on a CPU).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medsyn import disk
from medsyn.config import Config
from medsyn.data.degradations.graded import amount
from medsyn.data.images.latent_cache import TensorCache
from medsyn.data.prompts.attributes import at_best_quality
from medsyn.models.sampler import build_scheduler
from medsyn.schedulers import SOLVERS
from medsyn.seeds import seed
from medsyn.stage import Control
from medsyn.training.own_samples import Asked, choose_prompts, paint, sample
from medsyn.training.scorers.comparisons import Comparisons
from medsyn.training.scorers.ways import WAYS, Resampled, Spoilt, Stopped, Wish

if TYPE_CHECKING:
    from medsyn.models.stable_diffusion import SyntheticSystem

VERSION = 1  # raise it when the same settings give other images
# 1 - SSIM to the good image below which a bad one is no pair: some models hardly need their guidance or their steps.
# Two steps of the embedded model differ from fifteen by .06 for X-rays, which are as good, and by .47 for OCT.
LEAST_CHANGE = 0.1


@dataclass(frozen=True)
class Subject:
    """What one good image and its bad ones show."""

    prompt: str
    replicate: int  # of the prompt, where there are fewer prompts than images
    image: int  # its seed: of the noise, and of how far it is spoilt


def choose_subjects(texts: Sequence[str], count: int, campaign_seed: int, modality: str) -> list[Subject]:
    """`count` prompts of `texts` by lot, each as often as any other; a function of the set of texts and the seed."""
    times, subjects = Counter[str](), []
    for prompt in choose_prompts(texts, count, campaign_seed, "sampled prompt", modality):
        its = prompt, times[prompt]
        subjects.append(Subject(*its, seed(campaign_seed, "sampled", modality, *its)))
        times[prompt] += 1
    return subjects


def sampled_comparisons(
    config: Config,
    modality: str,
    texts: Sequence[str],
    count: int,
    weights: str,
    load_system: Callable[[], SyntheticSystem],
    cache: TensorCache,
    control: Control,
    ways: Sequence[str] = tuple(WAYS),
) -> Comparisons:
    """Sample what the cache lacks, and say of each pair which image is the better one.

    Args:
        config: the campaign's; good images are sampled by its settings.
        modality: whose generator it is.
        texts: what prompts are chosen from, by lot, asking for the best quality that any of them names: what is asked
            to be poor is not good for being well sampled.
        count: of good images; 0 for none.
        weights: fingerprint of the generator's weights (`medsyn.models.weights.model_fingerprint`).
        load_system: gives the generator; called only if something must be sampled.
        cache: where batches are kept.
        control: receives progress; a stop is obeyed between batches.
        ways: names in `WAYS`.

    Returns:
        A pair for every bad image, with the good one of the same prompt and the same noise. Images that are not
        finite, and bad ones that differ by less than `LEAST_CHANGE`, are left out.

    Raises:
        Saved: a stop was requested; what has been sampled is in the cache.
    """
    subjects = choose_subjects(at_best_quality(texts), count, config.campaign.seed, modality)
    batches = _Plan(config, modality, weights, functools.cache(load_system), cache).batches(subjects, ways)
    for number, batch in enumerate(batches, 1):
        if batch.key not in cache:
            cache.add({batch.key: batch.make()})
            control.leave_if_asked()
        control.heartbeat(number, len(batches), "batch")
    return _compare(modality, config.data.resolution, subjects, batches, cache)


def _compare(
    modality: str, side: int, subjects: Sequence[Subject], batches: Sequence[_Batch], cache: TensorCache
) -> Comparisons:
    """Pairs out of the batches' pictures."""
    pictures: list[Tensor] = []
    subject, kind = [], []
    good_of: dict[int, int] = {}  # where the good image of each subject is; good batches come first
    for batch in batches:
        finite, made = cache.read(batch.key, "finite").tolist(), cache.read(batch.key, "pixels")
        for row, (which, how) in enumerate(zip(batch.rows, batch.kinds, strict=True)):
            picture = made[row].to(torch.uint8).expand(3, -1, -1)
            if not finite[row] or (how != _GOOD and not _is_worse(pictures, good_of.get(which), picture)):
                continue
            if how == _GOOD:
                good_of[which] = len(pictures)
            pictures.append(picture)
            subject.append(which)
            kind.append(how)
    worse = [place for place, how in enumerate(kind) if how != _GOOD]
    return Comparisons(
        pixels=torch.stack(pictures) if pictures else torch.empty(0, 3, side, side, dtype=torch.uint8),
        modality=np.full(len(pictures), modality),
        group=np.array([f"sampled {modality}: {subjects[which].prompt}" for which in subject], dtype=str),
        better=np.array([good_of[subject[place]] for place in worse], dtype=np.int64),
        worse=np.array(worse, dtype=np.int64),
        kind=np.array([kind[place] for place in worse], dtype=str),
        severe=np.array([WAYS[kind[place]].severe for place in worse], dtype=bool),
        weight=np.ones(len(worse), dtype=np.float32),
    )


def _is_worse(pictures: Sequence[Tensor], good: int | None, picture: Tensor) -> bool:
    """Whether a bad picture is another than the good one, which is at place `good`, if it is anywhere."""
    return good is not None and amount(pictures[good] / 255, picture / 255) >= LEAST_CHANGE


_GOOD = ""  # the kind of an image that nothing is wrong with


@dataclass(frozen=True)
class _Batch:
    """Images that are made together."""

    key: str
    rows: list[int]  # the subject of each
    kinds: list[str]  # in which way each is bad
    make: Callable[[], dict[str, Tensor]]  # pixels [N, 1 or 3, R, R] in 0..255, finite [N]


@dataclass(frozen=True)
class _Row:
    """One image that is sampled: which subject's, and what for."""

    place: int
    subject: Subject
    kind: str
    wish: Wish


@dataclass(frozen=True)
class _Plan:
    """Which batches there are, and how each is made; nothing is sampled before it is asked for."""

    config: Config
    modality: str
    weights: str
    load_system: Callable[[], SyntheticSystem]
    cache: TensorCache

    def batches(self, subjects: Sequence[Subject], ways: Sequence[str]) -> list[_Batch]:
        """Good images first: what is spoilt is made of them."""
        goods = [self._good(rows) for rows in self._parts(self._rows(subjects, _GOOD))]
        changed = [name for name in ways if isinstance(WAYS[name], (Spoilt, Stopped))]
        if len(subjects) < 2:
            changed = [name for name in changed if not getattr(WAYS[name], "needs_other", False)]
        spoilt = [self._spoilt(subjects, name, goods, number) for name in changed for number in range(len(goods))]
        return [*goods, *spoilt, *self._resampled(subjects, ways)]

    def _good(self, rows: Sequence[_Row]) -> _Batch:
        """Sampled as the campaign does; a state that each went through is kept, too."""
        stops = [WAYS[_STOPPED].strength(_random(row.subject, _STOPPED)) for row in rows]
        steps = self.config.generation.num_inference_steps

        def make() -> dict[str, Tensor]:
            states: list[Tensor] = []
            latents, finite = self._sample(rows, steps, states=states)
            last = len(states) - 1
            seen = [states[max(0, round((1 - stop) * len(states)) - 1)] for stop in stops] if last else states
            state = torch.stack([its[place] for place, its in enumerate(seen)])
            return {**self._pictures(latents, finite), "latents": latents, "state": state}

        return self._batch(["good", stops], rows, make)

    def _spoilt(self, subjects: Sequence[Subject], name: str, goods: Sequence[_Batch], number: int) -> _Batch:
        """Good images with other latents, or the states that they went through."""
        way, good, cache = WAYS[name], goods[number], self.cache

        def make() -> dict[str, Tensor]:
            if isinstance(way, Stopped):
                return self._pictures(cache.read(good.key, "state").float(), [True] * len(good.rows))
            assert isinstance(way, Spoilt)
            latents = torch.cat([cache.read(each.key, "latents") for each in goods]).float()
            changed = []
            for place in good.rows:
                random, other = _random(subjects[place], name), latents[(place + 1) % len(latents)]
                changed.append(way.change(latents[place], other, way.strength(random), random))
            return self._pictures(torch.stack(changed), [True] * len(changed))

        key = self._key(name, way.weakest, way.strongest, good.key, [each.key for each in goods])
        return _Batch(key, good.rows, [name] * len(good.rows), make)

    def _resampled(self, subjects: Sequence[Subject], ways: Sequence[str]) -> Iterator[_Batch]:
        """Rows of several ways share a batch where only what each row asks for differs."""
        groups: dict[tuple[int, bool, str], list[_Row]] = {}
        for name in ways:
            if isinstance(way := WAYS[name], Resampled):
                steps = self._steps(way)
                alike = [
                    key for key, other in WAYS.items() if isinstance(other, Resampled) and other.every == way.every
                ]
                for row in self._rows(subjects, name):
                    wish = way.ask(row.wish, way.strength(_random(row.subject, name)))
                    is_bad = wish != row.wish or way.spoil is not None or (way.steps >= 1 and steps < self._steps(None))
                    if is_bad and (row.place + alike.index(name)) % way.every == 0:
                        kind = (steps, wish.guidance == 1, name if way.spoil else "")
                        groups.setdefault(kind, []).append(replace(row, wish=wish))
        for (steps, _, spoilt), members in groups.items():
            for rows in self._parts(members):
                yield self._again(rows, steps, spoilt)

    def _again(self, rows: Sequence[_Row], steps: int, spoilt: str) -> _Batch:
        """Sampled again; `spoilt` names the way in which the UNet itself is spoilt, if it is."""
        way, random = WAYS.get(spoilt), _random(rows[0].subject, spoilt)
        strength, drawn = way.strength(random) if way else 0.0, int(random.integers(2**31))

        def spoil(unet: Any) -> AbstractContextManager[None]:
            return way.spoil(unet, strength, drawn) if isinstance(way, Resampled) and way.spoil else nullcontext()

        def make() -> dict[str, Tensor]:
            return self._pictures(*self._sample(rows, steps, spoil))

        return self._batch(["again", steps, spoilt, strength, drawn], rows, make)

    def _rows(self, subjects: Sequence[Subject], kind: str) -> list[_Row]:
        section = self.config.generation
        return [
            _Row(place, subject, kind, Wish(subject.prompt, section.negative_prompt, section.guidance_scale))
            for place, subject in enumerate(subjects)
        ]

    def _parts(self, rows: Sequence[_Row]) -> list[Sequence[_Row]]:
        size = self.config.generation.images_per_batch
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _steps(self, way: Resampled | None) -> int:
        """How many steps a way makes; None for the campaign."""
        section = self.config.generation
        whole = section.num_inference_steps
        wanted = whole if way is None else way.steps if way.steps >= 1 else round(way.steps * whole)
        return max(SOLVERS[section.scheduler].fewest_steps, int(wanted))

    def _batch(self, what: Sequence[Any], rows: Sequence[_Row], make: Callable[[], dict[str, Tensor]]) -> _Batch:
        key = self._key(*what, [[vars(row.subject), vars(row.wish)] for row in rows])
        return _Batch(key, [row.place for row in rows], [row.kind for row in rows], make)

    def _key(self, *what: Any) -> str:
        section, config = self.config.generation, self.config
        settings = [section.scheduler, section.num_inference_steps, vars(section.shortcuts), section.images_per_batch]
        shape = [config.data.resolution, config.data.chunks, config.device.precision, self.modality]
        return disk.fingerprint(["sampled", VERSION, self.weights, settings, shape, *what])

    def _sample(
        self,
        rows: Sequence[_Row],
        steps: int,
        spoil: Callable[[Any], AbstractContextManager[None]] = nullcontext,
        states: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[bool]]:
        """Latents [N, c, h, w], and which are finite; `states` receives the latents after every step."""
        system, section = self.load_system(), self.config.generation
        asked = [
            Asked(row.subject.image, row.wish.prompt, row.wish.negative, row.wish.guidance, row.wish.noise)
            for row in rows
        ]

        def scheduler() -> Any:
            fresh = build_scheduler(section.scheduler, system.scheduler_config, steps)
            return fresh if states is None else _watched(fresh, states)

        with spoil(system.unet):
            return sample(system, section, self.config.data.resolution, asked, scheduler)

    def _pictures(self, latents: Tensor, finite: Sequence[bool]) -> dict[str, Tensor]:
        """What a batch of latents is decoded to, as it would be written, and which are finite."""
        system = self.load_system()
        stored = latents.to(system.device, torch.float16).float()  # as the cache keeps them: what is spoilt is of those
        size = self.config.generation.images_per_batch
        pictures, finite = paint(system, size, stored, finite, self.modality)
        return {"pixels": pictures.permute(0, 3, 1, 2), "finite": torch.tensor(finite)}


_STOPPED = next(name for name, way in WAYS.items() if isinstance(way, Stopped))


def _random(subject: Subject, name: str) -> np.random.Generator:
    """What is drawn for one way of spoiling an image."""
    return np.random.default_rng(seed(subject.image, name))


def _watched(scheduler: Any, states: list[Tensor]) -> Any:
    """The same scheduler; the latents after every step, in the scale of the UNet's input, go to `states`."""
    states.clear()
    step = scheduler.step
    later = dict(zip(scheduler.timesteps.tolist(), scheduler.timesteps[1:], strict=False))

    @functools.wraps(step)
    def watched(prediction: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        made = step(prediction, timestep, sample, **options)
        following = later.get(timestep.item())
        latents = made.prev_sample
        states.append(latents if following is None else scheduler.scale_model_input(latents, following))
        return made

    scheduler.step = watched
    return scheduler
