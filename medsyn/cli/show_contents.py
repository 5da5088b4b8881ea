"""What `medsyn check` prints of tables that it could read: a few figures for each modality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medsyn.data.contents import HELD_OUT_FRACTION, SEED, Contents, Part
from medsyn.text import counted

_Cell = Callable[[Part], str]


def show(contents: Sequence[Contents]) -> None:
    """Print figures of each table: by modality, and what is true of all of it."""
    console = Console()
    for one in contents:
        console.print(_table(one))
        for line in _lines(one):
            console.print(line, soft_wrap=True, highlight=False)


def _table(contents: Contents) -> Table:
    columns = {name: cell for name, cell in _COLUMNS[contents.kind].items() if any(map(cell, contents.parts.values()))}
    shown = Table("modality", title=escape(contents.source), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        shown.add_column(name, justify="left" if name in ("formats", "pixels") else "right", overflow="fold")
    for modality, part in contents.parts.items():
        shown.add_row(escape(modality), *(cell(part) for cell in columns.values()))
    return shown


def _lines(contents: Contents) -> list[str]:
    parts, texts = contents.parts.values(), contents.words.total()
    noun = {"dataset": "different caption", "ratings": "text"}.get(contents.kind, "prompt")
    lines = [
        f"{counted(texts, noun)}, of {_range(contents.words)} words (half have {_median(contents.words)} or fewer)"
    ]
    if contents.kind in ("prompts", "pairs"):
        return lines
    if any(part.formats for part in parts):
        same = counted(contents.repeated, "picture")
        lines.append(f"{same} there under another name too" if contents.repeated else "no picture is there twice")
    lines.append(f"held out: with data.held_out_fraction={HELD_OUT_FRACTION:g} and campaign.seed={SEED}, the defaults")
    return lines


def _images(part: Part) -> str:
    return f"{part.images:,} ({part.held_out:,})"


def _patients(part: Part) -> str:
    return "" if part.patients is None else f"{part.patients:,} ({part.patients_held_out or 0:,})"


def _formats(part: Part) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in part.formats.most_common())


def _pixels(part: Part) -> str:
    """The most frequent size, and the range of sides."""
    if not part.sizes:
        return ""
    (width, height), number = part.sizes.most_common(1)[0]
    if len(part.sizes) == 1:
        return f"{width} x {height}"
    sides = Counter(side for size in part.sizes for side in size)
    return f"{width} x {height} ({number:,} of {part.sizes.total():,}), sides {_range(sides)}"


def _spacing(part: Part) -> str:
    if not part.spacings:
        return ""
    low, high = (f"{value:.2g}" for value in (min(part.spacings), max(part.spacings)))
    return low if low == high else f"{low} to {high}"


def _rated(rating: int) -> _Cell:
    return lambda part: f"{part.ratings[rating]:,}"


_IMAGES: dict[str, _Cell] = {"images (held out)": _images, "patients (held out)": _patients}
_COLUMNS: dict[str, dict[str, _Cell]] = {
    "dataset": _IMAGES | {"formats": _formats, "pixels": _pixels, "mm a pixel": _spacing},
    "ratings": {"ratings": lambda part: f"{part.rows:,}"}
    | {f"{rating} {name}": _rated(rating) for rating, name in enumerate(("poor", "acceptable", "excellent"), 1)}
    | _IMAGES,
    "pairs": {"pairs": lambda part: f"{part.rows:,}"},
    "prompts": {"prompts": lambda part: f"{part.rows:,}"},
}


def _range(numbers: Counter[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _median(numbers: Counter[int]) -> int:
    """The least number that half are not above."""
    below = 0
    for number in sorted(numbers):
        below += numbers[number]
        if 2 * below >= numbers.total():
            return number
    raise ValueError("there are no numbers")
