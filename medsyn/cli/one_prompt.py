"""python -m medsyn generate --prompt ...: images of one prompt into a folder, with the specification's flags."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from medsyn import disk
from medsyn.cli import app
from medsyn.config import EMBEDDED, Precision, is_unicode
from medsyn.data.modalities import split_prefix
from medsyn.data.prompts.formats import meant_column
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_NO_PROGRESS, InputError, InputProblems, Problem
from medsyn.generation.block_store import MANIFEST
from medsyn.schedulers import SchedulerName
from medsyn.stage import BadNode
from medsyn.text import closest

if TYPE_CHECKING:
    import numpy as np

    from medsyn.data.prompts.rows import PromptRow
    from medsyn.generation.api.generator import Generator


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

_ENVIRONMENT = {"prompt": "BASE_PROMPT", "img_num": "NUM_IMAGES", "output_dir": "E2E_OUTPUT_DIR"}
_WHOLE = ("img_num", "num_inference_steps", "height", "width", "batch_size", "seed", "max_attempts")
_NUMBERS = ("guidance_scale", "quality_threshold")
_FLAG_OF_COLUMN = {"n": "--img_num"}  # columns of prompt lists that have other names than their flags

SHEET = "contact_sheet.png"
SHEET_IMAGES = 100  # at most; of more images the first
_CAMPAIGNS = ("campaign.json", "ledger.jsonl")


def generate(program: str, arguments: Sequence[str]) -> int:
    """Make images of one prompt, with names that say what they are, and a contact sheet of them."""
    given, sources = given_flags(parser(program).parse_args(arguments))
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
    from medsyn.generation.api.arguments import check_prompts, check_settings

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
        check(lambda: check_folder(given["output_dir"]))
    if problems:
        raise InputProblems(dict.fromkeys(problems))
    (row,), warnings = found
    app.show_problems(replace(one, source=_source(one.source, sources)) for one in warnings)

    from medsyn.generation.api.generator import Generator

    output = make_folder(Path(given["output_dir"]), sources["output_dir"])
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
        name = file_name(row.prompt, row.modality, number, image.record)
        image.save(output / name)
        disk.append_jsonl(output / MANIFEST, {**image.record, "file": name})
        made += 1
        shown += [image.pixels] if made <= SHEET_IMAGES else []
        print(output / name)
    if shown:
        disk.write_atomic(output / SHEET, contact_sheet(shown))
        print(output / SHEET)
    return EXIT_DONE if made == count else EXIT_NO_PROGRESS


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with the flags in one line, and which flag a misspelt one was meant to be."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError."""
        told, _, unknown = message.partition("unrecognized arguments: ")
        hints = [meant for word in unknown.split() if (meant := self.meant(word))] if not told else []
        raise InputError("command line", message + (f"; did you mean {', '.join(hints)}?" if hints else ""))

    def meant(self, word: str) -> str | None:
        """The flag that a word which is none was most likely meant to be."""
        name = word.partition("=")[0]
        if not name.startswith("--"):
            return None
        flags = self.flags()
        if close := closest(name, flags, cutoff=0.8):
            return close
        column = meant_column(name)  # prompt lists have other names for some of the same settings
        flag = _FLAG_OF_COLUMN.get(column, f"--{column}") if column else None
        return flag if flag in flags else None

    def flags(self) -> set[str]:
        """All flags but --help."""
        return {flag for action in self._actions for flag in action.option_strings} - {"-h", "--help"}


def parser(program: str) -> _Parser:
    """The specification's flags, and those it lacks. All are text, and None where not given: `generate` checks them."""
    made = _Parser(prog=program, description="Make images of one prompt.", allow_abbrev=False)
    add = made.add_argument
    add("--prompt", help="what to show (BASE_PROMPT)")
    add("--pretrained_model", metavar="MODEL", help="`embedded` (the default), a diffusers directory or a hub id")
    add("--model_used", metavar="DIR", help="directory with a fine-tuned unet/")
    add("--use_pretrained_only", action="store_true", help="leave --model_used out")
    add("--device", help="auto (the default), cpu or cuda:N")
    add("--precision", help=f"{', '.join(get_args(Precision))}; auto by default")
    add("--img_num", metavar="N", help="images (NUM_IMAGES; 1)")
    add("--num_inference_steps", metavar="N", help="25 by default")
    add("--output_dir", metavar="DIR", help="(E2E_OUTPUT_DIR; generated_images)")
    add("--height", metavar="PIXELS", help="256; 64 for the embedded model, which was trained at that")
    add("--width", metavar="PIXELS", help="the height by default")
    add("--scheduler", help=f"{', '.join(get_args(SchedulerName))}; dpm by default")
    add("--guidance_scale", metavar="X", help="7.5 by default; 1 is without guidance")
    add("--negative_prompt", metavar="TEXT", help="what to steer away from")
    add("--batch_size", metavar="N", help="candidates denoised together (the images, at most 8)")
    add("--seed", metavar="N", help="0 by default")
    add("--modality", help="one of the five, if the prompt does not start with it")
    add("--selector_checkpoint", metavar="DIR", help="filter: a trained Selector")
    add("--policy_checkpoint", metavar="DIR", help="filter: a trained Policy")
    add("--quality_threshold", metavar="X", help="filter: Selector score that an image needs (0.6)")
    add("--max_attempts", metavar="N", help="filter: candidates per image at most (10)")
    return made


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `generate` ask for a single prompt, not for a task of a campaign."""
    flags = parser("")
    return any(flags.meant(argument) for argument in arguments) or (
        not arguments and bool(os.environ.get("BASE_PROMPT"))
    )


def given_flags(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that were given, and where each came from: its flag, or an environment variable that is not empty."""
    values = {name: value for name, value in vars(args).items() if value is not None}
    sources = {name: f"--{name}" for name in vars(args)}
    for name, variable in _ENVIRONMENT.items():
        if name not in values and os.environ.get(variable):
            values[name], sources[name] = os.environ[variable], f"environment variable {variable}"
    values = {"img_num": "1", "output_dir": "generated_images"} | values
    numbers = {name: _number(values[name]) for name in (*_WHOLE, *_NUMBERS) if name in values}
    return values | numbers, sources


def _number(text: str) -> int | float | str:
    """The number that a text is; what is none stays a text, and the checks tell."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_folder(name: str) -> None:
    """Raise InputError if images cannot go there: a campaign's folder, one with other images, one not to be written."""
    source, directory = "output_dir", Path(name)
    if not name.strip():
        raise InputError(source, f"a directory, got {name!r}")
    try:
        folders = (directory.absolute(), *directory.absolute().parents)
        for folder in folders:
            if any((folder / name).exists() for name in _CAMPAIGNS):
                reason = f"{directory} is a campaign's directory, or in one ({folder}); take another folder"
                raise InputError(source, reason)
        if (directory / MANIFEST).exists():
            reason = f"{directory} holds the images of another run ({MANIFEST}); take another folder"
            raise InputError(source, reason)
        existing = next(folder for folder in folders if folder.exists())
    except OSError as error:
        raise InputError(source, f"{directory!s:.100} cannot be written: {error.strerror}") from None
    if not existing.is_dir():
        raise InputError(source, f"{directory} cannot be written: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(source, f"{directory} cannot be written: {existing} may not be written to")


def make_folder(directory: Path, source: str) -> Path:
    """The output folder, made; refused if nothing can be written to it (a full disk, a read-only file system)."""
    try:
        disk.make_directory(directory.absolute())
        disk.write_atomic(directory / ".writable", "")
        (directory / ".writable").unlink()
    except OSError as error:
        raise InputError(source, f"{directory} cannot be written: {error.strerror}") from None
    return directory


def file_name(prompt: str, modality: str, number: int, record: Mapping[str, Any]) -> str:
    """The specification's names: `chest_xray_0.png`, filtered `Brain_MRI_1_selector_0.85_policy_0.92.png`."""
    said = prompt.partition(":")[0] if split_prefix(prompt)[0] else modality
    words = re.sub(r"[^A-Za-z0-9]+", "_", said.replace("-", "")).strip("_")
    if record["selector"] is None:
        return f"{words.lower()}_{number}.png"
    return f"{words}_{number + 1}_selector_{record['selector']:.2f}_policy_{record['policy']:.2f}.png"


def contact_sheet(pictures: Sequence[np.ndarray]) -> bytes:
    """All pictures, uint8 [H, W, C], in a grid about as wide as high; it carries the mark, too."""
    import numpy as np

    from medsyn.generation.write.png import encode_png

    columns = math.ceil(math.sqrt(len(pictures)))
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return encode_png(np.concatenate(rows), {"Contact sheet": f"{len(pictures)} images"})
