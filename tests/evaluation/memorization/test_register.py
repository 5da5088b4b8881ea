"""An image is laid upon its source, whatever was done to it."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.evaluation.memorization import planted
from medsyn.evaluation.memorization.maps import SIDE, maps_of
from medsyn.evaluation.memorization.register import Fit, Query, evidence
from medsyn.evaluation.memorization.search import Picture

CLOSE = evidence(0.9)


@pytest.mark.parametrize("change", sorted(planted.CHANGES.keys() - {"noise 30"}))
def test_a_changed_image_fits_its_source_better_than_any_other(change: str, pictures: list[Picture]) -> None:
    changed = planted.CHANGES[change](pictures[0].pixels, np.random.default_rng(3))
    query = Query(maps_of(changed))
    fits = []
    for picture in pictures[:3]:
        source = maps_of(picture.pixels)
        fits.append(query.compared(source, query.refined(source, query.coarsely(source))).whole)
    assert fits[0]["coarse"] > CLOSE
    for way in ("mid", "coarse"):
        assert fits[0][way] > max(other[way] for other in fits[1:])


def test_the_fit_says_what_was_done(pictures: list[Picture]) -> None:
    source = maps_of(pictures[0].pixels)
    query = Query(maps_of(255 - np.roll(pictures[0].pixels, 3, axis=0)[:, ::-1]))
    fit = query.refined(source, query.coarsely(source))
    assert fit.flip
    assert fit.sign == -1
    assert fit.shift == pytest.approx([3, 0], abs=0.1)
    assert fit.matrix == pytest.approx(np.eye(2), abs=0.02)


def test_half_an_image_is_seen_in_its_half(pictures: list[Picture]) -> None:
    source = maps_of(pictures[0].pixels)
    query = Query(maps_of(planted.half_of(pictures[0].pixels, pictures[1].pixels)))
    halves = query.compared(source, Fit(False, np.eye(2), np.zeros(2), 1.0)).halves
    assert halves["left"] > CLOSE
    assert halves["left"] > halves["right"] + 0.5


def test_what_lies_outside_the_image_says_nothing(pictures: list[Picture]) -> None:
    source = maps_of(pictures[0].pixels)
    beside = Fit(False, np.eye(2), np.array([0.9 * SIDE, 0.0]), 1.0)
    assert Query(source).compared(source, beside).whole["mid"] == evidence(0.0)


@pytest.mark.parametrize("pixels", [np.zeros((64, 64), np.uint8), np.full((40, 64, 3), 255, np.uint8)])
def test_an_empty_image_is_no_fault(pixels: np.ndarray, pictures: list[Picture]) -> None:
    source, query = maps_of(pictures[0].pixels), Query(maps_of(pixels))
    assert query.compared(source, query.refined(source, query.coarsely(source))).whole["mid"] < CLOSE
