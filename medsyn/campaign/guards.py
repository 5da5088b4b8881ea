"""Who may change a campaign, and when: decided in one place, before anything of it is written."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
from collections.abc import Callable, Mapping

from medsyn import config as configuration
from medsyn.campaign.plan import prepare, shards
from medsyn.campaign.plan.inputs import Checked, Progress
from medsyn.campaign.plan.prepare import Warn
from medsyn.campaign.slurm import queue, submissions
from medsyn.campaign.slurm.queue import Job
from medsyn.campaign.state import campaign_file
from medsyn.campaign.state.campaign_file import Campaign, CampaignRecord
from medsyn.campaign.tasks import Key, Plan
from medsyn.config import Config
from medsyn.errors import CONFIGURATION, InputError, SlurmError
from medsyn.stage import CampaignDirectory
from medsyn.text import counted

Queued = Callable[[], Mapping[Key, Job]]  # the campaign's tasks in Slurm's queue; Slurm is asked once at most


def open_for_change(config: Config, here: bool, progress: Progress | None = None, warn: Warn | None = None) -> Campaign:
    """Prepare the campaign of a configuration for a command that runs or queues tasks of it.

    Args:
        config: as the user gave it.
        here: whether its tasks will run on this machine, not in Slurm's queue.
        progress: see `medsyn.campaign.plan.prepare.prepare`.
        warn: see there, too.

    Raises:
        InputError: it is another user's; it would be re-sharded while generate jobs are in Slurm's queue; or tasks
            would run here while jobs in the queue do the same work.
        InputProblems, Busy: see `medsyn.campaign.plan.prepare.prepare`.
        SlurmError: jobs may be in the queue, and Slurm does not answer.
    """
    directory = CampaignDirectory(config.campaign.path)
    require_own(directory)
    before = campaign_file.read_record(directory)
    queued = functools.cache(lambda: _in_queue(directory))
    if before is not None:
        _require_same_sharding(before, config, queued)
    if here:
        _require_no_jobs(directory, queued())
    approve = functools.partial(_require_same_shards, before, queued) if before is not None else None
    return prepare.prepare(config, before, progress, warn, approve, here)


def require_own(directory: CampaignDirectory) -> None:
    """Raise InputError if the campaign is another user's: whose jobs are in the queue, only its owner can ask Slurm."""
    try:
        owner = directory.campaign_file.stat().st_uid
    except OSError:
        return
    if owner != os.getuid():
        reason = f"this campaign belongs to {user_name(owner)}, and only its owner can change it"
        raise InputError(directory.root, reason, key="campaign.dir")


def user_name(number: int) -> str:
    """The login name of a user id, or the id where it has none."""
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _require_same_sharding(before: CampaignRecord, config: Config, queued: Queued) -> None:
    """Raise InputError if a re-shard is asked for while generate jobs are in Slurm's queue: they name old shards."""
    changes = configuration.changes(before["config"], config)
    changed = [key for key in shards.RESHARDED_BY if key in changes]
    if changed and any(stage == "generate" for stage, _ in queued()):
        reason = "it re-shards the campaign, but generate jobs are in the queue: cancel them first (`medsyn cancel`)"
        raise InputError(CONFIGURATION, reason, key=changed[0])


def _require_same_shards(before: CampaignRecord, queued: Queued, checked: Checked) -> None:
    """Raise InputError if a generate job in Slurm's queue would make other blocks than before, or none.

    Other prompts or settings re-shard, too, as long as nothing is generated.
    """
    names = [name for stage, name in queued() if stage == "generate"]
    if not names:
        return
    directory = CampaignDirectory(checked.config.campaign.path)
    was, now = _blocks(campaign_file.recorded(directory, before).plan), _blocks(checked.plan)
    changed = [name for name in names if was.get(name) != now.get(name)]
    if changed:
        reason = (
            f"it re-shards the campaign, and {counted(len(changed), 'generate job')} in Slurm's queue, including "
            f"{changed[0]}, would make other blocks: cancel them first (`medsyn cancel`)"
        )
        raise InputError(CONFIGURATION, reason)


def _blocks(plan: Plan) -> dict[str, tuple[int, int] | None]:
    """What each generate task makes."""
    return {planned.task.name: planned.task.blocks for planned in plan.by_stage.get("generate", [])}


def _require_no_jobs(directory: CampaignDirectory, queued: Mapping[Key, Job]) -> None:
    """Raise InputError while jobs of the campaign are in Slurm's queue: they would do the same work."""
    if queued:
        reason = (
            f"{len(queued)} of its tasks are in Slurm's queue and would do the same work: cancel them first "
            "(`medsyn cancel`), or continue in the queue (`medsyn resume --cluster slurm`)"
        )
        raise InputError(directory.root, reason)


def _in_queue(directory: CampaignDirectory) -> Mapping[Key, Job]:
    """The campaign's tasks in Slurm's queue; none where there is no Slurm or nothing was submitted to it."""
    submitted = submissions.read(directory.ledger)
    if not submitted or shutil.which("squeue") is None:
        return {}
    view = queue.view(submitted)
    if view.problem:
        raise SlurmError(f"{view.problem}; jobs of this campaign may be in its queue")
    return view.tasks
