"""The command people use: plan, submit and watch a campaign.

    python launch.py plan|submit|status|logs|cancel|resume CONFIG [key=value ...]

Only argument parsing; everything else is in `medsyn.campaign`. Answers in well under a second: no torch here.
"""

from __future__ import annotations

import sys

from medsyn.cli import app
from medsyn.cli.campaign import cancel, logs, plan, resume, status, submit

COMMANDS: dict[str, app.Command] = {
    "plan": ("what would run, and what is wrong or missing", plan),
    "submit": ("run everything that is not done", submit),
    "resume": ("go on with what is neither done nor queued", resume),
    "cancel": ("end every job and process of the campaign", cancel),
    "status": ("what is done, running, failed and blocked", status),
    "logs": ("what tasks printed", logs),
}

if __name__ == "__main__":
    sys.exit(app.dispatch("launch.py", COMMANDS, sys.argv[1:]))
