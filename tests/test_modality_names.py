from __future__ import annotations

import time

import pytest

from medsyn.data.modalities import split_prefix
from medsyn.modality_names import (
    MODALITIES,
    base_modality,
    canonical_modality,
    canonical_name,
    in_order,
    most_specific,
    read_name,
)


@pytest.mark.parametrize(
    ("names", "modality"),
    [
        ("OCT|oct|O.C.T.|SD-OCT|macular OCT|Optical Coherence Tomography|OPT", "OCT"),
        ("CT| ct |ChestCT|Chest CT|chest_ct|CT abdomen|brain-CT|Computed Tomography|CT scan|HRCT", "CT"),
        ("X-Ray|X-ray|xray|XRAY|X Ray|CXR|XR|DX|CR|Chest X-ray|Chest X-Ray|knee_xray|Chest radiograph|x‐ray", "X-Ray"),
        ("MRI|MR|BrainMRI|Brain MRI|BreastMRI|Breast MRI|spine mri|Magnetic Resonance Imaging", "MRI"),
        ("Fundus|fundus|FUNDUS|Fundus photography|color fundus photograph|left fundus|CFP", "Fundus"),
    ],
)
def test_spellings_of_a_modality(names: str, modality: str) -> None:
    assert {canonical_modality(name) for name in names.split("|")} == {modality}


@pytest.mark.parametrize(
    "name",
    ["", " ", "Ultrasound", "US", "PET", "PET-CT", "CTMRI", "chest", "OC T A", "factor", "direct", "nan", "x" * 10_000],
)
def test_what_is_none_of_the_five(name: str) -> None:
    assert canonical_modality(name) is None


def test_a_hostile_name_does_not_take_long() -> None:
    start = time.process_time()
    assert canonical_modality("chest" * 20_000 + "!") is None
    assert canonical_modality("retinaretinal" * 5_000) is None
    assert canonical_modality("chest" * 20_000 + "ct") == "CT"
    assert split_prefix("chest " * 20_000 + ": x")[0] is None
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("names", "canonical"),
    [
        ("Brain MRI|BrainMRI|brain_mri|MRI brain|MR Brain|cerebral MR scan", "Brain MRI"),
        ("Chest X-Ray|Chest X-ray|chest_xray|CXR|chest radiograph|Thoracic X-ray|lung xray", "Chest X-Ray"),
        ("Chest CT|CT chest|thorax CT|HRCT chest|Lung CT", "Chest CT"),
        ("Spine MRI|thoracic spine MRI|cervical spine MR|lumbar MRI", "Spine MRI"),
        ("Retinal OCT|retina OCT|macular OCT|macula OCT", "Retinal OCT"),
        ("MRI|mr|Magnetic Resonance Imaging", "MRI"),
    ],
)
def test_spellings_of_a_modality_and_a_part_of_the_body(names: str, canonical: str) -> None:
    assert {canonical_name(name) for name in names.split("|")} == {canonical}
    assert canonical_name(canonical) == canonical
    assert base_modality(canonical) == canonical_modality(canonical)


def test_words_that_begin_alike_are_told_apart() -> None:
    named = read_name("macula right OCT")
    assert named is not None and (named.anatomies, named.others) == (("Retinal",), ("right",))


@pytest.mark.parametrize(
    ("anatomies", "listed", "name"),
    [
        (("Brain",), ("MRI", "Brain MRI"), "Brain MRI"),
        (("Spine",), ("MRI", "Brain MRI"), "MRI"),
        ((), ("MRI", "Brain MRI"), "MRI"),
        ((), ("Brain MRI", "Breast MRI"), None),
        (("Spine",), ("Brain MRI",), None),
        (("Brain",), MODALITIES, "MRI"),
        (("Brain",), ("CT",), "MRI"),
        (("Neck", "Brain"), ("Brain MRI", "Chest CT"), "Brain MRI"),
    ],
)
def test_the_most_specific_listed_name_counts(
    anatomies: tuple[str, ...], listed: tuple[str, ...], name: str | None
) -> None:
    assert most_specific("MRI", anatomies, listed) == name


def test_the_order_is_that_of_the_five() -> None:
    names = ["MRI", "Chest X-Ray", "Breast MRI", "Fundus", "Brain MRI", "OCT"]
    assert in_order(names) == ["OCT", "Chest X-Ray", "MRI", "Brain MRI", "Breast MRI", "Fundus"]
    assert in_order(reversed(MODALITIES)) == list(MODALITIES)
