"""Commands around campaigns: check, phantoms, pretrain, doctor."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.errors import EXIT_BAD_INPUT, EXIT_DONE, InputError, InputProblems, grouped
from medsyn.modality_names import MODALITIES
from medsyn.text import counted

if TYPE_CHECKING:
    from medsyn.doctor.diagnosis import Diagnosis


def check(program: str, arguments: Sequence[str]) -> int:
    """Read tables and every image they name; list everything that is wrong, and what they hold."""
    parser = argparse.ArgumentParser(prog=program, description=check.__doc__)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE", help="data set, ratings, pairs or prompt list")
    parser.add_argument("--root", type=Path, help="directory that paths in tables are relative to (the table's own)")
    parser.add_argument("--modality-column", default="modality", metavar="NAME", help="header of the modality column")
    parser.add_argument("--patient-column", metavar="NAME", help="header of the patients' column (recognised)")
    text = "directory that symbolic links may lead to; may be repeated"
    parser.add_argument("--linked-root", type=Path, action="append", default=[], metavar="DIR", help=text)
    text = "model whose tokenizer counts the tokens of texts, as in model_paths.stable_diffusion"
    parser.add_argument("--pretrained-model", metavar="DIR", help=text)
    text = "as data.modalities of the campaign, such as 'Brain MRI,Breast MRI' (the five)"
    parser.add_argument("--modalities", default=",".join(MODALITIES), metavar="NAME,...", help=text)
    parser.add_argument("--allow-synthetic", action="store_true", help="accept images marked as synthetic")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(arguments)

    from medsyn.cli import show_contents
    from medsyn.cli.prompts import named_modalities
    from medsyn.data.check import Reading, read_tables
    from medsyn.models.tokenizer import token_count

    tokens = token_count(args.pretrained_model) if args.pretrained_model else None
    if args.pretrained_model and tokens is None:
        raise InputError(args.pretrained_model, "has no tokenizer that can be read (tokenizer/vocab.json, merges.txt)")
    modalities, problems = named_modalities(args.modalities)
    if problems:
        raise InputProblems(problems)
    how = Reading(
        args.root,
        args.modality_column,
        args.patient_column,
        args.linked_root,
        modalities,
        args.allow_synthetic,
        tokens,
    )
    with app.progress_bars() as progress:
        report = partial(progress, "reading images")
        found = read_tables(args.tables, how, report)
    severities = Counter(problem.severity for problem in found.problems)
    if args.json:
        tables = [contents.as_dict() for contents in found.contents]
        shown = {"problems": [problem.as_dict() for problem in found.problems], "tables": tables}
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        for problem in grouped(found.problems):
            print(f"{problem.severity}: {problem}")
        show_contents.show(found.contents)
        print(", ".join(counted(number, kind) for kind, number in sorted(severities.items())) or "no problems")
    return EXIT_BAD_INPUT if severities["error"] else EXIT_DONE


def phantoms(program: str, arguments: Sequence[str]) -> int:
    """Draw the procedural data set: images, metadata.csv, ratings.csv and prompts.csv."""
    from medsyn.config import PhantomsSection, validate

    defaults = PhantomsSection()
    parser = argparse.ArgumentParser(prog=program, description=phantoms.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--images-per-kind", type=int, default=defaults.images_per_kind, metavar="N")
    parser.add_argument("--prompts-per-kind", type=int, default=defaults.prompts_per_kind, metavar="N")
    parser.add_argument("--image-size", type=int, default=defaults.image_size, metavar="PIXELS")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)

    size = {name: getattr(args, name) for name in PhantomsSection.model_fields}
    validate({"campaign": {"seed": args.seed}, "data": {"phantoms": size}}, "command line")

    from medsyn.data.phantoms.dataset import write_dataset

    try:
        with app.progress_bars() as progress:
            write_dataset(args.directory, **size, seed=args.seed, progress=partial(progress, "drawing phantoms"))
    except OSError as error:
        raise InputError(args.directory, f"cannot be written: {error.strerror}") from None
    print(args.directory)
    return EXIT_DONE


def pretrain(program: str, arguments: Sequence[str]) -> int:
    """Retrain the embedded tiny model (an hour or more)."""
    parser = argparse.ArgumentParser(prog=program, description=pretrain.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the diffusers directory is written")
    args = parser.parse_args(arguments)

    from medsyn.training import pretrain as training

    print(training.pretrain(args.directory))
    return EXIT_DONE


def doctor(program: str, arguments: Sequence[str]) -> int:
    """Report whether this machine is fit for a campaign, and which settings it will choose."""
    from medsyn import doctor

    return doctor.main(list(arguments), program, [_cluster])


def _cluster() -> Iterator[Diagnosis]:
    """A check of `medsyn doctor`; imported late, so that a module that fails to import becomes a finding."""
    from medsyn.campaign.slurm.diagnose import check_cluster

    yield from check_cluster()
