"""Parts of messages: counts, durations, sizes, truncated lists and spelling suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

GIB = 2**30


def visible(text: str) -> str:
    """The text with control characters and those that reorder or hide others written as escapes (line breaks too)."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def counted(number: int, noun: str) -> str:
    """A number of things: 1 image, 2 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as clocks show them: 45 s, 3:20, 2:03:20."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def span(seconds: float) -> str:
    """About how long something takes, in the unit it deserves: 45 s, 12 min, 3.4 h, 2.1 days, 120 days."""
    for unit, length, most in (("s", 1, 99.5), ("min", 60, 99.5), ("h", 3600, 48)):
        if (amount := seconds / length) < most:
            return f"{amount:.1f} {unit}" if 0 < amount < 9.95 else f"{amount:.0f} {unit}"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 9.95 else f"{days:,.0f} days"


def gib(amount: float) -> str:
    """Bytes in GiB, without the unit: 15.3, or 0.03 below one GiB."""
    return f"{amount / GIB:.1f}" if amount >= GIB else f"{amount / GIB:.2f}"


def and_more(items: Sequence[object], shown: int) -> str:
    """The first items, and how many more there are: `a, b and 3 more`."""
    rest = len(items) - shown
    return ", ".join(map(str, items[:shown])) + (f" and {rest} more" if rest > 0 else "")


def closest(given: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice closest to `given`, ignoring case; None if none reaches difflib's `cutoff`."""
    lowered = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(given.casefold(), lowered, n=1, cutoff=cutoff)
    return lowered[close[0]] if close else None


def did_you_mean(given: str, choices: Iterable[str], cutoff: float = 0.6, show: Callable[[str], str] = str) -> str:
    """The end of a message about a `given` that is not one of the choices: `; did you mean …?`, or nothing."""
    close = closest(given, choices, cutoff)
    return f"; did you mean {show(close)}?" if close else ""
