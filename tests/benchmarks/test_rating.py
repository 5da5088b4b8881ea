"""The simulated reading."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import rating
from medsyn.rating.quality import Evidence


def test_a_rater_of_a_known_icc_has_it() -> None:
    of = np.random.default_rng(0)
    truth = of.normal(size=4000)
    first, second = (truth + of.normal(0, rating.noise(0.3), 4000) for _ in range(2))
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("way", rating.WAYS)
def test_every_way_asks_for_a_whole_set(way: str) -> None:
    asked = rating.ask(way, Evidence(rating.IMAGES), 0, np.random.default_rng(0))
    assert len(asked) == rating.BATCH
    assert {len(images) for images in asked} == {1 if "ratings" in way else 2}


def test_it_prints_the_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rating, "ENOUGH", 0.5)
    rating.main(["--seeds", "2"])
    printed = capsys.readouterr().out
    assert printed.count("| mean of ratings |") == 2
    assert "nan" not in printed
