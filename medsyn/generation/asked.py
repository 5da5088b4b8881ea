"""The prompts that a `medsyn.Generator` is asked for, held to what the rows of a prompt list are held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from medsyn.config import MOST_IMAGES, Config
from medsyn.data.modalities import canonical_modality, not_a_modality
from medsyn.data.prompts import PromptRow, read_texts
from medsyn.errors import Problem
from medsyn.generation.arguments import Found
from medsyn.generation.shard import Item
from medsyn.solvers import wrong_steps


def check_prompts(
    prompts: Any, count: Any, modality: Any, settings: Config | None = None
) -> tuple[list[PromptRow | Item], list[Problem]]:
    """The prompts that are meant, and the warnings about them.

    Args:
        prompts: a text, an item, or several of them.
        count: images of each text.
        modality: of those that do not start with theirs; None if all do.
        settings: what the items' numbers of steps must fit.

    Raises:
        InputProblems: everything that is wrong with them, each by the name of its argument.
    """
    found = Found()
    name = None
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_IMAGES:
        found.add("count", f"a whole number from 1 to {MOST_IMAGES}, got {count!r:.100}")
    if modality is not None:
        name = canonical_modality(modality) if isinstance(modality, str) else None
        if name is None:
            found.add("modality", f"{modality!r:.100} {not_a_modality(str(modality))}")
    alone = isinstance(prompts, (str, Item))
    if isinstance(prompts, (bytes, bytearray, memoryview)):
        found.add("prompts", f"a text, an Item or several of them, got bytes, not text: {bytes(prompts[:80])!r}")
        prompts = []
    try:
        asked = [prompts] if alone else list(prompts)
    except TypeError:
        found.add("prompts", f"a text, an Item or several of them, got {prompts!r:.100}")
        asked = []
    if not asked and not found.problems:
        found.add("prompts", "there are none")
    warnings: list[Problem] = []
    rows: dict[int, PromptRow | Item] = dict(_texts(found, asked, name, alone, warnings))
    for place, prompt in enumerate(asked):
        argument = _place(place, alone)
        if isinstance(prompt, Item):
            rows[place] = prompt
            _check_item(found, argument, prompt, name, settings)
        elif not isinstance(prompt, str):
            found.add(argument, f"a text or an Item, got {prompt!r:.100}")
    if modality is not None and name is None:  # every prompt without a prefix would be told, too
        found.problems = [one for one in found.problems if "names no modality" not in one.reason]
    found.require_none()
    return [rows[place] for place in sorted(rows)], warnings


def _place(number: int, alone: bool) -> str:
    return "prompts" if alone else f"prompts[{number}]"


def _texts(
    found: Found, asked: list[Any], modality: str | None, alone: bool, warnings: list[Problem]
) -> Iterator[tuple[int, PromptRow]]:
    """The good ones of the texts, by their place in `asked`."""
    places = [place for place, prompt in enumerate(asked) if isinstance(prompt, str)]
    rows, problems = read_texts("prompts", [{"prompt": asked[place]} for place in places], modality)
    for problem in problems:
        place = _place(places[(problem.row or 1) - 1], alone)
        kept = warnings if problem.severity == "warning" else found.problems
        kept.append(replace(problem, source=place, row=None, key=None))
    return ((places[row.row - 1], row) for row in rows)


def _check_item(found: Found, argument: str, item: Item, modality: str | None, settings: Config | None) -> None:
    """Hold an item to what a row of a prompt list is held to."""
    record = {
        "id": item.prompt_id,
        "prompt": item.prompt,
        "seed": item.seed,
        "num_inference_steps": item.num_inference_steps,
        "guidance_scale": item.guidance_scale,
        "negative_prompt": item.negative_prompt,
        **item.extra,
    }
    _, problems = read_texts(argument, [record], modality)
    found.problems += [replace(one, row=None) for one in problems if one.severity == "error"]
    if not item.prompt_id:
        found.add(argument, "prompt_id is empty")
    if not isinstance(item.replicate, int) or item.replicate < 0:
        found.add(argument, f"replicate is a whole number from 0 on, got {item.replicate!r:.100}")
    if settings is not None and not problems and item.num_inference_steps is not None:
        reason = wrong_steps(settings.generation.scheduler, item.num_inference_steps)
        if reason:
            found.add(argument, reason)
