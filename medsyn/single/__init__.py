"""python -m medsyn generate --prompt ...: images of one prompt into a folder, with the specification's flags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsyn import cli, disk
from medsyn.config import EMBEDDED, is_unicode
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_NO_PROGRESS, InputError, InputProblems, Problem
from medsyn.generation.shard import MANIFEST
from medsyn.single import flags, folder
from medsyn.single.flags import is_meant, parser
from medsyn.stage import BadNode

if TYPE_CHECKING:
    from medsyn.data.prompts import PromptRow
    from medsyn.generation.generator import Generator

__all__ = ["generate", "is_meant", "parser"]

# arguments of `medsyn.Generator` that have other names than their flags
_FLAG_OF = {
    "prompts": "prompt",
    "count": "img_num",
    "model": "pretrained_model",
    "finetuned": "model_used",
    "selector": "selector_checkpoint",
    "policy": "policy_checkpoint",
}


def generate(program: str, arguments: Sequence[str]) -> int:
    """Make images of one prompt, with names that say what they are, and a contact sheet of them."""
    given, sources = flags.given(parser(program).parse_args(arguments))
    try:
        row, output, generator = _check(given, sources)
        return _make(generator, row, given["img_num"], output)
    except BadNode as error:
        print(error)
        return EXIT_BAD_NODE


def _check(given: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[PromptRow, Path, Generator]:
    """The prompt, the folder and the generator, once all that was given is in order.

    Raises:
        InputProblems: everything wrong, each by its flag or environment variable.
    """
    from medsyn.generation.arguments import check_settings
    from medsyn.generation.asked import check_prompts

    problems: list[Problem] = []

    def check(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except (InputError, InputProblems) as error:
            problems.extend(replace(one, source=_source(one.source, sources)) for one in error.problems)

    texts = {name: value for name, value in given.items() if isinstance(value, str)}
    unreadable = [name for name, text in texts.items() if name != "prompt" and not is_unicode(text)]
    problems += [Problem(sources[name], f"{ascii(given[name])[:100]} is no Unicode text") for name in unreadable]
    given = {name: value for name, value in given.items() if name not in unreadable}
    arguments, generation = _settings(given)
    check(lambda: check_settings(arguments, generation))
    if "prompt" in given:
        found = check(lambda: check_prompts(given["prompt"], given.get("img_num", 1), given.get("modality")))
    else:
        reason = "there is nothing to show; give a text such as 'Chest X-ray: clear lungs'"
        problems.append(Problem(sources["prompt"], reason))
    if "output_dir" in given:
        check(lambda: folder.check(given["output_dir"]))
    if problems:
        raise InputProblems(dict.fromkeys(problems))
    (row,), warnings = found
    cli.show_problems(replace(one, source=_source(one.source, sources)) for one in warnings)

    from medsyn.generation.generator import Generator

    output = folder.make(Path(given["output_dir"]), sources["output_dir"])
    return row, output, Generator(**arguments, **generation)


def _settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of `medsyn.Generator` that the flags mean, and those of its `generation`."""
    count = given.get("img_num", 1)
    together = min(max(count, 1), 8) if isinstance(count, int) else 1
    sampling = ("num_inference_steps", "scheduler", "guidance_scale", "negative_prompt", "batch_size")
    filtering = ("quality_threshold", "max_attempts")
    arguments = {
        "model": given.get("pretrained_model", EMBEDDED),
        "finetuned": None if given["use_pretrained_only"] else given.get("model_used"),
        "selector": given.get("selector_checkpoint"),
        "policy": given.get("policy_checkpoint"),
        "device": given.get("device", "auto"),
        "precision": given.get("precision", "auto"),
        "height": given.get("height"),
        "width": given.get("width"),
        "seed": given.get("seed", 0),
    }
    generation = {name: given[name] for name in (*sampling, *filtering) if name in given}
    return arguments, {"batch_size": together, **generation}


def _source(argument: str, sources: Mapping[str, str]) -> str:
    """What the user wrote for an argument of the generator; what is none (a folder, say) as it is."""
    return sources.get(_FLAG_OF.get(argument, argument), argument)


def _make(generator: Generator, row: PromptRow, count: int, output: Path) -> int:
    """Write the images, their records and a contact sheet; return the exit code."""
    made, shown = 0, []
    for number, image in enumerate(generator.images_of([row], count)):
        if image.png is None or image.pixels is None:
            print(f"image {number + 1}: none of {image.record['attempts']} candidates passed")
            continue
        name = folder.file_name(row.prompt, row.modality, number, image.record)
        image.save(output / name)
        disk.append_jsonl(output / MANIFEST, {**image.record, "file": name})
        made += 1
        shown += [image.pixels] if made <= folder.SHEET_IMAGES else []
        print(output / name)
    if shown:
        disk.write_atomic(output / folder.SHEET, folder.contact_sheet(shown))
        print(output / folder.SHEET)
    return EXIT_DONE if made == count else EXIT_NO_PROGRESS
