"""How the Policy learns: images under texts that are true of them, and under texts that are not."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medsyn.models.policy import Policy, PolicyMember
from medsyn.training.schedule import RandomKey, samples_of_step
from medsyn.training.scorers.captions import ELSEWHERE, NEAR, Captioned, Texts
from medsyn.training.scorers.exam import Comparison, Exam
from medsyn.training.scorers.folds import Folds
from medsyn.training.scorers.learner import Learner, Step, answer_by_fold, on
from medsyn.training.scorers.loss import advantage_loss, bradley_terry, cross_entropy
from medsyn.training.scorers.measured import TOGETHER, VERSIONS, VERSIONS_COMPARED, MeasuredImages, versions_key
from medsyn.training.scorers.questions import Questions
from medsyn.training.scorers.rated import RatedPairs, RatedSet
from medsyn.training.scorers.remembered import Remembered

HELD_OUT_DRAWS = 2  # of false texts per held-out image, for steadier figures; the same in every epoch and stage
FALSE_PER_IMAGE = HELD_OUT_DRAWS * (NEAR + ELSEWHERE)  # of a good one, in the exam, where there are enough
COMPARISONS_PER_RATING = 0.5  # in a step, where experts have compared images


class PolicyLearner(Learner):
    """The members of a Policy, and what they learn from."""

    def __init__(
        self,
        policy: Policy,
        rated: RatedSet,
        pairs: RatedPairs,
        captioned: Captioned,
        texts: Texts,
        folds: Folds,
        taught: np.ndarray,
        key: RandomKey,
        mismatch: bool,
        measured: MeasuredImages | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        """Of ratings, of which only the rows `taught` (bool [N]) are learned from, and captioned images.

        `texts` begin with the prompts of the rated set. `measured` are images that begin with the rated ones, as this
        Policy sees them, if they are known already. For `mismatch` see `Questions`, for `remembered` `MeasuredImages`.
        """
        self.members, self.rated, self.pairs, self.texts, self._key = policy.members, rated, pairs, texts, key
        self._device = next(policy.parameters()).device
        self.pooled = texts.pooled.to(self._device)
        self._taught, self._captioned = taught, len(captioned.text)
        how = policy.members[0].image, versions_key(key), self._device, remembered
        versions = np.full(len(rated.pixels), VERSIONS)
        self.images = measured or MeasuredImages(rated.pixels, rated.image_group, versions, *how)
        versions = np.full(self._captioned, VERSIONS_COMPARED)
        self._more = MeasuredImages(captioned.pixels, captioned.group, versions, *how)
        self._fold = folds.of([*rated.image_group.tolist(), *captioned.group.tolist()])
        self.questions = Questions(rated, captioned, texts, key, mismatch)
        self.asked = self.questions.exam(np.arange(len(rated.line)), HELD_OUT_DRAWS)
        self.exam = self._exam()

    def learn_statistics(self) -> None:
        """Learn what standardises metrics, of the rated images that a member is trained on, and text features."""
        for fold, member in enumerate(self.members):
            its = self._fold[self.rated.image] != fold
            member.image.standardise.fit(self.images.metrics[0, np.unique(self.rated.image[its])])
            member.standardise_text.fit(self.pooled)

    def teach(self, step: Step) -> Tensor:
        """See `Learner`; `step.rows` are rated rows."""
        facts = np.concatenate([step.rows[self._taught[step.rows]], len(self.rated.line) + self._drawn_captioned(step)])
        asked = self.questions.lesson(facts, step.epoch)
        pairs = self._drawn_pairs(step)
        images = np.concatenate([asked.images, self.pairs.a[pairs], self.pairs.b[pairs]])
        prompts = np.concatenate([asked.prompts, self.pairs.prompt[pairs], self.pairs.prompt[pairs]])
        mirrored = np.concatenate([asked.mirrored, np.zeros(2 * len(pairs), dtype=bool)])
        if not len(images):
            return torch.zeros((), device=self._device)
        # once per image, however many texts it is under
        looked_at, place = np.unique(2 * images + mirrored, return_inverse=True)
        pixels, metrics = self._look(looked_at // 2, looked_at % 2 > 0, step.epoch)
        folds, losses = self._fold[looked_at // 2], []
        for fold, member in enumerate(self.members):
            seen = folds[place] != fold
            if not seen.any():
                continue
            logits = self._align(member, pixels, metrics, folds != fold, place, prompts, seen)
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

    def _align(
        self,
        member: PolicyMember,
        pixels: Tensor,
        metrics: Tensor,
        kept: np.ndarray,
        place: np.ndarray,
        prompts: np.ndarray,
        seen: np.ndarray,
    ) -> Tensor:
        """A member's logits [M] of images under texts; zero where it may not look.

        Args:
            member: one of the Policy's.
            pixels: of images [K].
            metrics: of the same.
            kept: bool [K], the images that it may see.
            place: int64 [M], the image of each question.
            prompts: int64 [M].
            seen: bool [M], the questions about images that it may see.
        """
        where = torch.from_numpy(np.flatnonzero(kept)).to(self._device)
        vectors = torch.zeros(len(kept), member.image.width, device=self._device)
        vectors[where] = member.image(pixels[where], metrics[where])
        logits = torch.zeros(len(place), device=self._device)
        asked = torch.from_numpy(np.flatnonzero(seen)).to(self._device)
        logits[asked] = member.align(vectors[place[seen]], self.pooled[prompts[seen]])
        return logits

    def _look(self, images: np.ndarray, mirrored: np.ndarray, epoch: int | None) -> tuple[Tensor, Tensor]:
        """Pixels and metrics of images [K], in the version of an epoch, or as they are; some are mirrored."""
        rated = images < len(self.rated.pixels)
        parts = []
        for source, its in ((self.images, images[rated]), (self._more, images[~rated] - len(self.rated.pixels))):
            if len(its):
                parts.append(source.seen(its) if epoch is None else source.training(its, epoch))
        pixels, metrics = (torch.cat(part) for part in zip(*parts, strict=True))  # the rated ones have lower numbers
        turned = torch.from_numpy(mirrored).to(self._device)
        return torch.where(turned[:, None, None, None], pixels.flip(-1), pixels), metrics

    @torch.no_grad()
    def answers(self) -> np.ndarray:
        """See `Learner`."""
        images, prompts = self._places()

        def answer(fold: int, places: np.ndarray) -> Tensor:
            looked_at, place = np.unique(images[places], return_inverse=True)
            member = self.members[fold]
            vectors = member.image(*self._look(looked_at, np.zeros(len(looked_at), dtype=bool), None))
            logits: Tensor = member.align(vectors[place], self.pooled[prompts[places]])
            return logits

        return answer_by_fold(self.exam.fold, TOGETHER, answer)

    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        """The image and the text of every question of the exam, int64 [M]."""
        pairs, asked = self._answerable(), self.asked
        images = np.concatenate([asked.images, self.pairs.a[pairs], self.pairs.b[pairs]])
        return images, np.concatenate([asked.prompts, self.pairs.prompt[pairs], self.pairs.prompt[pairs]])

    def _answerable(self) -> np.ndarray:
        """Those of the experts' comparisons whose images one member has not seen."""
        pairs = np.flatnonzero(~self.pairs.neither)
        folds = self._fold[self.pairs.a[pairs]], self._fold[self.pairs.b[pairs]]
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
            self._fold[images],
            self.rated.image_group[images],
            self.rated.image_modality[images],
            compared,
        )

    def _drawn_captioned(self, step: Step) -> np.ndarray:
        """Captioned images of a step: in an epoch of the ratings about all of them, each as often as the others."""
        size = round(self._captioned * len(step.rows) / len(self.rated.line))
        if not size:
            return np.zeros(0, dtype=np.int64)
        return samples_of_step((*self._key, "captioned"), step.number, size, self._captioned)

    def _drawn_pairs(self, step: Step) -> np.ndarray:
        decided = np.flatnonzero(~self.pairs.neither)
        size = round(COMPARISONS_PER_RATING * len(step.rows))
        if not len(decided) or not size:
            return decided[:0]
        return decided[samples_of_step((*self._key, "comparisons"), step.number, size, len(decided))]
