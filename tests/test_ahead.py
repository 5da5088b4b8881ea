from __future__ import annotations

import threading
import time

import pytest

from medsyn.ahead import ahead


@pytest.mark.parametrize("threads", [1, 4])
def test_everything_comes_in_order_whoever_is_first(threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.01 if number == 0 else 0)
        return number**2

    assert [(item, future.result()) for item, future in ahead(slow_at_first, range(9), threads)] == [
        (number, number**2) for number in range(9)
    ]


def test_the_next_is_made_while_this_one_is_used_and_no_more_than_that() -> None:
    made, next_one = [], threading.Event()

    def make(number: int) -> int:
        made.append(number)
        if number == 1:
            next_one.set()
        return number

    for item, future in ahead(make, range(100)):
        assert future.result() == item
        assert next_one.wait(10)
        time.sleep(0.002)
        assert len(made) <= item + 3
        if item == 4:
            break


def test_an_error_comes_when_it_is_its_turn_and_the_others_are_made() -> None:
    results = []
    for _, future in ahead(lambda number: 1 // number, [1, 0, -1]):
        try:
            results.append(future.result())
        except ZeroDivisionError:
            results.append(None)
    assert results == [1, None, -1]


def test_what_is_left_early_leaves_no_thread() -> None:
    before = threading.active_count()
    for _ in ahead(str, range(50), 3):
        break
    end = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.001)
    assert threading.active_count() == before
