"""python -m medsyn generate --prompt ...: images of one prompt into a folder, with the specification's flags."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from medsyn import disk
from medsyn.config import EMBEDDED, Precision
from medsyn.data.modalities import canonical_modality, not_a_modality, split_prefix
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE, EXIT_NO_PROGRESS, InputError
from medsyn.generation.shard import MANIFEST
from medsyn.solvers import SchedulerName
from medsyn.stage import BadNode

if TYPE_CHECKING:
    import numpy as np

    from medsyn.generation.generator import GeneratedImage

SHEET = "contact_sheet.png"
_CAMPAIGNS = ("campaign.json", "ledger.jsonl")


def parser(program: str) -> argparse.ArgumentParser:
    """The specification's flags, and those it lacks."""
    made = argparse.ArgumentParser(prog=program, description="Make images of one prompt.", allow_abbrev=False)
    add = made.add_argument
    add("--prompt", default=os.environ.get("BASE_PROMPT"), help="what to show (BASE_PROMPT)")
    add("--pretrained_model", default=EMBEDDED, metavar="MODEL", help="`embedded`, a diffusers directory or a hub id")
    add("--model_used", metavar="DIR", help="directory with a fine-tuned unet/")
    add("--use_pretrained_only", action="store_true", help="leave --model_used out")
    add("--device", default="auto", help="auto, cpu or cuda:N")
    add("--precision", default="auto", choices=get_args(Precision))
    add("--img_num", type=int, default=os.environ.get("NUM_IMAGES", 1), help="images (NUM_IMAGES)")
    add("--num_inference_steps", type=int, default=25)
    add("--output_dir", default=os.environ.get("E2E_OUTPUT_DIR", "generated_images"), help="(E2E_OUTPUT_DIR)")
    add("--height", type=int, help="pixels (256; 64 for the embedded model, which was trained at that)")
    add("--width", type=int, help="pixels (the height)")
    add("--scheduler", default="dpm", choices=get_args(SchedulerName))
    add("--guidance_scale", type=float, default=7.5)
    add("--negative_prompt", default="", help="what to steer away from")
    add("--batch_size", type=int, help="candidates denoised together (the images, at most 8)")
    add("--seed", type=int, default=0)
    add("--modality", help="one of the five, if the prompt does not start with it")
    add("--selector_checkpoint", metavar="DIR", help="filter: a trained Selector")
    add("--policy_checkpoint", metavar="DIR", help="filter: a trained Policy")
    add("--quality_threshold", type=float, default=0.6, help="filter: Selector score that an image needs")
    add("--max_attempts", type=int, default=10, help="filter: candidates per image at most")
    return made


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether the arguments of `generate` ask for a single prompt, not for a task of a campaign."""
    flags = {flag for action in parser("")._actions for flag in action.option_strings} - {"-h", "--help"}
    return any(argument.partition("=")[0] in flags for argument in arguments) or (
        not arguments and bool(os.environ.get("BASE_PROMPT"))
    )


def generate(program: str, arguments: Sequence[str]) -> int:
    """Make images of one prompt, with names that say what they are, and a contact sheet of them."""
    args = parser(program).parse_args(arguments)
    if not args.prompt or not args.prompt.strip():
        raise InputError("--prompt", "there is nothing to show; give a text such as 'Chest X-ray: clear lungs'")
    modality = _modality(args)
    output = _output(Path(args.output_dir))
    settings = _settings(args)

    from medsyn.generation.generator import Generator

    made: list[tuple[GeneratedImage, str]] = []
    try:
        generator = Generator(args.pretrained_model, **settings)
        for number, image in enumerate(generator.images(args.prompt, args.img_num, modality)):
            if image.png is None:
                print(f"image {number + 1}: none of {image.record['attempts']} candidates passed")
                continue
            name = file_name(args.prompt, modality, number, image.record)
            image.save(output / name)
            disk.append_jsonl(output / MANIFEST, {**image.record, "file": name})
            made.append((image, name))
            print(output / name)
    except BadNode as error:
        print(error)
        return EXIT_BAD_NODE
    if made:
        disk.write_atomic(output / SHEET, _sheet([image.pixels for image, _ in made if image.pixels is not None]))
        print(output / SHEET)
    return EXIT_DONE if len(made) == args.img_num else EXIT_NO_PROGRESS


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags mean for `medsyn.Generator`."""
    if args.img_num < 1:
        raise InputError("--img_num", f"at least 1, got {args.img_num}")
    return {
        "finetuned": None if args.use_pretrained_only else args.model_used,
        "selector": args.selector_checkpoint,
        "policy": args.policy_checkpoint,
        "device": _device(args.device),
        "precision": args.precision,
        "height": args.height,
        "width": args.width,
        "seed": args.seed,
        "scheduler": args.scheduler,
        "num_inference_steps": args.num_inference_steps,
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        "batch_size": args.batch_size or min(args.img_num, 8),
        "quality_threshold": args.quality_threshold,
        "max_attempts": args.max_attempts,
    }


def _modality(args: argparse.Namespace) -> str:
    if args.modality:
        modality = canonical_modality(args.modality)
        if modality is None:
            raise InputError("--modality", f"{args.modality!r} {not_a_modality(args.modality)}")
        return modality
    modality = split_prefix(args.prompt)[0]
    if modality is None:
        raise InputError("--prompt", "which modality? Let it start with one, as in 'CT: nodule', or give --modality")
    return modality


def _device(name: str) -> str:
    """`auto` or `cpu`; of `cuda:N` the N-th visible GPU becomes the only one, before torch looks."""
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        if name not in ("auto", "cpu"):
            raise InputError("--device", f"auto, cpu or cuda:N, got {name!r}")
        return name
    number, visible = int(match[1] or 0), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(number)] * (number + 1)
    if number >= len(names):
        raise InputError("--device", f"there is no {name}: CUDA_VISIBLE_DEVICES is {visible}")
    os.environ["CUDA_VISIBLE_DEVICES"] = names[number]
    return "auto"


def _output(directory: Path) -> Path:
    """The output folder, made; refused before any work if it is a campaign's or cannot be written."""
    for folder in (directory.absolute(), *directory.absolute().parents):
        if any((folder / name).exists() for name in _CAMPAIGNS):
            raise InputError(directory, f"is a campaign's directory, or in one ({folder}); take another --output_dir")
    if (directory / MANIFEST).exists():
        raise InputError(directory, f"holds the images of another run ({MANIFEST}); take another --output_dir")
    try:
        disk.make_directory(directory.absolute())
        disk.write_atomic(directory / ".writable", "")
        (directory / ".writable").unlink()
    except OSError as error:
        raise InputError(directory, f"cannot be written: {error.strerror}") from None
    return directory


def file_name(prompt: str, modality: str, number: int, record: Mapping[str, Any]) -> str:
    """The specification's names: `chest_xray_0.png`, filtered `Brain_MRI_1_selector_0.85_policy_0.92.png`."""
    said = prompt.partition(":")[0] if split_prefix(prompt)[0] else modality
    words = re.sub(r"[^A-Za-z0-9]+", "_", said.replace("-", "")).strip("_")
    if record["selector"] is None:
        return f"{words.lower()}_{number}.png"
    return f"{words}_{number + 1}_selector_{record['selector']:.2f}_policy_{record['policy']:.2f}.png"


def _sheet(pictures: Sequence[np.ndarray]) -> bytes:
    """All pictures, uint8 [H, W, C], in a grid about as wide as high; it carries the mark, too."""
    import numpy as np

    from medsyn.generation.provenance import encode_png

    columns = math.ceil(math.sqrt(len(pictures)))
    blank = np.zeros_like(pictures[0])
    padded = [*pictures, *[blank] * (-len(pictures) % columns)]
    rows = [np.concatenate(padded[start : start + columns], axis=1) for start in range(0, len(padded), columns)]
    return encode_png(np.concatenate(rows), {"Contact sheet": f"{len(pictures)} images"})
