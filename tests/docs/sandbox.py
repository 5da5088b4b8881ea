"""Where the documents' blocks are run as they are printed: a stand-in for a fresh checkout, in a folder of its own.

What stands for something else is here, and nowhere else:

* `uv run` starts programs of the environment that the tests run in, which uv made;
* `configs/tiny.yaml` is the real file with smaller numbers (`CHEAP`);
* `slurm/generic.yaml`, which users are to change, has the partitions of `slurm/devcluster`;
* `slurm/devcluster` is given a directory of its own, because others may use the usual one.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from medsyn import config as configuration
from medsyn import specification
from tests.docs.pages import Block
from tests.helpers.paths import ROOT
from tests.helpers.slurm_cluster import FOREIGN
from tests.helpers.small_campaign import SMALLER

# All modalities stay: which a campaign has is what the documents show.
CHEAP = [
    *(override for override in SMALLER if not override.startswith("data.modalities=")),
    "align.enabled=false",
    *("finetune.max_train_steps=2", "training.max_epochs=1", "training.stage=1", "generation.num_candidates=1"),
    *("generation.max_attempts=1", "generation.batch_size=8", "generation.blocks_per_shard=50"),
]
# Exit codes that say no more than how a campaign stands, by what the command has in it; what the scorers of the tests'
# campaign learn in three epochs may let no image pass.
EXPECTED_CODES = {" status ": 75, " --selector_checkpoint ": 70}

_UV = """#!/bin/sh
# Stands for uv: this environment is the one that uv made.
[ "$1" = run ] || exit 64
shift
case $1 in *.py) exec python "$@" ;; esac
exec "$@"
"""
_MEDSYN = """#!/bin/sh
# Stands for the command that the package installs, where it is not installed.
exec python -m medsyn "$@"
"""
_DEVCLUSTER = """#!/bin/bash
# The real one, in a directory of its own: --dir /tmp/NAME becomes PREFIX-NAME.
words=()
dir=usual
while [ $# -gt 0 ]; do
  case $1 in --dir) dir=${2##*/} && shift ;; *) words+=("$1") ;; esac
  shift
done
exec PROGRAM "${words[@]}" --dir "PREFIX-$dir"
"""


class Sandbox:
    """A checkout in `folder`, in which blocks are run one after the other by one shell each."""

    def __init__(self, folder: Path, clusters: Path | None = None) -> None:
        self.folder, self.programs = folder / "checkout", folder / "bin"
        self._environment: dict[str, str] = {}
        self.programs.mkdir(parents=True)
        self._write(self.programs / "uv", _UV)
        if not (Path(sys.executable).parent / "medsyn").exists():
            self._write(self.programs / "medsyn", _MEDSYN)
        self._check_out()
        if clusters is not None:
            program = str(ROOT / "slurm" / "devcluster")
            script = _DEVCLUSTER.replace("PROGRAM", shlex.quote(program)).replace("PREFIX", str(clusters))
            (self.folder / "slurm" / "devcluster").unlink()
            self._write(self.folder / "slurm" / "devcluster", script)

    def _check_out(self) -> None:
        for source in ROOT.iterdir():
            if source.name in ("configs", "slurm"):
                target = self.folder / source.name
                target.mkdir(parents=True)
                for file in source.iterdir():
                    (target / file.name).symlink_to(file)
            elif not source.name.startswith(".") and source.name not in ("runs", "tests"):
                self.folder.mkdir(exist_ok=True)
                (self.folder / source.name).symlink_to(source)
        tiny = configuration.load(ROOT / "configs" / "tiny.yaml", CHEAP, environment={}).model_dump()
        tiny["data"]["modalities"] = None
        self._replace("configs/tiny.yaml", yaml.safe_dump(tiny))
        profile = yaml.safe_load((ROOT / "slurm" / "devcluster.yaml").read_text())
        self._replace("slurm/generic.yaml", yaml.safe_dump(profile))

    def _replace(self, name: str, text: str) -> None:
        (self.folder / name).unlink()
        (self.folder / name).write_text(text)

    def _write(self, path: Path, script: str) -> None:
        path.write_text(script)
        path.chmod(0o755)

    def take_campaign(self, directory: Path) -> None:
        """Put a copy of a finished campaign where the quick start leaves its own, as if it had been made there."""
        tiny = self.folder / "runs" / "tiny"
        shutil.copytree(directory, tiny)
        for record in (tiny / "config.yaml", tiny / "campaign.json"):
            record.write_text(record.read_text().replace(str(directory), str(tiny)))

    def run(self, block: Block) -> str:
        """Run a block of shell as it is printed; return what it said. What it exports is there for the next."""
        return self.run_script(block.text, str(block))

    def run_script(self, script: str, what: str) -> str:
        exported = self.programs.parent / "exported"
        allowed = " ".join(f'"{code} "*"{words}"*) ;;' for words, code in EXPECTED_CODES.items())
        lines = re.sub(r"\\\n\s*", "", script).splitlines()
        watched = [
            f'ended() {{ case "$1 $2 " in {allowed} *) echo "ended with $1: $2"; exit "$1" ;; esac; }}',
            *(f"{{ {line}\n}} || ended $? {shlex.quote(line)}" for line in lines if line),
            f"env -0 > {shlex.quote(str(exported))}",
        ]
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", "\n".join(watched)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=1200,
        )
        assert ended.returncode == 0, f"{what} ended with {ended.returncode}:\n{script}\n{ended.stdout}"
        entries = (entry.partition("=") for entry in exported.read_text().split("\0") if entry)
        self._environment = {key: value for key, _, value in entries}
        return ended.stdout

    @property
    def environment(self) -> dict[str, str]:
        """That of a shell in which nothing of medsyn's and no other Slurm is set, and what blocks have exported."""
        own = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(FOREIGN) and key not in specification.ENVIRONMENT
        }
        path = [str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        ours = {
            "PATH": ":".join(path),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        return {**own, **ours, **self._environment}
