"""The campaigns below a folder, each in a few words: found by their records, told by those and their done markers.

No configuration is read and no queue is asked twice: of a hundred campaigns this is a matter of seconds. What `status`
says of one of them is more exact.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from medsyn.campaign.slurm import queue, submissions
from medsyn.campaign.state import campaign_file, done_index, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.errors import InputError, InputProblems, Problem, SlurmError
from medsyn.stage import STAGES, CampaignDirectory

State = Literal["done", "running", "queued", "failed", "stopped", "not prepared", "damaged"]
SLURM_SECONDS = 10.0


@dataclass(frozen=True)
class Overview:
    """One campaign. `running` is a launcher at work on this machine, `queued` jobs of the user's in Slurm's queue."""

    directory: Path  # as it was found
    state: State
    name: str = ""
    tasks: int = 0
    done: int = 0
    failed: int = 0  # and not done since
    queued: int = 0
    time: float | None = None  # of the last sign of life
    problem: str | None = None  # why nothing more can be said
    jobs: frozenset[str] = frozenset()  # names of what was handed to Slurm


def read(folders: Iterable[Path], warn: Callable[[Problem], None]) -> list[Overview]:
    """Every campaign in or below the folders, the one that changed last first.

    Args:
        folders: where to look. Hidden folders are passed over, and links are followed to campaigns only.
        warn: told what could not be looked at.

    Raises:
        InputError: a folder is not there.
    """
    found = {path.resolve(): path for folder in folders for path in find(folder, warn)}
    known = _with_queue([_look(path) for path in found.values()], warn)
    for one in known:
        if one.problem:
            warn(Problem(str(one.directory), one.problem, severity="warning"))
    return sorted(known, key=lambda one: (-(one.time or 0.0), str(one.directory)))


def find(folder: Path, warn: Callable[[Problem], None]) -> Iterator[Path]:
    """The directories of campaigns in or below a folder; never looks into one."""

    def skipped(error: OSError) -> None:
        warn(Problem(str(error.filename), f"cannot be looked into: {error.strerror}", severity="warning"))

    if not folder.is_dir():
        raise InputError(folder, "there is no such folder")
    for place, names, files in os.walk(folder, onerror=skipped):
        if CampaignDirectory(Path(place)).campaign_file.name in files:
            names.clear()
            yield Path(place)
            continue
        names[:] = sorted(name for name in names if not name.startswith("."))
        for link in (Path(place, name) for name in names):
            with suppress(OSError):  # a link to where the user may not look
                if link.is_symlink() and CampaignDirectory(link).campaign_file.is_file():
                    yield link


def _look(path: Path) -> Overview:
    """What the campaign's own files say."""
    directory = CampaignDirectory(path.absolute())
    try:
        facts = campaign_file.read_record(directory)
        if facts is None:
            return Overview(path, "not prepared", time=_last_sign(directory))
        campaign = campaign_file.recorded(directory, facts)
        done, keys = markers.done_facts(campaign), campaign.plan.by_key
        failed = sum(key in keys and key not in done for key in _failed(campaign))
        state: State = "failed" if failed else "stopped"
        if len(done) == len(keys):
            state = "done"
        elif locks.is_held(directory.ledger):
            state = "running"
        jobs = frozenset(one.name for one in submissions.read(directory.ledger) if one.kind == "tasks")
        name = campaign.config.campaign.name
        return Overview(path, state, name, len(keys), len(done), failed, time=_last_sign(directory), jobs=jobs)
    except (InputError, InputProblems) as error:
        reason = error.problems[0].reason
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):  # a ledger or an index that somebody edited
        reason = "its records are damaged"
    return Overview(path, "damaged", time=_last_sign(directory), problem=reason)


def _failed(campaign: Campaign) -> Iterator[tuple[str, str]]:
    for stage in STAGES:
        for name in done_index.names(campaign.directory.failed(stage, "any").parent):
            yield stage, name


def _last_sign(directory: CampaignDirectory) -> float | None:
    """When something of the campaign happened last: what a task writes changes the folder that it is in."""
    kinds = (directory.done, directory.attempts, directory.heartbeat)
    folders = (kind(stage, "any").parent for stage in STAGES for kind in kinds)
    times = []
    for path in (directory.campaign_file, directory.ledger, *folders):
        with suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=None)


def _with_queue(known: Sequence[Overview], warn: Callable[[Problem], None]) -> list[Overview]:
    """The campaigns with how many of their jobs are in Slurm's queue, by one question for all of them."""
    if not any(one.jobs and one.state != "done" for one in known) or shutil.which("squeue") is None:
        return list(known)
    try:
        names = [name for name, _ in queue.own_jobs(SLURM_SECONDS).values()]
    except SlurmError as error:
        warn(Problem("Slurm", f"it was not asked successfully ({error}): jobs may be in its queue", severity="warning"))
        return list(known)
    counts = [sum(name in one.jobs for name in names) if one.state != "done" else 0 for one in known]
    return [
        replace(one, queued=count, state="queued" if count and one.state != "running" else one.state)
        for one, count in zip(known, counts, strict=True)
    ]
