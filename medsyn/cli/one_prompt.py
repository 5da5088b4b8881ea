"""medsyn generate --prompt ...: images of one prompt in a directory, with the specification's flags."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

from medsyn.arms import filters
from medsyn.campaign.state import locks
from medsyn.cli import app
from medsyn.cli.image_folder import ImageFolder, check_folder, make_folder
from medsyn.config import Precision, is_unicode
from medsyn.data.prompts.formats import meant_column
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_NO_PROGRESS, InputError, InputProblems, Problem
from medsyn.generation.api.defaults import campaign_of, models_of
from medsyn.generation.api.options import OPTIONS, mode_of
from medsyn.generation.block_store import MANIFEST
from medsyn.schedulers import SchedulerName
from medsyn.stage import BadNode
from medsyn.text import closest

if TYPE_CHECKING:
    from medsyn.generation.api.generator import Generator
    from medsyn.generation.api.prompts import Wanted


# --- the command ----------------------------------------------------------------------------------------------------


def generate(program: str, arguments: Sequence[str]) -> int:
    """Make images of one prompt, with names that say what they are, and a contact sheet of them."""
    given, sources = given_flags(parser(program).parse_args(arguments))
    try:
        wanted, output, generator = _check(given, sources)
        return _make(generator, wanted, output)
    except BadNode as error:
        print(error)
        return EXIT_BAD_NODE


def _check(given: Mapping[str, Any], sources: Mapping[str, str]) -> tuple[Wanted, Path, Generator]:
    """The prompt, the output directory and the generator, once all arguments are valid.

    Raises:
        InputProblems: everything wrong, each by its flag or environment variable.
    """
    from medsyn.generation.api.arguments import given_settings
    from medsyn.generation.api.generator import Generator
    from medsyn.generation.api.prompts import check_prompts
    from medsyn.generation.evidence import doubts
    from medsyn.generation.write.provenance import quality_threshold

    problems: list[Problem] = []
    settings, selector, wanted = None, None, None
    unreadable = [name for name, value in given.items() if name != "prompts" and not is_unicode(str(value))]
    problems += [Problem(sources[name], f"{ascii(given[name])[:100]} is not Unicode text") for name in unreadable]
    given = {name: value for name, value in given.items() if name not in unreadable}
    with _collect(problems, sources):
        asked = given.get("prompts"), 1, given.get("modality")
        given = {**given, **models_of(of_generator(given), lambda config: check_prompts(*asked, config)[0][0].modality)}
    with _collect(problems, sources):
        chosen = given_settings(of_generator(given))
        settings, selector = chosen.config, chosen.selector
    if "prompts" in given:
        with _collect(problems, sources):
            asked = given["prompts"], given.get("count", 1), given.get("modality")
            (wanted,), warnings = check_prompts(*asked, settings)
            if settings is not None and selector is not None:
                quality_threshold(settings, selector, wanted.modality)
                doubted = "; ".join(doubts(settings, selector, wanted.modality))
                if doubted:
                    warnings.append(Problem("selector", f"{selector}: {doubted}", severity="warning"))
    else:
        reason = "there is no prompt; give a text such as 'Chest X-ray: clear lungs'"
        problems.append(Problem(sources["prompts"], reason))
    if "output_dir" in given:
        with _collect(problems, sources):
            check_folder(given["output_dir"])
    if problems or wanted is None:
        raise InputProblems(dict.fromkeys(problems))
    app.show_problems(replace(one, source=sources.get(one.source, one.source)) for one in warnings)
    if directory := campaign_of(of_generator(given))[0]:
        print(f"what is not given is as in the campaign {directory}", file=sys.stderr)
    output = make_folder(Path(given["output_dir"]), sources["output_dir"])
    return wanted, output, Generator(**of_generator(given))


@contextmanager
def _collect(problems: list[Problem], sources: Mapping[str, str]) -> Iterator[None]:
    """Collect what is wrong with an argument under the name by which the user gave it."""
    try:
        yield
    except (InputError, InputProblems) as error:
        problems += (replace(one, source=sources.get(one.source, one.source)) for one in error.problems)


def of_generator(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `medsyn.Generator` among what was given."""
    count, candidates = given.get("count", 1), given.get("num_candidates", 3) if filters(mode_of(given)) else 1
    together = min(max(count * candidates, 1), 8) if isinstance(count, int) and isinstance(candidates, int) else 1
    of_images = {"prompts", "count", "modality", *(["finetuned"] if given["use_pretrained_only"] else [])}
    return {"batch_size": together} | {name: given[name] for name in OPTIONS if name in given and name not in of_images}


def _make(generator: Generator, wanted: Wanted, output: Path) -> int:
    """Add the images, their records and a contact sheet to what the directory has; return the exit code."""
    made = 0
    with locks.exclusive(output / MANIFEST, of=output):
        folder = ImageFolder(output)
        first = generator.next_replicate(wanted, folder.records)
        wanted = replace(wanted, item=replace(wanted.item, replicate=first))
        for number, image in enumerate(generator.images_of([wanted])):
            file = folder.add(image)
            made += file is not None
            print(file or f"image {number + 1}: none of {image.record['attempts']} candidates passed", flush=True)
        if sheet := folder.update_sheet():
            print(sheet)
    return EXIT_DONE if made == wanted.count else EXIT_NO_PROGRESS


# --- the flags ------------------------------------------------------------------------------------------------------

# argument: metavar of its flag, and help
_HELP = {
    "prompts": ("PROMPT", "what the images show (BASE_PROMPT)"),
    "model": ("MODEL", "`embedded` (the default), a diffusers directory or a hub id (MODEL_NAME)"),
    "finetuned": ("DIR", "directory with a fine-tuned unet/, or a campaign: its own of the prompt's modality"),
    "device": ("DEVICE", "auto (the default), cpu or cuda:N (DEVICE)"),
    "precision": ("PRECISION", f"{', '.join(get_args(Precision))}; auto by default"),
    "count": ("N", "images (NUM_IMAGES; 1)"),
    "num_inference_steps": ("N", "25 by default"),
    "height": ("PIXELS", "256; 64 for the embedded model, which was trained at that"),
    "width": ("PIXELS", "the height by default"),
    "scheduler": ("SCHEDULER", f"{', '.join(get_args(SchedulerName))}; dpm by default"),
    "guidance_scale": ("X", "7.5 by default; 1 turns guidance off"),
    "negative_prompt": ("TEXT", "what to steer away from"),
    "batch_size": ("N", "candidates denoised together (as many as needed, at most 8)"),
    "seed": ("N", "0 by default"),
    "modality": ("MODALITY", "one of the five, or of the campaign's, unless the prompt starts with it"),
    "selector": ("DIR", "filter: a trained Selector, or a campaign: that of the prompt's modality"),
    "policy": ("DIR", "filter: a trained Policy, or a campaign"),
    "quality_threshold": ("X", "filter: lowest Selector score of an accepted image (auto: the Selector's own)"),
    "min_policy_score": ("X", "filter: lowest Policy score of an accepted image (none)"),
    "num_candidates": ("N", "filter: passing candidates, of which the best by Policy score is kept (3)"),
    "max_attempts": ("N", "filter: most candidates per image (10)"),
}
_NUMBERS = ("N", "X", "PIXELS")  # metavars
_ENVIRONMENT = {
    "prompts": "BASE_PROMPT",
    "count": "NUM_IMAGES",
    "model": "MODEL_NAME",
    "device": "DEVICE",
    "output_dir": "E2E_OUTPUT_DIR",
}
_FLAG_OF_COLUMN = {"n": "--img_num"}  # prompt-list columns whose flags have another name


def parser(program: str) -> _Parser:
    """The specification's flags, and some more. All are text, None where not given: `generate` checks them."""
    made = _Parser(prog=program, description="Make images of one prompt.", allow_abbrev=False)
    for argument, (metavar, text) in _HELP.items():
        made.add_argument(str(OPTIONS[argument].flag), dest=argument, metavar=metavar, help=text)
    made.add_argument("--fast", action="store_const", const=True, help="a third of the work, by what changes little")
    made.add_argument("--use_pretrained_only", action="store_true", help="ignore --model_used")
    made.add_argument("--output_dir", metavar="DIR", help="output directory (E2E_OUTPUT_DIR; generated_images)")
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
    sources = {name: str(OPTIONS[name].flag) if name in OPTIONS else f"--{name}" for name in vars(args)}
    for name, variable in _ENVIRONMENT.items():
        if name not in values and os.environ.get(variable):
            values[name], sources[name] = os.environ[variable], f"environment variable {variable}"
    values = {"count": "1", "output_dir": "generated_images"} | values
    numbers = [name for name, (metavar, _) in _HELP.items() if metavar in _NUMBERS and name in values]
    return values | {name: _number(values[name]) for name in numbers}, sources


def _number(text: str) -> int | float | str:
    """The number that a text stands for; any other text is returned as it is, for the checks to report."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class _Parser(argparse.ArgumentParser):
    """Reports wrong flags in one line, and suggests a flag for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        """End the program as argparse does, without the usage."""
        other, _, unknown = message.partition("unrecognized arguments: ")
        hints = [meant for word in unknown.split() if (meant := self.meant(word))] if not other else []
        hint = f"; did you mean {', '.join(hints)}?" if hints else ""
        self.exit(app.EXIT_USAGE, f"{self.prog}: {message}{hint}\n")

    def meant(self, word: str) -> str | None:
        """The flag that a misspelt word most likely stands for."""
        name = word.partition("=")[0]
        if not name.startswith("--"):
            return None
        flags = self.flags()
        if close := closest(name, flags, cutoff=0.8):
            return close
        column = meant_column(name)  # prompt lists name some of the same settings differently
        flag = _FLAG_OF_COLUMN.get(column, f"--{column}") if column else None
        return flag if flag in flags else None

    def flags(self) -> set[str]:
        """All flags but --help."""
        return {flag for action in self._actions for flag in action.option_strings} - {"-h", "--help"}
