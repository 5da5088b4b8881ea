"""What a scorer learns from rated rows: pairs of a prediction and a reward, and the loss between them.

Everything random is a function of (key, epoch, line of the ratings table), so a resumed run sees what an uninterrupted
one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medsyn.models.policy import Policy
from medsyn.models.selector import Selector
from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey
from medsyn.training.scorers.rated import RatedSet

SAME_MODALITY_ODDS = 0.5  # how often a wrong prompt is of the image's own modality: the hard case
GAIN, OFFSET = 0.05, 0.03  # how far augmentation changes contrast and brightness: less than a rater would notice
SHIFT = 1 / 16  # of the picture's side
TOGETHER = 64  # images scored or measured at once
HELD_OUT_DRAWS = 4  # wrong prompts per held-out image, for steadier figures; the same in every epoch and stage


@dataclass(frozen=True)
class Judgements:
    """M predictions of a scorer and what they should have been."""

    logits: Tensor  # [M]
    reward: Tensor  # [M], 0..1
    weight: Tensor  # [M]
    rows: np.ndarray  # int64 [M], the rated rows they are about
    prompts: np.ndarray  # int64 [M], the prompts they were made under
    matched: np.ndarray  # bool [M]: it is the row's own prompt

    @property
    def scores(self) -> np.ndarray:
        """float64 [M], 0..1."""
        return self.logits.detach().double().sigmoid().cpu().numpy()

    @property
    def good(self) -> np.ndarray:
        """bool [M]: a good image, and under its own prompt."""
        return self.reward.cpu().numpy() > 0


def advantage_loss(judgements: Judgements) -> Tensor:
    """Advantage-weighted log-odds, -(R - s) log(s / (1 - s)), with the scorer's own score s as the baseline.

    The log-odds of s are its logit. As s is held constant in the advantage, the gradient is (s - R): that of
    cross-entropy with the soft label R, calibrated, and zero when s is R. With |R - s| as the advantage and log s
    instead of the log-odds, as the method was first described, the scores of poor images would rise fastest. The weight
    (expert level) scales the loss, never the reward.
    """
    advantage = judgements.reward - judgements.logits.detach().sigmoid()
    return -(judgements.weight * advantage * judgements.logits).mean()


def cross_entropy(judgements: Judgements) -> Tensor:
    """The loss with the same gradient as `advantage_loss`. It falls as scores improve, so it is the one reported."""
    return functional.binary_cross_entropy_with_logits(judgements.logits, judgements.reward, judgements.weight)


def augment(pixels: Tensor, key: RandomKey, epoch: int, lines: np.ndarray, mirror: bool) -> Tensor:
    """Slightly changed copies of pixels [N, 3, R, R] in 0..1, each a function of (key, epoch, its line of the table).

    Brightness, contrast and position change a little; uncovered borders repeat the edge. `mirror` allows left-right
    flips, for a scorer that reads no prompts: prompts say left and right.
    """
    side = pixels.shape[-1]
    reach, along = round(SHIFT * side), torch.arange(side, device=pixels.device)
    copies = []
    for picture, line in zip(pixels, lines, strict=True):
        rng = np.random.default_rng(seed(*key, "augment", epoch, int(line)))
        gain, offset = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-OFFSET, OFFSET)
        down, right = rng.integers(-reach, reach + 1, 2).tolist()
        copy = picture[:, (along + down).clamp(0, side - 1)][:, :, (along + right).clamp(0, side - 1)]
        copies.append(copy.flip(-1) if mirror and rng.random() < 0.5 else copy)
        copies[-1] = (copies[-1] * gain + offset).clamp(0, 1)
    return torch.stack(copies)


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


class Learner:
    """A scorer and the ratings that it learns from."""

    def __init__(self, scorer: Selector | Policy, rated: RatedSet, key: RandomKey, mismatch: bool) -> None:
        """`mismatch` also shows the Policy every good image under a wrong prompt, with reward 0.

        A ratings table has one prompt per image; without such pairs a Policy that ignores the prompt does just as well.
        """
        self.scorer, self.rated, self.key = scorer, rated, key
        self.mismatch = mismatch and len(rated.pooled) > 1
        self.device = next(scorer.parameters()).device
        self.pooled = rated.pooled.to(self.device)
        batches = rated.pixels.split(TOGETHER)
        self.metrics = torch.cat([scorer.image.measure(self._to_float(batch)) for batch in batches])

    def learn_statistics(self, rows: np.ndarray) -> None:
        """Learn the statistics that standardise quality metrics and text features from the training `rows`."""
        self.scorer.image.standardise.fit(self.metrics[np.unique(self.rated.image[rows])])
        if isinstance(self.scorer, Policy):
            self.scorer.standardise_text.fit(self.pooled[np.unique(self.rated.prompt[rows])])

    def judge(self, rows: np.ndarray, epoch: int) -> Judgements:
        """Predictions for training: of `rows`, augmented; for a Policy also of the good ones under wrong prompts."""
        mirror = isinstance(self.scorer, Selector)
        pixels = augment(self._pixels(rows), self.key, epoch, self.rated.line[rows], mirror)
        return self._judge(pixels, rows, self.key, [epoch])

    @torch.no_grad()
    def judge_held_out(self, rows: np.ndarray) -> Judgements | None:
        """Predictions for evaluation, of any number of `rows`, always the same; None without rows."""
        if not len(rows):
            return None
        chunks = np.split(rows, range(TOGETHER, len(rows), TOGETHER))
        parts = [self._judge(self._pixels(chunk), chunk, ("held out",), range(HELD_OUT_DRAWS)) for chunk in chunks]
        return Judgements(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.reward for part in parts]),
            torch.cat([part.weight for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.prompts for part in parts]),
            np.concatenate([part.matched for part in parts]),
        )

    def _judge(self, pixels: Tensor, rows: np.ndarray, key: RandomKey, draws: Sequence[int]) -> Judgements:
        """For each of `draws`: the rows under their own prompts, and the good ones under wrong prompts."""
        rated, scorer, metrics = self.rated, self.scorer, self.metrics[self.rated.image[rows]]
        if isinstance(scorer, Selector):
            return self._judgements(scorer(pixels, metrics), rated.good[rows], rows, rated.prompt[rows], len(rows))
        own = np.tile(np.arange(len(rows)), len(draws))
        again = np.flatnonzero(rated.good[rows]) if self.mismatch else np.arange(0)
        wrong = [wrong_prompt(rated, key, draw, row) for draw in draws for row in rows[again]]
        places = np.concatenate([own, np.tile(again, len(draws))])
        prompts = np.concatenate([rated.prompt[rows[own]], wrong]).astype(np.int64)
        seen = scorer.image(pixels, metrics)  # once per image, however many prompts it is paired with
        reward = np.concatenate([rated.reward[rows[own]], np.zeros(len(wrong))])
        return self._judgements(
            scorer.align(seen[places], self.pooled[prompts]), reward, rows[places], prompts, len(own)
        )

    def _judgements(
        self, logits: Tensor, reward: np.ndarray, rows: np.ndarray, prompts: np.ndarray, matched: int
    ) -> Judgements:
        """The first `matched` are under the rows' own prompts."""
        targets, weight = (
            torch.from_numpy(values.astype(np.float32)).to(self.device) for values in (reward, self.rated.weight[rows])
        )
        return Judgements(logits, targets, weight, rows, prompts, np.arange(len(rows)) < matched)

    def _pixels(self, rows: np.ndarray) -> Tensor:
        return self._to_float(self.rated.pixels[self.rated.image[rows]])

    def _to_float(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).float() / 255
