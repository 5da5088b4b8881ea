"""What a long list has already contained: a hash table of 128-bit hashes, 24 bytes a slot, 50 MB for a million rows.

A Python set of as many texts takes several times that. Two texts share a 128-bit hash once in 10^26 lists of a
million.
"""

from __future__ import annotations

import hashlib
from array import array

_FIRST_SIZE = 1 << 10
_FILLED_AT_MOST = 2 / 3


class Seen:
    """Texts and one positive number for each."""

    def __init__(self) -> None:
        self._allocate(_FIRST_SIZE)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def first(self, text: str, row: int) -> int:
        """The number that came with `text` when it was first seen: `row` (at least 1) if that is now."""
        slot = self._slot(text)
        if not self._numbers[slot]:
            self._numbers[slot] = row
            self._count_one()
            return row
        return self._numbers[slot]

    def count(self, text: str) -> int:
        """How often `text` has been counted, this time included."""
        slot = self._slot(text)
        self._numbers[slot] += 1
        times = self._numbers[slot]
        if times == 1:
            self._count_one()
        return times

    def _allocate(self, size: int) -> None:
        self._mask = size - 1
        self._high = array("Q", bytes(8 * size))
        self._low = array("Q", bytes(8 * size))
        self._numbers = array("Q", bytes(8 * size))  # 0: the slot is free

    def _slot(self, text: str) -> int:
        """The slot of `text`; its hash is written there if the slot is free."""
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        high, low = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        return self._place(high, low)

    def _place(self, high: int, low: int) -> int:
        slot = low & self._mask
        while self._numbers[slot]:
            if self._low[slot] == low and self._high[slot] == high:
                return slot
            slot = (slot + 1) & self._mask
        self._high[slot], self._low[slot] = high, low
        return slot

    def _count_one(self) -> None:
        self._count += 1
        if self._count > _FILLED_AT_MOST * (self._mask + 1):
            before = zip(self._high, self._low, self._numbers, strict=True)
            self._allocate(2 * (self._mask + 1))
            for high, low, number in before:
                if number:
                    self._numbers[self._place(high, low)] = number
