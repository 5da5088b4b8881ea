"""The specification's flags for a single prompt, and what was given with them or by environment variables."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from medsyn.config import Precision
from medsyn.data.prompt_formats import meant_column
from medsyn.errors import InputError
from medsyn.solvers import SchedulerName

_ENVIRONMENT = {"prompt": "BASE_PROMPT", "img_num": "NUM_IMAGES", "output_dir": "E2E_OUTPUT_DIR"}
_WHOLE = ("img_num", "num_inference_steps", "height", "width", "batch_size", "seed", "max_attempts")
_NUMBERS = ("guidance_scale", "quality_threshold")
_FLAG_OF_COLUMN = {"n": "--img_num"}  # columns of prompt lists that have other names than their flags


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
        if close := difflib.get_close_matches(name, flags, n=1, cutoff=0.8):
            return close[0]
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


def given(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, str]]:
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
