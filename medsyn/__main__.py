"""python -m medsyn <command>: any single task of a campaign by hand, and tools around it."""

from __future__ import annotations

import sys
from functools import partial

from medsyn.cli import app, verify
from medsyn.cli.tasks import generate, run_stage, work
from medsyn.cli.tools import calibrate, check, doctor, phantoms, pretrain, prompts

COMMANDS: dict[str, app.Command] = {
    "finetune": ("fine-tune the model of one modality", partial(run_stage, "finetune")),
    "rlhf": ("train Selector and Policy (--stage 1) or a modality's Policy (--stage 2)", partial(run_stage, "rlhf")),
    "generate": ("generate one shard of the prompt list, or with --prompt images of one prompt", generate),
    "evaluate": ("measure the campaign and write its report", partial(run_stage, "evaluate")),
    "worker": ("run one task of a prepared campaign: what schedulers call", work),
    "verify": ("check every generated file against its manifest", verify.verify),
    "merge": ("the tables of all shards as one", verify.merge),
    "check": ("read tables and every image they name, list what is wrong", check),
    "prompts": ("check a prompt list, or build one that is balanced", prompts),
    "phantoms": ("draw the procedural data set", phantoms),
    "pretrain": ("train the embedded tiny model again (an hour or more)", pretrain),
    "calibrate": ("measure the rate of this machine, for the plan's estimates", calibrate),
    "doctor": ("is this machine fit for a campaign?", doctor),
}


def main() -> int:
    """The `medsyn` command, which the package installs; `python -m medsyn` is the same."""
    return app.dispatch("medsyn", COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(app.dispatch("python -m medsyn", COMMANDS, sys.argv[1:]))
