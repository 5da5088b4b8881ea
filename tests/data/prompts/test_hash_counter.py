from __future__ import annotations

import random

from medsyn.data.prompts.hash_counter import Seen


def test_it_says_what_a_dictionary_says() -> None:
    draw = random.Random(0)
    seen, counted, first, count = Seen(), Seen(), {}, {}
    for row in range(1, 20_000):
        text = f"text {draw.randrange(8000)}"
        count[text] = count.get(text, 0) + 1
        assert seen.first(text, row) == first.setdefault(text, row)
        assert counted.count(text) == count[text]
    assert len(seen) == len(counted) == len(first)


def test_texts_that_share_a_place_are_told_apart() -> None:
    seen = Seen()
    assert all(seen.first(f"{number}", number) == number for number in range(1, 5000))
    assert all(seen.first(f"{number}", 10**6) == number for number in range(1, 5000))
