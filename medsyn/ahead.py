"""What is needed next is made while the caller is at work on what it has."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int = 1) -> Iterator[tuple[Item, Future[Made]]]:
    """Every item, in order, with what `make` makes of it; `result()` of that waits for it, or raises what `make` did.

    At most two items a thread are begun before their turn, so memory is bounded. `make` must be a function of its item
    alone: the threads then change nothing but the time.
    """
    left = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        begun = deque((item, pool.submit(make, item)) for item in islice(left, 2 * threads))
        try:
            while begun:
                item, future = begun.popleft()
                begun.extend((following, pool.submit(make, following)) for following in islice(left, 1))
                yield item, future
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
