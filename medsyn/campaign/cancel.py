"""Cancel a campaign's jobs in Slurm's queue, its launcher and its tasks on this machine, and nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from medsyn.campaign.slurm import queue
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.state import attempts, done_index, ledger, locks
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key
from medsyn.errors import SlurmError
from medsyn.stage import CampaignDirectory

GONE_SECONDS = 120.0  # Slurm's KillWait is 30 s unless the site says otherwise
POLL_SECONDS = 0.5

Say = Callable[[str], None]


def jobs(directory: CampaignDirectory, say: Say) -> int:
    """Cancel every job of the campaign that is in Slurm's queue and wait until none is left; return how many.

    A job counts as the campaign's if its id and its name are the recorded ones: Slurm reuses ids.

    Raises:
        SlurmError: Slurm does not answer, or jobs are still there after two minutes.
    """
    found: set[str] = set()
    end = time.monotonic() + GONE_SECONDS
    while left := _in_queue(directory):
        if not found:
            _record(directory, jobs=len(left))  # first: what is killed now may have no time to say why it ends
            say(f"cancelling {len(left)} jobs; waiting until they have ended")
        if time.monotonic() > end:
            raise SlurmError(f"{len(left)} cancelled jobs are still in the queue, including {min(left)}")
        found |= left
        queue.cancel(left)  # again: one may have come back
        time.sleep(POLL_SECONDS)
    with suppress(OSError):  # the jobs are cancelled even where that cannot be recorded
        for number, its in on_record.launches(directory.ledger).items():
            if its.state in (on_record.QUEUEING, on_record.RELEASING):
                ledger.record(directory.ledger, on_record.WITHDRAWN, round=number)
    return len(found)


def _record(directory: CampaignDirectory, **what: int) -> None:
    with suppress(OSError):  # jobs are cancelled even where that cannot be recorded
        ledger.record(directory.ledger, ledger.CANCELLED, **what)


def _in_queue(directory: CampaignDirectory) -> set[str]:
    names = {name for its in on_record.launches(directory.ledger).values() for name in its.intended}
    return queue.named(names) if names else set()


def launcher(directory: CampaignDirectory, say: Say) -> int:
    """Ask the launcher that runs the campaign on this machine to stop, and wait for it; return how many there were.

    Only the process that holds the lock on the campaign's ledger is signalled.
    """
    holder = lock_holder(directory.ledger)
    if holder is None:
        return 0
    _record(directory, process=holder)
    os.kill(holder, signal.SIGTERM)
    say(f"asked process {holder} to stop; waiting until its tasks have saved")
    while lock_holder(directory.ledger) == holder:
        time.sleep(POLL_SECONDS)
    return 1


def tasks(campaign: Campaign, say: Say) -> tuple[int, list[str]]:
    """Ask tasks that were started by hand to stop and wait for them; call it when launcher and jobs have ended.

    Returns:
        How many there were, and in words those that cannot be asked from here: on another machine, say.
    """
    asked: set[int] = set()
    while held := list(_at_work(campaign)):
        holders = {key: holder for key, path in held if (holder := lock_holder(path)) is not None}
        if not holders:
            return len(asked), [str(locks.Busy(path, " ".join(key))) for key, path in held]
        for key, holder in holders.items():
            if holder not in asked:  # one that waited for another's lock may hold it now
                asked.add(holder)
                _record(campaign.directory, process=holder)
                with suppress(ProcessLookupError):
                    os.kill(holder, signal.SIGTERM)
                say(f"asked process {holder}, {' '.join(key)}, to stop; waiting until it has saved")
        time.sleep(POLL_SECONDS)
    return len(asked), []


def _at_work(campaign: Campaign) -> Iterator[tuple[Key, Path]]:
    """The tasks that a process holds the lock of, and their locks; not those whose jobs this campaign cancelled."""
    directory = campaign.directory
    ours = {identity for one in on_record.read(directory.ledger) for identity, _ in one.elements()}
    for stage, planned in campaign.plan.by_stage.items():
        tried = done_index.names(directory.attempts(stage, "any").parent)
        for key in (one.key for one in planned if one.task.name in tried):
            path = directory.attempts(*key)
            if locks.is_held(path) and attempts.read(path).job not in ours:
                yield key, path


def lock_holder(path: Path) -> int | None:
    """Process id of the holder of the lock on `path`, from the kernel; None if nobody or another machine holds it."""
    if not locks.is_held(path):
        return None
    inode = str(path.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and "WRITE" in words and words[-3].rpartition(":")[2] == inode and words[-4].isdigit():
            holder = int(words[-4])
            if _has_open(holder, path):  # another file system may have a file of the same number
                return holder
    return None


def _has_open(process: int, path: Path) -> bool:
    try:
        return any(entry.exists() and entry.samefile(path) for entry in Path(f"/proc/{process}/fd").iterdir())
    except OSError:  # it has ended, or is not this user's
        return False
