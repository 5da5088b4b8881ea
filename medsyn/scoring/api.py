"""`medsyn.score`: scores of images from Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from medsyn.errors import InputProblems, Problem
from medsyn.modality_names import MODALITIES, canonical_name
from medsyn.scoring.captions import read_captions
from medsyn.scoring.find import find_images
from medsyn.scoring.load import load_scorers
from medsyn.scoring.score import ScoredImage, score_images


def score(
    images: str | Path | Iterable[str | Path],
    selector: str | Path,
    policy: str | Path | None = None,
    *,
    prompts: str | Path | None = None,
    modality: str | None = None,
    model: str | Path | None = None,
    device: str = "auto",
    problems: list[Problem] | None = None,
) -> Iterator[ScoredImage]:
    """Score images that are there, whoever made them.

    Args:
        images: files, folders or patterns; PNG, JPEG, DICOM or NIfTI.
        selector: directory of a trained Selector.
        policy: directory of a trained Policy.
        prompts: what the images show, for the Policy: a text for all of them, or a table of them. Images that medsyn
            made know it themselves.
        modality: of images of which neither the table nor their file says it.
        model: whose text encoder the Policy was trained with, as `model_paths.stable_diffusion`; by default that of the
            campaign that the Policy is in.
        device: `auto` (the first visible GPU if there is one), `cpu` or `cuda:N`.
        problems: files that cannot be read are added here, and nothing is raised for them.

    Returns:
        Images in order, as they are scored; memory holds a few at a time.

    Raises:
        InputProblems: everything that is wrong with the arguments, by the call itself; and without `problems`,
            when all others are scored, everything that is wrong with the images.
        InputError: weights that exist but cannot be read.
        BadNode: a GPU was assigned to this process but cannot be used.
    """
    given = [images] if isinstance(images, (str, Path)) else list(images)
    found: list[Problem] = []
    files = find_images(given, found)
    try:
        name = None if modality is None else canonical_name(modality)
    except ValueError as error:
        raise InputProblems([*found, Problem("modality", f"{modality!r:.100} {error}")]) from None
    scorers = load_scorers(selector, policy, model, device)
    captions = read_captions(prompts, name, scorers.card.modalities or MODALITIES, found)

    def scored() -> Iterator[ScoredImage]:
        yield from score_images(scorers, files, captions, found)
        if problems is not None:
            problems.extend(found)
        elif errors := [problem for problem in found if problem.severity == "error"]:
            raise InputProblems(errors)

    return scored()
