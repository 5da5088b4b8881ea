"""Copies of training images among a campaign's images: the search, and what the report says of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from medsyn.config import Config
from medsyn.evaluation.contact_sheets import data_uri
from medsyn.evaluation.generated import Picture, Tick
from medsyn.evaluation.memorization import results, search
from medsyn.evaluation.memorization.assess import Effort, assess
from medsyn.evaluation.read_campaign import Gathered
from medsyn.evaluation.report_tables import ReportTable, TableCell
from medsyn.stage import slug

_SHOWN = 12  # pairs of pictures in the report


def measure(config: Config, gathered: Gathered, directory: Path, tick: Tick) -> dict[str, Any]:
    """Search the images of every arm that samples with trained weights; writes tables and pictures into a folder.

    Args:
        config: the campaign's.
        gathered: its images.
        directory: for exclude.csv and the rest.
        tick: called before each image is looked at.
    """
    section = config.evaluation
    trained, controls = (
        [_searched(picture) for picture in pictures] for pictures in (gathered.real.training, gathered.real.held_out)
    )
    modes = [arm.mode for arm in config.arms if arm.weights != "pretrained"]
    synthetic = [_searched(picture, name) for name, picture in _generated(gathered, modes)]
    effort = Effort(section.copies_honest, section.copies_planted)
    found = assess(trained, controls, synthetic, config.campaign.seed, effort, tick)
    results.write(directory, found, _by_name(trained) | _by_name(controls), _by_name(synthetic))
    return found.as_dict() | {
        "patients_known": gathered.real.patients_known,
        "sentences": list(results.sentences(found)),
    }


def _generated(gathered: Gathered, modes: list[str]) -> Iterator[tuple[str, Picture]]:
    """(name, picture) of generated images; the name is the path below the campaign's work/generate."""
    for modality, made in gathered.made.items():
        for mode in modes:
            for picture in made[mode].pictures if mode in made else ():
                yield f"{mode}/{slug(modality)}/{picture.name}", picture


def _searched(picture: Picture, name: str | None = None) -> search.Picture:
    grey = picture.stored[..., 0] if picture.stored.shape[2] == 1 else picture.stored
    return search.Picture(name or picture.name, picture.modality, grey, picture.patient)


def _by_name(pictures: list[search.Picture]) -> dict[str, search.Picture]:
    return {picture.name: picture for picture in pictures}


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What was found; nothing if it was not searched for."""
    if not found:
        return []
    unknown = "The data set has no column of patients: each image counts as a patient's own."
    return [*found["sentences"], *([] if found["patients_known"] else [unknown])]


def planted(found: Mapping[str, Any]) -> ReportTable:
    """How many of the copies planted on purpose the search found."""
    rows = [
        [
            TableCell(kind),
            TableCell(f"{its['value']:.2f}", f"{its['low']:.2f} to {its['high']:.2f}"),
            TableCell(str(its["n"])),
        ]
        for kind, its in (found.get("recall") or {}).items()
        if its
    ]
    return ReportTable(["copies planted on purpose", "found", "n"], rows)


def pairs(found: Mapping[str, Any], gathered: Gathered) -> list[tuple[str, str, str]]:
    """(synthetic image, its source, what it is) of the surest copies; the images as data URIs."""
    real = {one.name: one for one in chain(gathered.real.training, gathered.real.held_out)}
    modes = sorted({mode for made in gathered.made.values() for mode in made})
    made = dict(_generated(gathered, modes))
    return [
        (
            data_uri(made[one["name"]].pixels),
            data_uri(real[one["source"]].pixels),
            f"{one['name']}: {one['kind']} ({one['score']:.1f})",
        )
        for one in found.get("copies", [])[:_SHOWN]
    ]
