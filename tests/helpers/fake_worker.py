"""`medsyn worker` with the fake stages."""

from __future__ import annotations

import sys
from pathlib import Path

from medsyn.campaign import worker
from medsyn.cli import app
from tests.helpers import fake_stages


def work(program: str, arguments: list[str]) -> int:
    root, stage, task, *parent = arguments
    return worker.run_task(Path(root), stage, task, fake_stages.FUNCTIONS, int(parent[1]) if parent else None)


def main(arguments: list[str]) -> int:
    return app.dispatch("worker", {"worker": app.Command("", work)}, ["worker", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
