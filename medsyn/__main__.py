"""The program: one table of commands for `medsyn`, `python -m medsyn` and `launch.py`.

A command's module is imported only when the command runs: `doctor` must work where nothing else can be imported, and
login nodes answer in well under a second.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from medsyn.cli import app, invocation
from medsyn.cli.app import Command

_TABLE = {
    "a campaign": {
        "plan": ("show what would run, and what is wrong or missing", "campaign:plan"),
        "submit": ("run everything that is not done", "campaign:submit"),
        "resume": ("run everything that is neither done nor queued", "campaign:resume"),
        "status": ("show what is done, running, failed and blocked", "campaign:status"),
        "logs": ("show what tasks printed", "campaign:logs"),
        "cancel": ("end every job and process of the campaign", "campaign:cancel"),
        "list": ("list the campaigns below a directory", "listing:main"),
        "verify": ("check every generated file against its records, or repair damaged ones", "verify:verify"),
        "merge": ("merge the tables of all shards into one", "verify:merge"),
    },
    "single tasks, and single prompts": {
        "finetune": ("fine-tune the model of one modality", "tasks:finetune"),
        "rlhf": ("train Selector and Policy (--stage 1) or a modality's Policy (--stage 2)", "tasks:rlhf"),
        "align": ("align a modality's generator with what its scorers learned from ratings", "tasks:align"),
        "generate": ("generate one shard of the prompt list, or with --prompt images of one prompt", "tasks:generate"),
        "evaluate": ("measure the campaign and write its report", "tasks:evaluate"),
        "worker": ("run one task of a prepared campaign; schedulers call it", "tasks:work"),
    },
    "data": {
        "check": ("read tables and every image they name, list what is wrong", "tools:check"),
        "prompts": ("check a prompt list, or build a balanced one", "prompts:main"),
        "phantoms": ("draw the procedural data set", "tools:phantoms"),
    },
    "ratings": {
        "rate": ("ratings by experts: export a page, import answers, report agreement", "rate:main"),
    },
    "any images": {
        "score": ("score them with a trained Selector and Policy", "score:main"),
        "copies": ("search synthetic ones for copies of real ones", "copies:main"),
    },
    "tools": {
        "init": ("copy the configurations and site profiles that come with medsyn", "init:init"),
        "doctor": ("check whether this machine is fit for a campaign", "tools:doctor"),
        "calibrate": ("measure this machine's speed, for the plan's estimates", "calibrate:calibrate"),
        "pretrain": ("retrain the embedded tiny model (an hour or more)", "tools:pretrain"),
    },
}  # by what users do: what each command is for, and its function in `medsyn.cli`


def _command(group: str, text: str, target: str) -> Command:
    module, _, name = target.partition(":")

    def run(called: str, arguments: Sequence[str]) -> int:
        code: int = getattr(importlib.import_module(f"medsyn.cli.{module}"), name)(called, arguments)
        return code

    return Command(text, run, group)


COMMANDS = {name: _command(group, *its) for group, commands in _TABLE.items() for name, its in commands.items()}


def main() -> int:
    """Run the command that the command line names; return its exit code."""
    return app.dispatch(invocation.program(), COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
