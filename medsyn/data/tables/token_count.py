"""How long a text is for a model: in tokens of its own tokenizer, where that is at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_ENDS = 2  # tokens that mark begin and end


@dataclass(frozen=True)
class TokenCount:
    """A model's way to count tokens, and how many its text encoder reads."""

    limit: int  # with the two that mark begin and end
    count: Callable[[str], int]  # without them

    def too_many(self, text: str) -> int | None:
        """The text's tokens with begin and end, if its end is cut off."""
        if len(text.encode()) <= self.limit - _ENDS:  # a token is a byte or more
            return None
        number = self.count(text) + _ENDS
        return number if number > self.limit else None
