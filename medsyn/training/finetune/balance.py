"""How often an image is seen in an epoch, so that rare findings are not lost among normal ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def repeats(captions: Sequence[str], most: int | None) -> list[int]:
    """How often each sample is seen in an epoch: once, and more often if its caption is rare.

    Repeat-factor sampling (Gupta et al., CVPR 2019) without its square root: with `most` out of the way, all captions
    would be seen about as often as the most frequent one, and none more often.

    Args:
        captions: of each sample.
        most: the highest number; None: once each.
    """
    if most is None:
        return [1] * len(captions)
    number = Counter(captions)
    highest = max(number.values(), default=0)
    return [min(most, highest // number[caption]) for caption in captions]
