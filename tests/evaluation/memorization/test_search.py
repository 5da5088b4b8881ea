"""Copies are found, honest images are not, and what was found says how sure it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsyn.evaluation.memorization import candidates, planted
from medsyn.evaluation.memorization.assess import Effort, Memorization, assess
from medsyn.evaluation.memorization.maps import maps_of
from medsyn.evaluation.memorization.margins import match
from medsyn.evaluation.memorization.results import exclude_table, lines
from medsyn.evaluation.memorization.search import (
    COPY,
    SAME_PATIENT,
    Honest,
    Library,
    Picture,
    Query,
    findings,
    honest,
    threshold,
)
from tests.evaluation.memorization.conftest import draw

EFFORT = Effort(honest=9, planted=1)
FEW = {name: planted.CHANGES[name] for name in ("unchanged", "flip", "blur 2")}  # all of them take seconds


@pytest.fixture(scope="module")
def found(pictures: list[Picture]) -> Memorization:
    """Of two copies, one of a control, and one honest image; and one of a modality without real images."""
    random = np.random.default_rng(0)
    synthetic = [
        replace(pictures[0], name="copy", pixels=planted.CHANGES["crop to 90 %"](pictures[0].pixels, random)),
        replace(pictures[7], name="of a control", pixels=planted.CHANGES["flip"](pictures[7].pixels, random)),
        Picture("honest", "OCT", draw("OCT", 20)),
        Picture("foreign", "CT", draw("Chest CT", 0)),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planted, "CHANGES", FEW)
        return assess(pictures[:6], pictures[6:], synthetic, 0, EFFORT)


def test_a_copy_is_found_with_its_source(found: Memorization) -> None:
    assert [(one.name, one.source, one.kind) for one in found.findings] == [("copy", "0.png", COPY)]


def test_a_copy_of_an_image_that_was_never_trained_on_is_none(found: Memorization) -> None:
    assert found.of_controls == 1


def test_a_modality_without_real_images_is_named(found: Memorization) -> None:
    assert found.unsearched == {"CT": "there are no real images of it"}
    assert found.images == 3


def test_what_would_have_been_found_is_counted(found: Memorization) -> None:
    assert {of for _, of in found.recall.values()} == {1}
    assert found.recall["unchanged"] == (1, 1)


def test_few_patients_are_called_few(found: Memorization) -> None:
    assert found.limit is not None
    assert found.limit.is_uncertain
    said = "\n".join(lines(found))
    assert "1 copy among 3 synthetic images" in said
    assert "too few to be sure" in said
    assert "CT: not searched, there are no real images of it" in said
    assert "1 more would be of controls" in said


def test_patients_are_named_nowhere(found: Memorization) -> None:
    assert "patient 0" not in str(found.as_dict())
    assert "patient" not in exclude_table(found.findings)


def test_a_name_with_a_comma_stays_one_cell(found: Memorization) -> None:
    table = exclude_table([replace(found.findings[0], name='a,"b".png')])
    assert table.splitlines()[1].startswith('"a,""b"".png",0.png,copy of an image (')


def test_the_result_is_the_same_each_time(pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted, "CHANGES", {"noise 15": planted.CHANGES["noise 15"]})
    copies = [replace(pictures[0], name="copy")]
    first, second = (assess(pictures[:4], [], copies, 3, Effort(2, 1)).as_dict() for _ in range(2))
    assert first == second


def test_too_few_patients_are_not_searched(pictures: list[Picture]) -> None:
    few = [replace(picture, patient="one") for picture in pictures]
    result = assess(few, [], [replace(pictures[0], name="copy")], 0, EFFORT)
    assert result.findings == []
    assert "too few" in result.unsearched["OCT"]


def test_of_a_patient_with_images_alike_the_patient_is_named_not_the_image(
    library: Library, pictures: list[Picture]
) -> None:
    twins = Library([*pictures, replace(pictures[0], name="the next slice")])
    between = planted.CHANGES["noise 15"](pictures[0].pixels, np.random.default_rng(1))
    known = honest(twins, 4, 0)
    assert known is not None
    picture = Picture("made", "OCT", between)
    kinds = [
        one.kind for one in findings(twins, known, threshold([known]), [picture], list(twins.search([Query(between)])))
    ]
    assert kinds == [SAME_PATIENT]


@pytest.mark.parametrize("change", sorted(planted.CHANGES))
def test_the_source_is_among_the_first_candidates(
    change: str, library: Library, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_BY_BAND", "_BY_GRADIENTS", "_BY_HALVES"):
        monkeypatch.setattr(candidates, name, 1)
    changed = maps_of(planted.CHANGES[change](pictures[4].pixels, np.random.default_rng(2)))
    found = library._index.candidates([changed], np.zeros((1, len(pictures)), bool))[0]
    assert 4 in found.everything


def test_a_patient_that_is_left_out_is_no_source(library: Library, pictures: list[Picture]) -> None:
    without = next(library.search([Query(pictures[2].pixels, pictures[2].patient)]))
    assert pictures[2].patient not in {one.patient for one in without.registered}
    best = next(library.search([Query(pictures[2].pixels)])).best
    assert best is not None
    assert best.source == 2


def test_the_threshold_counts_who_passes_that_of_the_other_half() -> None:
    random = np.random.default_rng(0)
    patients = [f"{number}" for number in range(400)]
    honest = Honest(random.normal(size=(400, 6)), patients, patients, patients)
    limit = threshold([honest])
    assert limit.asked == 400
    assert limit.false_positives["value"] == limit.passing / 400
    assert 0 <= limit.passing <= 12
    assert not limit.is_uncertain
    assert np.quantile(honest.crossed, 0.99) < limit.score <= honest.crossed.max()


def test_without_candidates_there_is_no_margin(pictures: list[Picture]) -> None:
    nothing = match(
        maps_of(pictures[0].pixels), lambda place: maps_of(pictures[place].pixels), [], candidates.Candidates([], [])
    )
    assert nothing.best is None
    assert nothing.margins.tolist() == [0.0] * 6
