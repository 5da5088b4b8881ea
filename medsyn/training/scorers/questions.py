"""What the Policy is asked: images under texts that are true of them, and under texts that are not.

Everything random is a function of (key, epoch, line of the table), so a resumed run sees what an uninterrupted one
would, and stage 2, which sees one modality's rows, asks about them what stage 1 did.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medsyn.seeds import seed
from medsyn.training.schedule import RandomKey
from medsyn.training.scorers.captions import NONE, Captioned, Texts, WrongTexts
from medsyn.training.scorers.rated import RatedSet

MIRRORED_ODDS = 0.5  # how often an image whose text names a side is also shown mirrored, under the same text


@dataclass(frozen=True)
class Asked:
    """M images under texts, and what an expert would say of them."""

    rows: np.ndarray  # int64 [M], the facts they are about: rated rows first, then captioned images
    images: np.ndarray  # int64 [M]: rated images first, then captioned ones
    prompts: np.ndarray  # int64 [M], into the texts
    mirrored: np.ndarray  # bool [M]: left and right exchanged
    matched: np.ndarray  # bool [M]: it is the row's own prompt, of the image as it is
    reward: np.ndarray  # float64 [M], 0..1
    weight: np.ndarray  # float64 [M]


class Questions:
    """Rated rows and captioned images with their own texts, and false ones for them."""

    def __init__(self, rated: RatedSet, captioned: Captioned, texts: Texts, key: RandomKey, mismatch: bool) -> None:
        """`mismatch` also asks about good images under false texts, and mirrored, with reward 0.

        A ratings table has one prompt per image; without such questions a Policy that ignores the prompt does just as
        well.
        """
        self.rated, self._key, self._texts, self._mismatch = rated, key, texts, mismatch
        count, ones = len(captioned.text), np.ones(len(captioned.text))
        self._image = np.concatenate([rated.image, len(rated.pixels) + np.arange(count)])
        self._text = np.concatenate([rated.prompt, captioned.text]).astype(np.int64)
        self._reward = np.concatenate([rated.reward.astype(np.float64), ones])
        self._weight = np.concatenate([rated.weight.astype(np.float64), ones])
        self._good = np.concatenate([rated.good, ones.astype(bool)])
        self._group = np.concatenate([rated.image_group[rated.image], captioned.group]).astype(str)
        self._name = [("rated", int(line)) for line in rated.line] + [
            ("captioned", int(line)) for line in captioned.line
        ]
        self._wrong = WrongTexts(texts, zip(self._group.tolist(), self._text.tolist(), strict=True))

    def lesson(self, rows: np.ndarray, epoch: int) -> Asked:
        """What is asked of some facts in an epoch: each false text, and each mirrored image, counts as much as it."""
        return self._ask(rows, [(*self._key, "false", epoch)], mirrored=True)

    def exam(self, rows: np.ndarray, draws: int) -> Asked:
        """What is asked to see how good a Policy is, in every epoch and stage the same; false texts count as one."""
        return self._ask(rows, [("held out", draw) for draw in range(draws)], mirrored=False)

    def _ask(self, rows: np.ndarray, keys: list[RandomKey], mirrored: bool) -> Asked:
        asked = [(int(row), int(self._text[row]), False, True) for row in rows]
        share = np.ones(len(rows)).tolist()
        for row in rows[self._good[rows]].tolist() if self._mismatch else []:
            false: list[tuple[int, int, bool, bool]] = []
            for key in keys:
                rng = np.random.default_rng(seed(*key, *self._name[row]))
                drawn = self._wrong.draw(int(self._text[row]), str(self._group[row]), rng)
                false += [(row, text, False, False) for text in drawn]
                if mirrored and self._texts.mirrored[self._text[row]] != NONE and rng.random() < MIRRORED_ODDS:
                    false.append((row, int(self._text[row]), True, False))
            asked += false
            share += [1.0 if mirrored else 1 / len(false)] * len(false)
        about, prompts, flipped, matched = (np.array(column) for column in zip(*asked, strict=True)) if asked else (
            np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool), np.zeros(0, dtype=bool)
        )  # fmt: skip
        reward = np.where(matched, self._reward[about], 0.0)
        weight = self._weight[about] * np.array(share)
        return Asked(about, self._image[about], prompts, flipped, matched, reward, weight)
