"""A batch that several blocks share is dealt to them."""

from __future__ import annotations

import pytest

from medsyn.generation.filter import Candidate
from medsyn.generation.sample.batch import Batch


def test_the_parts_of_a_batch_add_up_to_it() -> None:
    candidates = [Candidate(attempt, attempt) for attempt in range(7)]
    whole = Batch(candidates, [], 100, 7.0, "gpu")
    parts = Batch(candidates, list(range(7)), 100, 7.0, "gpu").split("aabacca")  # type: ignore[arg-type]
    assert [[candidate.attempt for candidate in part.candidates] for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert [part.pictures for part in parts] == [[0, 1, 3, 6], [2], [4, 5]]
    assert sum(part.unet_evaluations for part in parts) == whole.unet_evaluations
    assert [part.seconds for part in parts] == pytest.approx([4.0, 1.0, 2.0])
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert {part.device for part in parts} == {"gpu"}
