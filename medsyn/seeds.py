"""Randomness is a function, not a state.

Every random choice of medsyn is drawn from `seed(...)` of the things it depends on: sample order from (seed, epoch),
training noise from (seed, step, rank), image noise from (campaign seed, prompt id, replicate, attempt). Nothing that
has been drawn needs to be saved, so an interrupted run continues bit for bit.
"""

from __future__ import annotations

import hashlib


def seed(*parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on every one of `parts`, in order.

    Keyed by BLAKE2b over a length-prefixed encoding, so ("ab", "c") and ("a", "bc") differ; the same on every
    machine and Python version.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = f"{type(part).__name__}:{part}".encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)
    return int.from_bytes(digest.digest(), "little") >> 1
