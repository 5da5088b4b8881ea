"""Who may change a campaign, and when: asked before anything of it is written."""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from medsyn.campaign.tasks import Key
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.stage import CampaignDirectory

if TYPE_CHECKING:
    from medsyn.campaign.slurm.queue import Job
    from medsyn.campaign.tasks import Key
    from medsyn.config import Config


def require_own(directory: CampaignDirectory) -> None:
    """Raise InputError if the campaign is another user's: whose jobs are in the queue, only its owner can ask Slurm."""
    try:
        owner = directory.facts.stat().st_uid
    except OSError:
        return
    if owner != os.getuid():
        reason = f"this campaign belongs to {user_name(owner)}, who alone can submit, resume or cancel it"
        raise InputError(directory.root, reason, key="campaign.dir")


def user_name(number: int) -> str:
    """The login name of a user id, or the id where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _require_no_jobs(directory: CampaignDirectory) -> None:
    """Raise InputError while jobs of the campaign are in Slurm's queue: they would do the same work."""
    if queued := _in_queue(directory):
        jobs = f"{len(queued)} of its tasks are in Slurm's queue"
        raise InputError(directory.root, f"{jobs}: cancel them first, or go on with --cluster slurm")


def _require_same_shards(loaded: Config) -> None:
    """Raise InputError if blocks are to be dealt anew while generate jobs are in Slurm's queue: which means which?"""
    from medsyn import config
    from medsyn.campaign.plan import shards
    from medsyn.campaign.state import campaign_file

    directory = CampaignDirectory(loaded.campaign.path)
    facts = campaign_file.read_facts(directory)
    changes = config.changes(facts["config"], loaded) if facts else {}
    changed = [key for key in shards.RESHARDED_BY if key in changes]
    if changed and any(stage == "generate" for stage, _ in _in_queue(directory)):
        reason = "it deals the shards anew, but generate jobs are in Slurm's queue: cancel them first"
        raise InputError("configuration", reason, key=changed[0])


def _in_queue(directory: CampaignDirectory) -> Mapping[Key, Job]:
    """The campaign's tasks that are in Slurm's queue; none where there is no Slurm."""
    from medsyn.campaign.slurm import queue, submissions

    return queue.view(submissions.read(directory.ledger)).tasks if shutil.which("squeue") else {}
