from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from medsyn.training.finetune.balance import repeats
from medsyn.training.schedule import samples_of_step

CAPTIONS = ["normal"] * 12 + ["nodule"] * 5 + ["effusion"] * 2 + ["fracture"]


@pytest.mark.parametrize(
    ("most", "seen"),
    [
        (None, {"normal": 12, "nodule": 5, "effusion": 2, "fracture": 1}),
        (2, {"normal": 12, "nodule": 10, "effusion": 4, "fracture": 2}),
        (4, {"normal": 12, "nodule": 10, "effusion": 8, "fracture": 4}),
        (20, {"normal": 12, "nodule": 10, "effusion": 12, "fracture": 12}),
    ],
)
def test_rare_captions_are_seen_more_often_and_none_more_than_the_most_frequent(
    most: int | None, seen: dict[str, int]
) -> None:
    times = Counter[str]()
    for caption, number in zip(CAPTIONS, repeats(CAPTIONS, most), strict=True):
        times[caption] += number
    assert times == seen


def test_free_texts_and_no_texts_are_as_they_were() -> None:
    assert repeats([str(number) for number in range(9)], 20) == [1] * 9
    assert repeats([], 20) == []


def test_an_epoch_has_every_sample_as_often_as_it_is_repeated_whatever_the_batch() -> None:
    times = repeats(CAPTIONS, 4)
    seen = [sample for sample, number in enumerate(times) for _ in range(number)]
    for batch in (1, 3, 7):
        steps = [samples_of_step((0, "finetune", "ct"), step, batch, len(seen)) for step in range(len(seen))]
        epoch = np.concatenate(steps)[: len(seen)]
        assert Counter(seen[place] for place in epoch) == Counter(dict(enumerate(times)))
