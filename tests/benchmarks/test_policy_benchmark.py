"""What the Policy's benchmark asks: captions that are false of a phantom in the way that is said."""

from __future__ import annotations

import pytest

from medsyn.data.phantoms.phantom import KINDS, draw_phantom, parse_caption


@pytest.mark.parametrize("kind", KINDS)
def test_false_captions_are_captions_of_phantoms_that_differ_as_is_said(kind: str) -> None:
    from scoring.policy import FIRST_INDEX, FRESH_SEED, caption, false_captions

    for index in range(12):
        phantom = draw_phantom(kind, FIRST_INDEX + index, FRESH_SEED, quality=3)
        assert caption(phantom.label) == phantom.caption
        for what, text in false_captions(phantom):
            label = parse_caption(text)
            assert label is not None and label.quality == 3 and label != phantom.label
            if what == "other kind":
                assert label.kind != kind
            elif what == "other side":
                assert label._replace(side=phantom.side) == phantom.label
            else:
                assert label.kind == kind and label.finding != phantom.finding
        told = {what for what, _ in false_captions(phantom)}
        assert told == {"other finding", "other kind"} | ({"other side"} if phantom.side else set())


def test_a_draw_counts_half() -> None:
    from scoring.policy import Outcomes

    outcomes = Outcomes()
    outcomes.add("other side", "one", 0.5, [0.4, 0.5])
    outcomes.add("other side", "two", 0.5, [0.6])
    assert outcomes.interval("other side").value == pytest.approx(0.375)
