"""Hard negatives: captions that differ in one attribute."""

from __future__ import annotations

import pytest

from medsyn.data.phantoms.phantom import FINDINGS, KINDS, draw_phantom, parse_caption
from medsyn.data.prompts.attributes import CaptionAttributes, at_best_quality, listed_swaps, other_side

PHANTOMS = sorted({draw_phantom(kind, index, seed=3).caption for kind in KINDS for index in range(60)})
ATTRIBUTES = CaptionAttributes(PHANTOMS)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Chest X-ray: consolidation in the left lung", "Chest X-ray: consolidation in the right lung"),
        ("Fundus: Right eye (OD), drusen", "Fundus: Left eye (OS), drusen"),
        ("X-Ray: LLL opacity", "X-Ray: RLL opacity"),
        ("CT: LEFT-SIDED mass", "CT: RIGHT-SIDED mass"),
        ("X-Ray: left effusion, right lung clear", None),  # exchanging both may say the same
        ("X-Ray: upright, clear lungs", None),
        ("OCT: os, drusen", None),  # an abbreviation only in capitals
    ],
)
def test_the_other_side(caption: str, expected: str | None) -> None:
    assert other_side(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("X-Ray: mild effusion", {("severity", "X-Ray: moderate effusion"), ("severity", "X-Ray: severe effusion")}),
        ("Fundus: non-proliferative retinopathy", {("severity", "Fundus: proliferative retinopathy")}),
        ("CT: grade 2 injury", {("severity", f"CT: grade {grade} injury") for grade in (1, 3, 4)}),
        ("X-Ray: chest, AP view", {("view", "X-Ray: chest, PA view")}),
        (
            "CT: axial slice, series AXIAL",
            {("plane", f"CT: {one} slice, series {one.upper()}") for one in ("coronal", "sagittal")},
        ),
        ("MRI: T1-weighted", {("sequence", "MRI: T2-weighted")}),
        ("CT: abdomen without iv contrast", {("contrast", "CT: abdomen with iv contrast")}),
        (
            "MRI: temporal lobe lesion",
            {("anatomy", f"MRI: {lobe} lobe lesion") for lobe in ("frontal", "parietal", "occipital")},
        ),
        (
            "CT: mild to moderate emphysema",
            {("severity", f"CT: {degree} emphysema") for degree in ("severe to moderate", "mild to severe")},
        ),
        ("X-Ray: a temporal change with pain, day 3", set()),
    ],
)
def test_words_of_the_lists_are_exchanged(caption: str, expected: set[tuple[str, str]]) -> None:
    assert set(listed_swaps(caption)) == expected


def test_captions_are_given_the_best_quality_that_any_names() -> None:
    asked = ["CT: mass, poor image quality", "CT: Good quality, cyst", "CT: cyst", "CT: poor bowel preparation"]
    assert at_best_quality(asked) == ["CT: mass, good image quality", asked[1], asked[2], asked[3]]
    assert at_best_quality(asked[:1]) == asked[:1]


def test_phrases_of_captions_that_differ_in_one_are_exchanged() -> None:
    attributes = CaptionAttributes(
        [
            "X-Ray: chest, PA view, no finding, 41-year-old female",
            "X-Ray: chest, AP view, pneumonia, 29-year-old male",
            "X-Ray: chest, AP view, effusion, pneumonia, 29-year-old male",
            "CT: chest, AP view, mass, 30-year-old male",
        ]
    )
    assert attributes.swaps("X-Ray: chest, PA view, no finding, 16-year-old male") == [
        ("finding", "X-Ray: chest, PA view, pneumonia, 16-year-old male"),
        ("view", "X-Ray: chest, AP view, no finding, 16-year-old male"),
    ]


def test_body_parts_in_each_others_place_are_anatomy() -> None:
    attributes = CaptionAttributes(["CT: chest, axial slice", "CT: abdomen and pelvis, axial slice"])
    assert ("anatomy", "CT: abdomen and pelvis, axial slice") in attributes.swaps("CT: chest, axial slice")


def test_a_word_that_the_campaign_never_uses_does_not_come_in_but_the_other_side_does() -> None:
    attributes = CaptionAttributes(["Fundus: mild oedema, left eye", "Fundus: severe oedema, left eye"])
    assert attributes.swaps("Fundus: mild oedema, left eye") == [
        ("severity", "Fundus: severe oedema, left eye"),
        ("side", "Fundus: mild oedema, right eye"),
    ]


@pytest.mark.parametrize("caption", PHANTOMS)
def test_of_a_phantom_every_swap_is_a_phantoms_caption_that_differs_in_what_it_says(caption: str) -> None:
    own = parse_caption(caption)
    assert own is not None
    swaps = ATTRIBUTES.swaps(caption)
    for attribute, swapped in swaps:
        label = parse_caption(swapped)
        assert label is not None, swapped
        changed = {name for name, a, b in zip(own._fields, own, label, strict=True) if a != b}
        assert changed - ({"side"} if None in (own.side, label.side) else set()) == {attribute}
    others = {parse_caption(swapped).finding for attribute, swapped in swaps if attribute == "finding"}  # type: ignore[union-attr]
    assert others == set(FINDINGS[own.kind]) - {own.finding}
    assert ("side" in {attribute for attribute, _ in swaps}) is (own.side is not None)


def test_order_and_repetition_of_the_captions_change_nothing() -> None:
    one, other = CaptionAttributes(PHANTOMS), CaptionAttributes([*reversed(PHANTOMS), *PHANTOMS])
    assert [one.swaps(caption) for caption in PHANTOMS[:9]] == [other.swaps(caption) for caption in PHANTOMS[:9]]


def test_a_long_report_is_left_alone_but_for_the_lists() -> None:
    report = "CT: " + ", ".join(f"sentence {chr(97 + n)}" for n in range(20)) + ", left lung"
    assert [attribute for attribute, _ in CaptionAttributes([report]).swaps(report)] == ["side"]
