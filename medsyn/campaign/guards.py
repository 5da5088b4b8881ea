"""Who may change a campaign, and when: decided in one place, before anything of it is written."""

from __future__ import annotations

import functools
import os
import pwd
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack

from medsyn import config as configuration
from medsyn.campaign.plan import prepare
from medsyn.campaign.plan.inputs import Checked, Progress
from medsyn.campaign.plan.prepare import Warn
from medsyn.campaign.slurm import queue, submissions
from medsyn.campaign.slurm.queue import Job
from medsyn.campaign.state import campaign_file, locks
from medsyn.campaign.state.campaign_file import Campaign, CampaignRecord
from medsyn.campaign.tasks import RESHARDED_BY, Key, Plan
from medsyn.config import Config
from medsyn.errors import CONFIGURATION, InputError, SlurmError
from medsyn.stage import CampaignDirectory
from medsyn.text import and_more, counted

_SHOWN = 5  # tasks that a message names
Queued = Callable[[], Mapping[Key, Job]]  # the campaign's tasks in Slurm's queue; Slurm is asked once at most


def open_for_change(
    config: Config,
    here: bool,
    progress: Progress | None = None,
    warn: Warn | None = None,
    keep: ExitStack | None = None,
) -> Campaign:
    """Prepare the campaign of a configuration for a command that runs or queues tasks of it.

    What would be refused is refused at once, before images are read, and asked again under the campaign's lock, before
    anything is written.

    Args:
        config: as the user gave it.
        here: whether its tasks will run on this machine, not in Slurm's queue.
        progress: see `medsyn.campaign.plan.prepare.prepare`.
        warn: see there, too.
        keep: takes over the campaign's lock, so that nothing of what was asked can change.

    Raises:
        InputError: it is another user's; tasks in Slurm's queue would no longer be in it or make other blocks; or
            tasks would run here while jobs in the queue do the same work.
        InputProblems: see `medsyn.campaign.plan.prepare.prepare`.
        Busy: see there; or it would change what a task at work makes.
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
    return prepare.prepare(config, before, progress, warn, functools.partial(_approve, directory, here), here, keep)


def _approve(directory: CampaignDirectory, here: bool, before: CampaignRecord | None, checked: Checked | None) -> None:
    """What `open_for_change` asks under the lock, of the record and Slurm's queue as they are then."""
    queued = _in_queue(directory)
    if here:
        _require_no_jobs(directory, queued)
    if before is not None and checked is not None:
        was = campaign_file.recorded(directory, before)
        _require_same_tasks(was.plan, checked.plan, queued)
        _require_no_task_at_work(was, checked)


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
    changed = [key for key in RESHARDED_BY if key in changes]
    if changed and any(stage == "generate" for stage, _ in queued()):
        reason = "it re-shards the campaign, but generate jobs are in the queue: cancel them first (`medsyn cancel`)"
        raise InputError(CONFIGURATION, reason, key=changed[0])


def _require_same_tasks(was: Plan, now: Plan, queued: Collection[Key]) -> None:
    """Raise InputError if a task in Slurm's queue would no longer be in the campaign, or make other blocks.

    Other prompts or settings re-shard, too, as long as nothing is generated.
    """
    changed = [key for key in queued if key in was.by_key and not _is_same(was, now, key)]
    shards = [name for stage, name in changed if stage == "generate"]
    others = [" ".join(key) for key in changed if key[0] != "generate"]
    reasons = []
    if others:
        reasons.append(f"it drops {and_more(others, _SHOWN)}, whose jobs are in Slurm's queue")
    if shards:
        count = counted(len(shards), "generate job")
        reasons.append(
            f"it re-shards the campaign, and {count} in Slurm's queue, including {shards[0]}, would make other blocks"
        )
    if reasons:
        raise InputError(CONFIGURATION, f"{'; '.join(reasons)}: cancel them first (`medsyn cancel`)")


def _is_same(was: Plan, now: Plan, key: Key) -> bool:
    """Whether a task would still be in the campaign and make the same blocks."""
    return key in now.by_key and now.by_key[key].task.blocks == was.by_key[key].task.blocks


def _require_no_task_at_work(was: Campaign, checked: Checked) -> None:
    """Raise Busy if a task at work, started by hand or by Slurm, would end with what is no longer asked for."""
    fingerprints = prepare.fingerprints(checked)
    for key in was.plan.by_key:
        is_kept = _is_same(was.plan, checked.plan, key) and fingerprints.get(key[0]) == was.fingerprints[key[0]]
        path = was.directory.attempts(*key)
        if not is_kept and locks.is_held(path):
            raise locks.Busy(path, f"{' '.join(key)}, which the changed settings would make anew")


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
