"""What a job runs, `python -m medsyn.campaign.slurm.job tasks|gate CAMPAIGN SUBMISSION`: an element's task, or a gate.

Both end with one of the exit codes of `medsyn.errors`, which the batch script reads; nothing here talks to Slurm. A
gate decides, after a stage is over, which queued jobs can never run because of what failed in it. Nothing else stops a
dependent: one failed modality takes its own branch out of the queue and no other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn import disk, errors
from medsyn.campaign import notify, worker
from medsyn.campaign.slurm import pieces, sbatch
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.pieces import Array
from medsyn.campaign.slurm.submissions import Submission
from medsyn.campaign.state import attempts, campaign_file, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, PlannedTask, Settled, settle
from medsyn.errors import InputError, InputProblems
from medsyn.stage import CampaignDirectory

TASKS = "tasks.json"  # of an array, in the folder of its submission: the task of each element
POLL_SECONDS = 1.0


def main(arguments: Sequence[str], functions: Mapping[str, str] = worker.STAGE_FUNCTIONS) -> None:
    """Run what the batch script asks for."""
    kind, root, name = arguments
    if kind == "gate":
        run_gate(root, name)
    else:
        run_task(root, name, functions)


def run_task(root: str, submission: str, functions: Mapping[str, str]) -> None:
    """Run the task of this element; its output goes to the task's log, as that of a local run does."""
    _leave_when_asked()
    if begun := os.environ.get(sbatch.BEGUN):
        with suppress(OSError):  # a full disk is for the task to meet, and to say
            Path(begun).touch()
    directory = CampaignDirectory(Path(root))
    its = disk.read_json(directory.slurm(submission) / TASKS)
    stage, name = its["stage"], its["tasks"][int(os.environ.get("SLURM_ARRAY_TASK_ID") or 0)]
    _write_to(directory.log(stage, name))
    _say_where()
    try:
        campaign = campaign_file.open_campaign(Path(root))
        array = Array(campaign, stage, its["tasks"], its["signal_seconds"])
        code = _run(worker.Session(campaign, functions), array, campaign.plan.find(stage, name))
    except (InputError, InputProblems) as error:
        print(error, file=sys.stderr, flush=True)
        code = errors.EXIT_BAD_INPUT
    if code:
        sys.exit(code)


def _run(session: worker.Session, array: Array, own: PlannedTask) -> int:
    """Run the element's own task, then others of its array while there are any and time is left."""
    began = time.monotonic()
    code = session.run(own, lambda busy: pieces.is_taken(array.campaign, own.key))
    if code or not pieces.is_on(array.campaign, array.stage):
        return code or errors.EXIT_DONE
    longest = time.monotonic() - began if session.worked else 0.0
    job = attempts.slurm_job()
    for planned in array.unfinished(job) if job else ():
        if code := _go_on(session, planned):
            return code
    while (session.worked or code is None) and not session.stop_requested and array.has_time(longest):
        for planned in array.next_ones():
            began, code = time.monotonic(), _go_on(session, planned)
            if code is not None:
                break  # others may have been taken meanwhile
        else:
            break
        if code:
            return code
        longest = max(longest, time.monotonic() - began)
    return errors.EXIT_DONE


def _go_on(session: worker.Session, planned: PlannedTask) -> int | None:
    """Run another task of the array, its output in its own log; None if another process is at work on it."""
    path = session.campaign.directory.attempts(*planned.key)
    if locks.is_held(path):
        return None
    _write_to(session.campaign.directory.log(*planned.key))
    _say_where()
    return session.run(planned, lambda busy: True)


def _say_where() -> None:
    job, restarts = attempts.slurm_job(), os.environ.get("SLURM_RESTART_COUNT", "0")
    print(f"--- job {job} on {os.uname().nodename}, restart {restarts}", flush=True)


def run_gate(root: str, name: str) -> None:
    """Decide which jobs can no longer run, and write the list for the batch script.

    Where that list is, the tasks that the gate looks at are over. So it is there before the gate looks at the others:
    of two gates that decide at once, one at least knows of both.
    """
    listed = CampaignDirectory(Path(root)).slurm(name) / sbatch.CANCEL_LIST
    try:
        disk.write_atomic(listed, "")
        campaign = campaign_file.open_campaign(Path(root))
        settled = settled_at(campaign, name)
        refused = refusals(campaign, settled)
    except (InputError, InputProblems) as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(errors.EXIT_BAD_INPUT)
    for key, reason in refused.items():
        attempts.write_failure(campaign.directory, key, _failure(reason))
    settled = with_failed(campaign, settled, refused)
    lines = [f"{job_name} {' '.join(jobs)}" for job_name, jobs in blocked_jobs(campaign, settled, refused).items()]
    print(f"{name}: cancelling {'; '.join(lines) or 'nothing'}", flush=True)
    disk.write_atomic(listed, "".join(f"{line}\n" for line in lines))
    notify.tell(campaign, settled)


def _leave_when_asked() -> None:
    """Until the worker has handlers of its own there is nothing to save."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(errors.EXIT_SAVED))


def _write_to(log: Path) -> None:
    disk.make_directory(log.parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, disk.FILE_MODE)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def settled_at(campaign: Campaign, name: str, latency_seconds: float = campaign_file.LATENCY_SECONDS) -> Settled:
    """Where the tasks stand when the gate called `name` decides.

    It counts what failed among the tasks that it or a gate before it looks at: what comes after several stages is
    blocked by all of them together.

    A silent task, neither done nor failed nor blocked, gets `latency_seconds`: on a shared file system a marker that
    another node wrote may appear late.
    """
    submissions = on_record.read(campaign.directory.ledger)
    done = markers.done_keys(campaign, campaign.plan)
    if all(one.name != name for one in submissions):
        # it was withdrawn, or queued by a launcher that died before it could write that down
        return settle(campaign.plan, done, ())
    newest = on_record.newest(submissions)
    decided = (
        over(one, place, newest)
        for place, one in enumerate(submissions)
        if one.name == name
        or (one.kind == "gate" and (campaign.directory.slurm(one.name) / sbatch.CANCEL_LIST).is_file())
    )
    its = set().union(*decided)
    end = time.monotonic() + latency_seconds
    while (silent := _silent(campaign, its, done)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        done = markers.done_keys(campaign, campaign.plan)
    if silent:
        print(f"no word of {', '.join(' '.join(key) for key in sorted(silent)[:5])}: counted as failed", flush=True)
    return settle(campaign.plan, done, its - done)


def refusals(campaign: Campaign, settled: Settled) -> dict[Key, str]:
    """The tasks that would refuse to run, and why: their Selector is there and has not earned that it chooses.

    Without this a thousand shards would each wait for a card to say the same.
    """
    found: dict[Key, str] = {}
    by_modality: dict[str | None, str | None] = {}
    for planned in campaign.plan.by_stage.get("generate", []):
        scorers = [key for key in planned.needs if key[0].startswith("rlhf")]
        if settled.states[planned.key] == "done" or any(settled.states[key] != "done" for key in scorers):
            continue
        modality = planned.task.modality
        if modality not in by_modality:
            by_modality[modality] = markers.why_refused(campaign, planned)
        if reason := by_modality[modality]:
            found[planned.key] = reason
    return found


def with_failed(campaign: Campaign, settled: Settled, refused: Collection[Key]) -> Settled:
    """Where the tasks stand if these have failed, too."""
    if not refused:
        return settled
    done, failed = ({key for key, its in settled.states.items() if its == state} for state in ("done", "failed"))
    return settle(campaign.plan, done, {*failed, *refused})


def _failure(reason: str) -> dict[str, Any]:
    return {"exit_code": errors.EXIT_BAD_INPUT, "error": InputError.__name__, "message": reason, "step": None}


def blocked_jobs(campaign: Campaign, settled: Settled, refused: Collection[Key] = ()) -> dict[str, list[str]]:
    """The jobs that can no longer run, or would refuse to: {job name: Slurm's ids}."""
    submissions = on_record.read(campaign.directory.ledger)
    newest = on_record.newest(submissions)
    blocked = [key for key, state in settled.states.items() if state == "blocked" or key in refused]
    return ids(submissions, [key for key in blocked if key in newest], newest)


def _silent(campaign: Campaign, keys: Iterable[Key], done: Collection[Key]) -> set[Key]:
    """Those of the tasks that are neither done nor failed, nor blocked by one that has failed."""
    failed = {key for key in campaign.plan.by_key if key not in done and campaign.directory.failed(*key).is_file()}
    states = settle(campaign.plan, done, failed).states
    return {key for key in keys if states.get(key) in ("ready", "waiting")}


def over(gate: Submission, place: int, newest: Mapping[Key, tuple[int, str]]) -> set[Key]:
    """The tasks the gate looks at, less those that were queued again after it: another gate will look at them."""
    keys = ((gate.stage, task) for task in gate.tasks)
    return {key for key in keys if newest.get(key, (-1, ""))[0] < place}


def ids(
    submissions: Sequence[Submission], keys: Iterable[Key], newest: Mapping[Key, tuple[int, str]]
) -> dict[str, list[str]]:
    """{job name: Slurm's ids} of the tasks' newest jobs; an array of which every element is meant is named once."""
    by_place: dict[int, list[str]] = {}
    for key in keys:
        place, identity = newest[key]
        by_place.setdefault(place, []).append(identity)
    found: dict[str, list[str]] = {}
    for place, elements in sorted(by_place.items()):
        whole = len(elements) == len(submissions[place].tasks)
        found[submissions[place].name] = [submissions[place].job] if whole else elements
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
