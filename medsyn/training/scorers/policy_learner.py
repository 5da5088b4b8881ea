"""How the Policy learns: every rated image under its own prompt, and the good ones under wrong prompts too.

Everything random is a function of (key, epoch, line of the ratings table), so a resumed run sees what an uninterrupted
one would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsyn.models.policy import Policy
from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey, samples_of_step
from medsyn.training.scorers.exam import Comparison, Exam
from medsyn.training.scorers.folds import Folds
from medsyn.training.scorers.learner import Learner, Step, answer_by_fold, on
from medsyn.training.scorers.loss import advantage_loss, bradley_terry, cross_entropy
from medsyn.training.scorers.measured import TOGETHER, VERSIONS, MeasuredImages
from medsyn.training.scorers.rated import RatedPairs, RatedSet

SAME_MODALITY_ODDS = 0.5  # how often a wrong prompt is of the image's own modality: the hard case
HELD_OUT_DRAWS = 4  # wrong prompts per held-out image, for steadier figures; the same in every epoch and stage
COMPARISONS_PER_RATING = 0.5  # in a step, where experts have compared images


@dataclass(frozen=True)
class Asked:
    """M images under prompts, and what an expert would say of them."""

    rows: np.ndarray  # int64 [M], the rated rows they are about
    prompts: np.ndarray  # int64 [M]
    matched: np.ndarray  # bool [M]: it is the row's own prompt
    reward: np.ndarray  # float64 [M], 0..1
    weight: np.ndarray  # float64 [M]


def wrong_prompt(rated: RatedSet, key: RandomKey, epoch: int, row: int) -> int:
    """A prompt other than the row's own, as an index into `rated.pooled`; a function of (key, epoch, the row's line).

    Half of the time it is of the image's own modality, if there is another such prompt. It is wrong by assumption: a
    ratings table does not say which other prompts would fit the image. There must be at least two prompts.
    """
    rng = np.random.default_rng(seed(*key, "wrong prompt", epoch, int(rated.line[row])))
    other = np.arange(len(rated.pooled)) != rated.prompt[row]
    same = rated.prompt_modality == rated.modality[row]
    pool = np.flatnonzero(other & (same if rng.random() < SAME_MODALITY_ODDS else ~same))
    return int(rng.choice(pool if len(pool) else np.flatnonzero(other)))


class PolicyLearner(Learner):
    """The members of a Policy, and the ratings that they learn from."""

    def __init__(
        self,
        policy: Policy,
        rated: RatedSet,
        pairs: RatedPairs,
        folds: Folds,
        taught: np.ndarray,
        key: RandomKey,
        mismatch: bool,
        measured: MeasuredImages | None = None,
    ) -> None:
        """Of ratings, of which only the rows `taught` (bool [N]) are learned from.

        `measured` are images that begin with the rated ones, as this Policy sees them, if they are known already.
        `mismatch` also shows the Policy every good image under a wrong prompt, with reward 0. A ratings table has one
        prompt per image; without such pairs a Policy that ignores the prompt does just as well.
        """
        self.members, self.rated, self.pairs, self._key = policy.members, rated, pairs, key
        self.mismatch = mismatch and len(rated.pooled) > 1
        self._device = next(policy.parameters()).device
        self.pooled = rated.pooled.to(self._device)
        self._image_fold = folds.of(rated.image_group.tolist())
        self._taught = taught
        encoder, versions = policy.members[0].image, np.full(len(rated.pixels), VERSIONS)
        self.images = measured or MeasuredImages(rated.pixels, rated.image_group, versions, encoder, key, self._device)
        self.asked = self._ask(np.arange(len(rated.line)), ("held out",), HELD_OUT_DRAWS)
        self.exam = self._exam()

    def learn_statistics(self) -> None:
        """Learn what standardises metrics and text features: of the rows that a member is trained on."""
        for fold, member in enumerate(self.members):
            its = self._image_fold[self.rated.image] != fold
            member.image.standardise.fit(self.images.metrics[0, np.unique(self.rated.image[its])])
            member.standardise_text.fit(self.pooled[np.unique(self.rated.prompt[its])])

    def teach(self, step: Step) -> Tensor:
        """See `Learner`; `step.rows` are rated rows."""
        rated = self.rated
        asked = self._ask(step.rows[self._taught[step.rows]], (*self._key,), 1, step.epoch)
        pairs = self._drawn_pairs(step)
        images = np.concatenate([rated.image[asked.rows], self.pairs.a[pairs], self.pairs.b[pairs]])
        prompts = np.concatenate([asked.prompts, self.pairs.prompt[pairs], self.pairs.prompt[pairs]])
        looked_at, place = np.unique(images, return_inverse=True)  # once per image, however many prompts it is under
        if not len(looked_at):
            return torch.zeros((), device=self._device)
        pixels, metrics = self.images.training(looked_at, step.epoch)
        folds = self._image_fold[looked_at]
        losses = []
        for fold, member in enumerate(self.members):
            kept = torch.from_numpy(np.flatnonzero(folds != fold)).to(self._device)
            if not len(kept):
                continue
            vectors = torch.zeros(len(folds), member.image.width, device=self._device)
            vectors[kept] = member.image(pixels[kept], metrics[kept])
            seen = folds[place] != fold
            logits = torch.zeros(len(place), device=self._device)
            logits[seen] = member.align(vectors[place[seen]], self.pooled[prompts[seen]])
            judged, better, worse = torch.tensor_split(logits, [len(asked.rows), len(asked.rows) + len(pairs)])
            its = seen[: len(asked.rows)]
            reward, weight = on(self._device, asked.reward[its], asked.weight[its])
            loss = advantage_loss(judged[its], reward, weight) if its.any() else logits.sum() * 0
            both = seen[len(asked.rows) :].reshape(2, -1).all(axis=0)
            if both.any():
                preference, pair_weight = on(self._device, self.pairs.preference[pairs][both], np.ones(int(both.sum())))
                loss = loss + bradley_terry(better[both], worse[both], preference, pair_weight)
            loss.backward()
            if its.any():
                losses.append(cross_entropy(judged[its].detach(), reward, weight))
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self._device)

    @torch.no_grad()
    def answers(self) -> np.ndarray:
        """See `Learner`."""
        images, prompts = self._places()

        def answer(fold: int, places: np.ndarray) -> Tensor:
            looked_at, place = np.unique(images[places], return_inverse=True)
            member = self.members[fold]
            vectors = member.image(*self.images.seen(looked_at))
            logits: Tensor = member.align(vectors[place], self.pooled[prompts[places]])
            return logits

        return answer_by_fold(self.exam.fold, TOGETHER, answer)

    def _ask(self, rows: np.ndarray, key: RandomKey, draws: int, first: int = 0) -> Asked:
        """The rows under their own prompts, and the good ones under `draws` wrong prompts, which count as one."""
        rated = self.rated
        again = rows[rated.good[rows]] if self.mismatch else rows[:0]
        wrong = [wrong_prompt(rated, key, first + draw, row) for draw in range(draws) for row in again]
        places = np.concatenate([rows, np.tile(again, draws)])
        weight = rated.weight[places].astype(np.float64)
        weight[len(rows) :] /= draws
        return Asked(
            places,
            np.concatenate([rated.prompt[rows], wrong]).astype(np.int64),
            np.arange(len(places)) < len(rows),
            np.concatenate([rated.reward[rows], np.zeros(len(wrong))]).astype(np.float64),
            weight,
        )

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """The image and the prompt of every question of the exam, int64 [M]."""
        pairs, asked = self._answerable(), self.asked
        images = np.concatenate([self.rated.image[asked.rows], self.pairs.a[pairs], self.pairs.b[pairs]])
        return images, np.concatenate([asked.prompts, self.pairs.prompt[pairs], self.pairs.prompt[pairs]])

    def _answerable(self) -> np.ndarray:
        """Those of the experts' comparisons whose images one member has not seen."""
        pairs = np.flatnonzero(~self.pairs.neither)
        folds = self._image_fold[self.pairs.a[pairs]], self._image_fold[self.pairs.b[pairs]]
        return pairs[(folds[0] == folds[1]) & (folds[0] >= 0)]

    def _exam(self) -> Exam:
        images, _ = self._places()
        pairs, own = self._answerable(), len(self.asked.rows)
        nothing = np.zeros(len(images) - own)
        first = own + np.arange(len(pairs))
        kind = np.full(len(pairs), "rated")
        compared = Comparison(first, first + len(pairs), self.pairs.preference[pairs], np.ones(len(pairs)), kind)
        return Exam(
            np.concatenate([self.asked.reward, nothing]),
            np.concatenate([self.asked.weight, nothing]),
            self._image_fold[images],
            self.rated.image_group[images],
            self.rated.image_modality[images],
            compared,
        )

    def _drawn_pairs(self, step: Step) -> np.ndarray:
        decided = np.flatnonzero(~self.pairs.neither)
        size = round(COMPARISONS_PER_RATING * len(step.rows))
        if not len(decided) or not size:
            return decided[:0]
        return decided[samples_of_step((*self._key, "comparisons"), step.number, size, len(decided))]
