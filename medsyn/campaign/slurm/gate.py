"""A gate's decision: after a stage is over, which queued jobs can never run because of what failed in it.

Nothing else stops a dependent: one failed modality takes its own branch out of the queue and no other.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from medsyn.campaign import records
from medsyn.campaign.plan import Key, settle
from medsyn.campaign.records import Campaign
from medsyn.campaign.slurm import submissions as on_record
from medsyn.campaign.slurm.submissions import Submission

POLL_SECONDS = 1.0


def blocked_jobs(
    campaign: Campaign, name: str, latency_seconds: float = records.LATENCY_SECONDS
) -> dict[str, list[str]]:
    """The jobs that the gate called `name` takes out of the queue: {job name: Slurm's ids}.

    A task of which there is no word, neither done nor failed nor blocked, gets `latency_seconds`: on a shared file
    system a marker that another node wrote may show late.
    """
    submissions = on_record.read(campaign.directory.ledger)
    place = next((place for place, one in enumerate(submissions) if one.name == name), None)
    if place is None:  # it was withdrawn, or queued by a launcher that died before it could write that down
        return {}
    newest = on_record.newest(submissions)
    its = over(submissions[place], place, newest)
    end = time.monotonic() + latency_seconds
    done = records.done_keys(campaign, campaign.plan)
    while (silent := _silent(campaign, its, done)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        done = records.done_keys(campaign, campaign.plan)
    if silent:
        print(f"no word of {', '.join(' '.join(key) for key in sorted(silent)[:5])}: taken for failed", flush=True)
    failed = its - done
    blocked = [key for key, state in settle(campaign.plan, done, failed).states.items() if state == "blocked"]
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
