"""The prompts passed to a `medsyn.Generator`, checked by the same rules as the rows of a prompt list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medsyn.config import MOST_IMAGES, Config
from medsyn.data.modalities import read_prefix
from medsyn.data.prompts.rows import PromptRow, read_texts
from medsyn.data.tables.token_count import TokenCount
from medsyn.errors import InputProblems, Problem
from medsyn.generation.api.options import modality_of
from medsyn.generation.block_store import Item
from medsyn.modality_names import MODALITIES, most_specific
from medsyn.models.tokenizer import token_count
from medsyn.schedulers import wrong_steps


@dataclass(frozen=True)
class Wanted:
    """A request for images of one prompt."""

    item: Item  # the first of them
    modality: str
    count: int = 1

    def items(self) -> Iterator[Item]:
        """An item per image; a text gives the items that a campaign makes of such a row, so the images are the same."""
        return (replace(self.item, replicate=self.item.replicate + number) for number in range(self.count))


def check_prompts(
    prompts: Any, count: Any, modality: Any, settings: Config | None = None, only: str | None = None
) -> tuple[list[Wanted], list[Problem]]:
    """Resolve prompts to requested images, and collect the warnings about them.

    Args:
        prompts: a text, an item, or an iterable of them.
        count: images of each text.
        modality: of prompts that do not start with one; None if all do.
        settings: whose scheduler the items' numbers of steps must fit, and whose modalities a prompt may be of besides
            the five: `Brain MRI`.
        only: the one modality that can be generated; the default of prompts that name none.

    Raises:
        InputProblems: everything wrong with them, each problem named by its argument.
    """
    found: list[Problem] = []
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST_IMAGES:
        found.append(Problem("count", f"must be a whole number from 1 to {MOST_IMAGES}, got {count!r:.100}"))
    modalities = (*MODALITIES, *(settings.data.modalities if settings else ()))
    name = only if modality is None else modality_of(found, modality, modalities)
    if only is not None and name not in (None, only):
        found.append(Problem("modality", f"{modality!r} was requested, but this generator's models are for {only}"))
    asked = _several(found, prompts)
    places = ["prompts" if isinstance(prompts, (str, Item)) else f"prompts[{place}]" for place in range(len(asked))]
    rows, of_prompts = _texts(asked, places, name, modalities, _counted(settings))
    for place, prompt in zip(places, asked, strict=True):
        if isinstance(prompt, Item):
            of_prompts += _wrong_with(place, prompt, name, settings, modalities)
        elif not isinstance(prompt, str):
            of_prompts.append(Problem(place, f"must be a string or an Item, got {prompt!r:.100}"))
    if modality is not None and name is None:  # else every prompt without a prefix would be reported, too
        of_prompts = [problem for problem in of_prompts if "names no modality" not in problem.reason]
    found += [problem for problem in of_prompts if problem.severity == "error"]
    if found:
        raise InputProblems(dict.fromkeys(found))
    wanted = [
        Wanted(prompt, name or _modality_of(prompt.prompt, modalities))
        if isinstance(prompt, Item)
        else Wanted(Item(rows[place].prompt_id, rows[place].prompt, 0), rows[place].modality, count)
        for place, prompt in zip(places, asked, strict=True)
    ]
    return wanted, [problem for problem in of_prompts if problem.severity == "warning"]


def _counted(settings: Config | None) -> TokenCount | None:
    """How long a prompt may be, where the model reads longer ones; an estimate for the usual length does otherwise."""
    if settings is None or settings.data.chunks == 1:
        return None
    return token_count(settings.model_paths.stable_diffusion, settings.data.chunks)


def _several(found: list[Problem], prompts: Any) -> list[Any]:
    """One prompt or several as a list."""
    if isinstance(prompts, (str, Item)):
        return [prompts]
    got = f"{prompts!r:.100}"
    if isinstance(prompts, (bytes, bytearray, memoryview)):
        got = f"bytes, not a string: {bytes(prompts[:80])!r}"
    elif isinstance(prompts, Iterable):
        asked = list(prompts)
        if not asked:
            found.append(Problem("prompts", "must not be empty"))
        return asked
    found.append(Problem("prompts", f"must be a string, an Item or several of them, got {got}"))
    return []


def _texts(
    asked: Sequence[Any],
    places: Sequence[str],
    modality: str | None,
    modalities: Collection[str],
    tokens: TokenCount | None,
) -> tuple[dict[str, PromptRow], list[Problem]]:
    """The rows that the texts give, by their place, and every problem with the texts."""
    of_text = [place for place, prompt in zip(places, asked, strict=True) if isinstance(prompt, str)]
    texts = [{"prompt": prompt} for prompt in asked if isinstance(prompt, str)]
    rows, problems = read_texts("prompts", texts, modality, modalities, tokens)
    told = [replace(one, source=of_text[(one.row or 1) - 1], row=None, key=None) for one in problems]
    return {of_text[row.row - 1]: row for row in rows}, told


def _modality_of(prompt: str, modalities: Collection[str]) -> str:
    """The modality that a prompt which was found to be right starts with."""
    named, _ = read_prefix(prompt)
    return str(named and most_specific(named.modality, named.anatomies, modalities))


def _wrong_with(
    place: str, item: Item, modality: str | None, settings: Config | None, modalities: Collection[str]
) -> list[Problem]:
    """What is wrong with an item, by the same rules as for a row of a prompt list."""
    record = {
        "id": item.prompt_id,
        "prompt": item.prompt,
        "seed": item.seed,
        "num_inference_steps": item.num_inference_steps,
        "guidance_scale": item.guidance_scale,
        "negative_prompt": item.negative_prompt,
        **item.extra,
    }
    _, problems = read_texts(place, [record], modality, modalities)
    found = [replace(one, row=None) for one in problems if one.severity == "error"]
    if not item.prompt_id:
        found.append(Problem(place, "prompt_id is empty"))
    if not isinstance(item.replicate, int) or item.replicate < 0:
        found.append(Problem(place, f"replicate must be a whole number from 0 up, got {item.replicate!r:.100}"))
    steps = None if settings is None or problems else item.num_inference_steps
    if settings is not None and steps is not None and (reason := wrong_steps(settings.generation.scheduler, steps)):
        found.append(Problem(place, reason))
    return found
