"""What was found of copies, for people: lines of text, tables, and pictures side by side."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medsyn import disk
from medsyn.evaluation.memorization.assess import Memorization
from medsyn.evaluation.memorization.control import Control
from medsyn.evaluation.memorization.search import Finding, Picture, Threshold
from medsyn.text import counted

RESULTS, EXCLUDE = "copies.json", "exclude.csv"
_PAIRS, _HONEST = "copies.png", "nearest-honest.png"  # pictures side by side, a pair in a row
_SHOWN, _SIDE, _GAP = 20, 128, 4


def lines(found: Memorization) -> Iterator[str]:
    """What was found, and how much that means, for a terminal."""
    yield _count(found)
    yield from (f"  {said}" for said in _unsearched(found))
    for one in found.findings[:_SHOWN]:
        yield f"  {one.name}: {one.kind}, {one.source} ({one.evidence} {one.score:.1f})"
    if len(found.findings) > _SHOWN:
        yield f"  and {len(found.findings) - _SHOWN} more"
    if found.of_controls:
        yield f"  {found.of_controls} more would be of controls, which cannot have been copied"
    if found.limit is None:
        return
    yield _passing(found.limit)
    yield "copies planted on purpose that it finds:"
    for kind, (hits, planted) in found.recall.items():
        yield f"  {kind:<32} {hits} of {planted}"
    yield from _nearer(found.control)


def sentences(found: Memorization) -> Iterator[str]:
    """The same for a report, which shows copies as pictures and the planted ones as a table."""
    yield _count(found)
    yield from _unsearched(found)
    if found.limit is not None:
        yield _passing(found.limit)
        yield from _nearer(found.control)


def _count(found: Memorization) -> str:
    copies = "1 copy" if len(found.findings) == 1 else f"{len(found.findings)} copies"
    return f"{copies} among {counted(found.images, 'synthetic image')}"


def _unsearched(found: Memorization) -> Iterator[str]:
    return (f"{modality}: not searched, {reason}" for modality, reason in found.unsearched.items())


def _passing(limit: Threshold) -> str:
    share = limit.false_positives
    said = f"{share['value']:.1%} [{share['low']:.1%}, {share['high']:.1%}] of honest images"
    unsure = f"; of {limit.patients} patients, too few to be sure of that" if limit.is_uncertain else ""
    return f"threshold {limit.score:.1f}, passed by {said} of patients that did not set it{unsure}"


def _nearer(control: Control | None) -> Iterator[str]:
    if control is not None:
        yield (
            f"nearer to the {control.trained} patients of the training data than to {control.controls} controls: "
            f"p = {control.p:.3f}, z = {control.z:.1f} (one copied patient alone could not bring p below "
            f"{control.smallest_p:.2f})"
        )


def write(directory: Path, found: Memorization, real: Mapping[str, Picture], synthetic: Mapping[str, Picture]) -> None:
    """Write everything into a folder: copies.json, exclude.csv, and pairs of pictures.

    Args:
        directory: is made if it is not there.
        found: the result.
        real: every real image by its name.
        synthetic: every synthetic one.
    """
    disk.make_directory(directory)
    disk.write_json(directory / RESULTS, found.as_dict())
    disk.write_atomic(directory / EXCLUDE, exclude_table(found.findings))
    pairs = {
        _PAIRS: [(synthetic[one.name], real[one.source]) for one in found.findings],
        _HONEST: [(real[one], real[other]) for one, other, _ in found.nearest_honest if one and other],
    }
    for name, chosen in pairs.items():
        (directory / name).unlink(missing_ok=True)
        if chosen:
            sheet = side_by_side([(one.pixels, other.pixels) for one, other in chosen[:_SHOWN]])
            disk.write_atomic(directory / name, sheet)


def exclude_table(findings: Iterable[Finding]) -> str:
    """A CSV of the synthetic files, their sources, the kind of evidence and the scores."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("file", "source", "evidence", "score"))
    writer.writerows((one.name, one.source, f"{one.kind} ({one.evidence})", f"{one.score:.3f}") for one in findings)
    return stream.getvalue()


def side_by_side(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """A PNG with a pair of pictures, uint8 [S, S], in each row."""
    sheet = Image.new("L", (2 * _SIDE + _GAP, max(1, len(pairs)) * (_SIDE + _GAP) - _GAP), 128)
    for row, pair in enumerate(pairs):
        for column, pixels in enumerate(pair):
            fitted = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
            sheet.paste(fitted, (column * (_SIDE + _GAP), row * (_SIDE + _GAP)))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()
