"""Which UNet calls of a run compute less than all."""

from __future__ import annotations

import pytest

from medsyn.config import GenerationSection
from medsyn.schedulers import FAST, Call, Shortcuts


def letters(shortcuts: Shortcuts, count: int, with_guidance: bool = True) -> str:
    """A letter for every call: D deep, o outermost layers; lower case f after it: text frozen; 2 if guided."""
    calls = shortcuts.calls(count, with_guidance)
    return " ".join("oD"[call.deep] + "2" * call.guided + "f" * call.text_frozen for call in calls)


@pytest.mark.parametrize(
    ("shortcuts", "expected"),
    [
        (Shortcuts(), "D2 D2 D2 D2 D2 D2"),
        (Shortcuts(guidance_interval=(0.0, 0.5)), "D2 D2 D2 D D D"),
        (Shortcuts(deep_cache_every=2), "D2 o2 D2 o2 D2 o2"),
        (Shortcuts(deep_cache_every=4), "D2 o2 o2 o2 D2 o2"),
        (Shortcuts(deep_cache_every=99), "D2 o2 o2 o2 o2 o2"),
        (Shortcuts(text_attention_until=0.5), "D2 D2 D2 Df Df Df"),
        (Shortcuts(deep_cache_every=2, text_attention_until=0.5), "D2 o2 D2 of Df of"),
        # features of the prompts alone do not serve a guided call: it is deep, and the count begins anew
        (Shortcuts(guidance_interval=(0.2, 1.0), deep_cache_every=3), "D o D2 o2 o2 D2"),
        (Shortcuts((0.0, 0.5), 4), "D2 o2 o2 o D o"),
    ],
)
def test_what_a_call_computes_follows_from_its_number(shortcuts: Shortcuts, expected: str) -> None:
    assert letters(shortcuts, 6) == expected


def test_without_guidance_no_call_is_guided() -> None:
    assert letters(Shortcuts(deep_cache_every=2, text_attention_until=0.5), 4, with_guidance=False) == "D o Df of"


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_the_first_call_is_deep_and_attends_to_the_text_whatever_is_left_out(count: int) -> None:
    first = Shortcuts((0.9, 1.0), 1000, 0.001).calls(count)[0]
    assert first.deep and not first.text_frozen
    assert Shortcuts((0.0, 1.0), 1, 1.0).calls(count) == [Call(True)] * count


def test_fast_sets_the_shortcuts_that_no_key_sets() -> None:
    assert GenerationSection().shortcuts == Shortcuts()
    assert GenerationSection(fast=True).shortcuts == FAST != Shortcuts()
    own = GenerationSection(fast=True, deep_cache_every=1, guidance_interval=[0.0, 0.8]).shortcuts
    assert own == Shortcuts((0.0, 0.8), 1, FAST.text_attention_until)
