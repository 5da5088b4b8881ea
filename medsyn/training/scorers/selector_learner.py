"""How the Selector learns: from ratings, from comparisons, and from what is good or poor by assumption."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from medsyn.models.selector import Selector
from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey, samples_of_step
from medsyn.training.scorers.exam import Comparison, Exam
from medsyn.training.scorers.learner import Learner, Step, answer_by_fold, on
from medsyn.training.scorers.lessons import RATED, Judged, Lessons
from medsyn.training.scorers.loss import advantage_loss, bradley_terry, cross_entropy
from medsyn.training.scorers.measured import TOGETHER, MeasuredImages, versions_key
from medsyn.training.scorers.remembered import Remembered

COMPARISONS_PER_RATING = 1.0  # in a step, and
PULLS_PER_RATING = 0.5  # of images that are good or poor by assumption
COMPARISON_WEIGHT, PULL_WEIGHT = 1.0, 0.5  # in the loss, relative to the ratings
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, targets and weights
EXAMINED = 512  # comparisons that are looked at after every epoch, at most, of the experts', damaged and sampled ones


class SelectorLearner(Learner):
    """The members of a Selector, and its lessons."""

    def __init__(
        self, selector: Selector, lessons: Lessons, key: RandomKey, remembered: Remembered | None = None
    ) -> None:
        """Learns from `lessons`; for `remembered` see `MeasuredImages`."""
        self.members, self.lessons, self._key = selector.members, lessons, key
        self._device = next(selector.parameters()).device
        encoder = selector.members[0].image
        self._looks = encoder.looks
        images = lessons.pixels, lessons.group, lessons.versions, encoder
        self.images = MeasuredImages(*images, versions_key(key), self._device, remembered)
        self._places, self.exam = _exam(lessons, key)
        self.origin = lessons.origin[self._places]

    def learn_statistics(self) -> None:
        """Learn what standardises the quality metrics: of the rated images that a member is trained on."""
        rated = np.unique(self.lessons.ratings.image)
        for fold, member in enumerate(self.members):
            its = rated[self.lessons.fold[rated] != fold]
            member.image.standardise.fit(self.images.metrics[0, its])

    def teach(self, step: Step) -> Tensor:
        """See `Learner`; `step.rows` are statements of `lessons.ratings`."""
        lessons, size = self.lessons, len(step.rows)
        further = self._drawn("pulls", step.number, round(PULLS_PER_RATING * size), len(lessons.pulls.image))
        pairs = self._drawn("comparisons", step.number, round(COMPARISONS_PER_RATING * size), len(lessons.better))
        images = [
            lessons.ratings.image[step.rows],
            lessons.pulls.image[further],
            lessons.better[pairs],
            lessons.worse[pairs],
        ]
        ends = np.cumsum([len(part) for part in images])
        pixels, metrics = self._shown(np.concatenate(images), step.epoch)
        folds = lessons.fold[np.concatenate(images)]
        losses = []
        for fold, member in enumerate(self.members):
            kept = torch.from_numpy(np.flatnonzero(folds != fold)).to(self._device)
            if not len(kept):
                continue
            logits = torch.zeros(len(folds), device=self._device)
            logits[kept] = member(pixels[kept], metrics[kept])
            rated, pulled, better, worse = torch.tensor_split(logits, ends[:-1].tolist())
            seen = [part != fold for part in np.split(folds, ends[:-1])]
            loss = _judged(rated, lessons.ratings, step.rows, seen[0], advantage_loss)
            loss = loss + PULL_WEIGHT * _judged(pulled, lessons.pulls, further, seen[1], advantage_loss)
            loss = loss + COMPARISON_WEIGHT * self._compared(better, worse, pairs, seen[2] & seen[3])
            loss.backward()
            losses.append(_judged(rated.detach(), lessons.ratings, step.rows, seen[0], cross_entropy))
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self._device)

    @torch.no_grad()
    def answers(self) -> np.ndarray:
        """See `Learner`."""
        return answer_by_fold(
            self.exam.fold,
            TOGETHER,
            lambda member, places: self.members[member](*self.images.seen(self._places[places], look=self._looks)),
        )

    def _drawn(self, what: str, step: int, size: int, count: int) -> np.ndarray:
        """Which of `count` a step sees, each as often as the others: int64 [size], or none if there are none."""
        if not count or not size:
            return np.zeros(0, dtype=np.int64)
        return samples_of_step((*self._key, what), step, size, count)

    def _shown(self, images: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """Pixels and metrics in an epoch; every other one's are mirrored, which makes no picture better or worse."""
        pixels, metrics = self.images.training(images, epoch, self._looks)
        return (pixels.flip(-1) if epoch % 2 else pixels), metrics

    def _compared(self, better: Tensor, worse: Tensor, pairs: np.ndarray, seen: np.ndarray) -> Tensor:
        if not seen.any():
            return better.sum() * 0
        weight, preference = on(
            self._device, self.lessons.pair_weight[pairs[seen]], self.lessons.preference[pairs[seen]]
        )
        places = torch.from_numpy(seen).to(self._device)
        return bradley_terry(better[places], worse[places], preference, weight)


def _judged(logits: Tensor, statements: Judged, places: np.ndarray, seen: np.ndarray, loss: Loss) -> Tensor:
    """A loss over those of the statements at `places` that a member may see."""
    if not seen.any():
        return logits.sum() * 0
    target, weight = on(logits.device, statements.target[places[seen]], statements.weight[places[seen]])
    return loss(logits[torch.from_numpy(seen).to(logits.device)], target, weight)


def _exam(lessons: Lessons, key: RandomKey) -> tuple[np.ndarray, Exam]:
    """The images that are asked about, int64 [M], and the exam: the rated ones, and those of some comparisons."""
    count = len(lessons.group)
    weight = np.bincount(lessons.ratings.image, lessons.ratings.weight, minlength=count)
    target = np.bincount(lessons.ratings.image, lessons.ratings.weight * lessons.ratings.target, minlength=count)
    answerable = (lessons.fold[lessons.better] == lessons.fold[lessons.worse]) & (lessons.fold[lessons.better] >= 0)
    damaged = (lessons.kind != RATED) & ~lessons.sampled
    sources = [lessons.kind == RATED, damaged, lessons.sampled]
    pairs = np.concatenate([_some(np.flatnonzero(answerable & source), key) for source in sources])
    asked = np.flatnonzero((weight > 0) & (lessons.fold >= 0))
    further = np.setdiff1d(np.concatenate([lessons.better[pairs], lessons.worse[pairs]]), asked)
    asked = np.concatenate([asked, further])
    place = np.full(count, -1)
    place[asked] = np.arange(len(asked))
    compared = Comparison(
        place[lessons.better[pairs]],
        place[lessons.worse[pairs]],
        lessons.preference[pairs],
        lessons.pair_weight[pairs],
        np.where(lessons.sampled[pairs], np.char.add("sampled ", lessons.kind[pairs]), lessons.kind[pairs])
        if len(pairs)
        else lessons.kind[pairs],
    )
    known = np.maximum(weight[asked], 1e-12)
    of_image = lessons.fold[asked], lessons.group[asked], lessons.modality[asked]
    return asked, Exam(target[asked] / known, weight[asked], *of_image, compared)


def _some(places: np.ndarray, key: RandomKey) -> np.ndarray:
    """At most EXAMINED of the places, by lot."""
    rng = np.random.default_rng(seed(*key, "exam"))
    return np.sort(rng.permutation(places)[:EXAMINED])
