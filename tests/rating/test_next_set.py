"""Which images come next, after answers from the page."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medsyn.cli import rate
from medsyn.rating import next_set
from medsyn.rating.collect import collect
from medsyn.rating.export import Wishes
from medsyn.rating.formats import read_key
from medsyn.rating.next_set import by_information
from medsyn.rating.sessions import read_sessions, write_sessions
from medsyn.rating.sources import Source
from tests.helpers import rating as sets


@pytest.fixture
def sessions(tmp_path: Path) -> pd.DataFrame:
    """Two raters, who answered about the first eight images only, and agree."""
    key_file = sets.write_set(tmp_path)
    key = read_key(key_file)
    files = [
        sets.write_answers(
            tmp_path / f"{rater}.json",
            sets.answers(key, rater, lambda image: 1 + int(image[5:9]) % 3, only=lambda item: item < "case0008"),
        )
        for rater in ("R1", "R2")
    ]
    write_sessions(tmp_path / "sessions.parquet", collect(files, [key_file])[0])
    return read_sessions(tmp_path)


def sources(folder: Path, count: int = sets.CASES) -> list[Source]:
    files = sorted((folder / "images").iterdir())[:count]
    return [Source(file, ("MRI", "CT")[n % 2], f"finding {n % 4}", True) for n, file in enumerate(files)]


def test_what_nobody_has_rated_comes_first(tmp_path: Path, sessions: pd.DataFrame) -> None:
    choice = by_information(sources(tmp_path), Wishes(images=4, pairs=3), sessions)
    assert {int(source.file.stem) for source in choice.rated} == {8, 9, 10, 11}
    assert len(choice.pairs) == 3
    shown = [*choice.rated, *choice.compared]
    for one, other in choice.pairs:
        assert shown[one].modality == shown[other].modality
    assert len({source.file for source in shown}) == len(shown)


def test_the_choice_is_a_function_of_the_answers_and_the_seed(tmp_path: Path, sessions: pd.DataFrame) -> None:
    first, again = (by_information(sources(tmp_path), Wishes(images=4, pairs=3), sessions) for _ in range(2))
    assert first == again


def test_a_page_with_images_that_are_only_compared(tmp_path: Path, sessions: pd.DataFrame) -> None:
    """From the command line: fewer cases than images, and a key that an import understands."""
    page = tmp_path / "next.html"
    told = ["--images", "2", "--pairs", "5", "--decoys", "0", "--repeats", "0", "--modality", "CT"]
    given = ["next", str(tmp_path / "images"), "--answers", str(tmp_path), "--out", str(page), *told]
    assert rate.main("medsyn rate", given) == 0
    key = read_key(tmp_path / "next.key.json")
    assert (len(key.cases), len(key.pairs)) == (2, 5)
    assert len(key.images) > 2
    cases = {case.image for case in key.cases.values()}
    assert cases <= set(key.images)
    assert {image for pair in key.pairs.values() for image in pair} | cases == set(key.images)


def test_of_many_images_those_with_the_fewest_answers_are_considered(
    tmp_path: Path, sessions: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where more were answered about than can be considered: their joint distribution takes cubic time."""
    monkeypatch.setattr(next_set, "MOST_CONSIDERED", 6)
    monkeypatch.setattr(next_set, "_MOST_KNOWN", 3)
    seen: list[int] = []
    infer = next_set.infer
    monkeypatch.setattr(next_set, "infer", lambda evidence: seen.append(evidence.images) or infer(evidence))
    choice = by_information(iter(sources(tmp_path)), Wishes(images=12, pairs=0), sessions)
    assert seen == [6]
    assert {8, 9, 10} & {int(source.file.stem) for source in choice.rated}
    assert sum(int(source.file.stem) < 8 for source in choice.rated) == 3
    only_known = by_information(sources(tmp_path, 8), Wishes(images=12, pairs=0), sessions)
    assert len(only_known.rated) == 6
