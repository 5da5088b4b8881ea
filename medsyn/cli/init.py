"""medsyn init: copy the configurations and site profiles that come with medsyn to where users edit them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import medsyn
from medsyn import disk
from medsyn.cli import app
from medsyn.cli.invocation import command
from medsyn.errors import EXIT_DONE, InputError

FIRST = "tiny.yaml"  # the configuration to try first
IN_A_CHECKOUT = {"configs": "configs", "sites": "slurm"}  # beside the package
IN_THE_COPY = {"configs": ".", "sites": "slurm"}


def shipped(what: Literal["configs", "sites"]) -> list[Path]:
    """The configurations or site profiles that come with medsyn: in an installed package, or beside a checkout's."""
    package = Path(medsyn.__file__).parent
    folders = (package / what, package.parent / IN_A_CHECKOUT[what])
    return next((found for folder in folders if (found := sorted(folder.glob("*.yaml")))), [])


def init(program: str, arguments: Sequence[str]) -> int:
    """Copy the configurations and site profiles that come with medsyn into a directory; existing files are kept."""
    parser = argparse.ArgumentParser(prog=program, description=init.__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="target directory; created if it does not exist")
    directory: Path = parser.parse_args(arguments).directory

    configs, sites = shipped("configs"), shipped("sites")
    if not configs:
        raise InputError(Path(medsyn.__file__).parent, "this installation of medsyn has no configurations to copy")
    app.require_no_campaign(directory, "DIR")
    copies = {directory / IN_THE_COPY["configs"] / path.name: path for path in configs}
    copies |= {directory / IN_THE_COPY["sites"] / path.name: path for path in sites}
    try:
        for target, source in copies.items():
            print(f"{target}{_copy(source.read_bytes(), target)}")
    except OSError as error:
        raise InputError(directory, f"cannot be written: {error.strerror}") from None
    print(f"next      {command('submit', [str(directory / FIRST), '--cluster', 'local'])}")
    return EXIT_DONE


def _copy(content: bytes, target: Path) -> str:
    """Write a file unless the path already exists; return a note if it does, else an empty text."""
    if not (target.exists() or target.is_symlink()):
        disk.write_atomic(target, content)
        return ""
    same = target.is_file() and target.read_bytes() == content
    return " already exists" if same else " already exists with other content and is kept"
