"""A journal is not synchronised, so a power cut may leave any part of a file: none of them may become an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsyn.generation.filter import Candidate
from medsyn.generation.make.journal import Journal, journal_directory
from medsyn.generation.sample.batch import Batch

PICTURES = [np.full((64, 64, 1), 7, np.uint8), np.full((64, 64, 1), 9, np.uint8)]
PLACES = [(0, 0), (1, 0)]
PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "block-000000", "identity")
    journal.append(PLACES, Batch([Candidate(0, 1), Candidate(0, 2)], PICTURES, 4, 1.0, "cpu"))
    return journal_directory(tmp_path / "block-000000") / "batch-000000.npz"


def kept(file: Path) -> list[np.ndarray]:
    return [
        picture
        for _, batch in Journal(file.parent.parent / "block-000000", "identity").read()
        for picture in batch.pictures
    ]


def test_what_was_saved_is_read_again(file: Path) -> None:
    assert all(np.array_equal(found, saved) for found, saved in zip(kept(file), PICTURES, strict=True))


def test_pages_that_were_not_written_are_noticed_wherever_they_are(file: Path) -> None:
    content = file.read_bytes()
    assert len(content) > 2 * PAGE
    for start in range(0, len(content), PAGE):
        lost = content[start : start + PAGE]
        file.write_bytes(content[:start] + bytes(len(lost)) + content[start + PAGE :])
        assert kept(file) == [], f"page at {start}"
        file.write_bytes(content[:start])
        assert kept(file) == [], f"cut at {start}"
