"""Slurm's commands that print what a test says."""

from __future__ import annotations

from pathlib import Path


class Slurm:
    """`squeue` and `sacct` in a folder that is to come first in the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.queue()
        self.accounting()

    def queue(self, *jobs: str, code: int = 0) -> None:
        """Jobs as `id|state|reason|node|dependency|priority|name`."""
        self.command("squeue", *jobs, code=code)

    def accounting(self, *jobs: str, code: int = 0) -> None:
        """Jobs as `id|state`."""
        self.command("sacct", *jobs, code=code)

    def cluster(self) -> None:
        """A cluster with one partition, which takes no job."""
        self.command("sinfo", "cpu*|infinite")
        self.command("scontrol", "MaxArraySize = 1001")
        self.command("sbatch", code=1)

    def asked(self, command: str) -> int:
        path = self.folder / f"{command}.calls"
        return len(path.read_text().splitlines()) if path.is_file() else 0

    def command(self, name: str, *lines: str, code: int = 0) -> None:
        """A command that prints lines, or fails as if the controller were away."""
        text = "".join(f"{line}\n" for line in lines)
        (self.folder / f"{name}.txt").write_text(text)
        path = self.folder / name
        say = f"cat {self.folder}/{name}.txt" if not code else "echo 'Unable to contact slurm controller' >&2"
        path.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/{name}.calls\n{say}\nexit {code}\n')
        path.chmod(0o755)
