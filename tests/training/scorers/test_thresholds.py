"""Thresholds keep what they promise, and come down to a generator's own images no farther than poor ones stay out."""

from __future__ import annotations

import numpy as np
import pytest

from medsyn.training.scorers.thresholds import (
    FEWEST_GOOD,
    FEWEST_SAMPLES,
    GENERATED,
    KEPT_SHARE,
    PHOTOGRAPH,
    SAMPLED,
    SPOILT,
    Seen,
    thresholds,
)

RNG = np.random.default_rng(0)
GOOD, POOR = 0.8 + RNG.uniform(-0.1, 0.1, 40), 0.1 + RNG.uniform(-0.1, 0.1, 40)


def seen(
    good: np.ndarray = GOOD,
    poor: np.ndarray = POOR,
    generated: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    spoilt: np.ndarray | None = None,
) -> Seen:
    """Images of one modality."""
    nothing = np.zeros(0)
    parts = [good, poor, *(nothing if one is None else one for one in (generated, samples, spoilt))]
    origin = np.repeat([PHOTOGRAPH, PHOTOGRAPH, GENERATED, SAMPLED, SPOILT], [len(part) for part in parts])
    count = len(origin)
    is_good = np.repeat([True, False, True, False, False], [len(part) for part in parts])
    return Seen(np.concatenate(parts), is_good, origin, np.full(count, "CT"), np.arange(count) % 5)


def test_a_threshold_keeps_nearly_all_good_images_and_is_the_modalitys_own_where_it_has_enough() -> None:
    rng = np.random.default_rng(0)
    modality = np.array(["CT"] * 200 + ["MRI"] * 200 + ["OCT"] * 6)
    good = np.arange(406) % 2 == 0
    scores = np.where(good, 0.8, 0.3) + rng.uniform(-0.25, 0.25, 406) - np.where(modality == "MRI", 0.2, 0)
    every = Seen(scores, good, np.zeros(406, dtype=np.int64), modality, np.arange(406) % 5)
    found = thresholds(every, ["CT", "MRI", "OCT"])
    for name in ("CT", "MRI"):
        its = scores[(modality == name) & good]
        assert (its >= found[name].threshold).mean() >= 0.95 > (its > found[name].threshold + 0.02).mean()
        assert found[name].good == found[name].poor == 100 and found[name].basis == "rated"
        assert found[name].good_passing == pytest.approx(0.95, abs=0.04)
        assert (found[name].poor_passing or 0) < 0.2
    assert found["MRI"].threshold < found["CT"].threshold - 0.1
    assert found["OCT"].good == 203 and FEWEST_GOOD > 3, "of all modalities together"
    assert thresholds(every.at(~good), ["CT"]) == {}


def test_a_generator_that_is_not_as_good_as_photographs_lowers_it_until_most_of_its_samples_pass() -> None:
    samples, spoilt = np.linspace(0.4, 0.6, 10), np.linspace(0.0, 0.3, 50)
    found = thresholds(seen(samples=samples, spoilt=spoilt), ["CT"])["CT"]
    assert found.basis == "samples" and (samples >= found.threshold).sum() == 8
    assert (found.good_passing, found.poor_passing, found.spoilt_passing) == (1, 0, 0)
    assert (found.samples, found.spoilt, found.good, found.poor) == (10, 50, 40, 40)
    assert 0.5 < (found.samples_passing or 0) < 1


@pytest.mark.parametrize("what", ["poor", "spoilt"])
def test_it_is_not_lowered_so_far_that_poor_images_pass(what: str) -> None:
    samples, bad = np.linspace(0.05, 0.6, 10), np.linspace(0.0, 0.5, 50)
    parts = {"poor": {"poor": bad}, "spoilt": {"spoilt": bad}}[what]
    found = thresholds(seen(samples=samples, **parts), ["CT"])["CT"]
    assert found.basis == "samples" and (bad >= found.threshold).sum() == 5
    assert (samples >= found.threshold).mean() < 0.8


def test_a_generator_as_good_as_photographs_changes_nothing_nor_do_few_samples() -> None:
    alone = thresholds(seen(), ["CT"])["CT"].threshold
    for samples in (np.full(10, 0.9), np.full(FEWEST_SAMPLES - 1, 0.5)):
        found = thresholds(seen(samples=samples, spoilt=np.full(9, 0.1)), ["CT"])["CT"]
        assert found.threshold == alone and found.basis == "rated" and found.samples == len(samples)


def test_generated_images_that_were_rated_count_first() -> None:
    generated = np.linspace(0.5, 0.7, 20)
    parts = {"samples": np.full(10, 0.3), "spoilt": np.full(10, 0.1)}
    found = thresholds(seen(generated=generated, **parts), ["CT"])["CT"]
    assert found.basis == "rated samples" and (generated >= found.threshold).sum() == 20 * KEPT_SHARE
    assert (found.good, found.poor) == (20, 0)
    few = thresholds(seen(generated=generated[: FEWEST_GOOD - 1], **parts), ["CT"])["CT"]
    assert few.basis == "samples" and few.good == 40 + FEWEST_GOOD - 1
