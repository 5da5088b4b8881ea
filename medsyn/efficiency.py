"""Where the allocated seconds of a campaign went, from the records of its tasks' attempts. Pure functions.

An attempt's seconds begin with its process (on Slurm with the job) and end with its record, or with its process where
the launcher saw that. They are divided among `KINDS`, so the shares add up to one. A killed attempt's last record is
its last heartbeat.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsyn.time_use import EVALUATING, LOADING, MADE, OTHER, PAINTING, SCORING, START_UP, TRAINING, WAITING, WRITING

UNET_VAE, REJECTED, REPEATED, IDLE = "unet_vae", "rejected", "repeated", "idle"
KINDS = {  # in the order they are shown in, with what they are called
    UNET_VAE: "UNet and VAE",
    REJECTED: "rejected candidates",
    REPEATED: "repeated after a kill",
    SCORING: "Selector and Policy",
    LOADING: "loading models",
    WRITING: "writing",
    START_UP: "start-up",
    IDLE: "idle",
    EVALUATING: "evaluation",
    OTHER: "other",
}
Record = Mapping[str, Any]  # a task's attempts, summed up, as its done marker keeps them: see `summarize`


@dataclass(frozen=True)
class Efficiency:
    """Seconds of the places (GPUs, or processors where there are none) that a campaign's tasks held, by kind."""

    seconds: Mapping[str, float]  # of every kind in KINDS
    queued: float  # seconds that tasks which could have run waited for a place, not among `seconds`

    @property
    def allocated(self) -> float:
        """All of them."""
        return sum(self.seconds.values())

    @property
    def shares(self) -> dict[str, float]:
        """The part of each kind; together 1, unless nothing was allocated yet."""
        whole = self.allocated or 1.0
        return {kind: amount / whole for kind, amount in self.seconds.items()}

    @property
    def whole_percents(self) -> dict[str, int]:
        """The shares in whole percent, which add up to 100: those with the largest remainders are rounded up."""
        exact = {kind: 100 * share for kind, share in self.shares.items()}
        found = {kind: int(share) for kind, share in exact.items()}
        if self.allocated:
            by_remainder = sorted(exact, key=lambda kind: found[kind] - exact[kind])
            for kind in by_remainder[: 100 - sum(found.values())]:
                found[kind] += 1
        return found

    def as_dict(self) -> dict[str, Any]:
        """For `status --json` and metrics.json."""
        seconds = dict(self.seconds)
        return {"allocated": self.allocated, "seconds": seconds, "shares": self.shares, "queued": self.queued}


def summarize(
    lines: Iterable[Mapping[str, Any]], heartbeat: Mapping[str, Any] | None = None, running_at: float | None = None
) -> dict[str, Any]:
    """The record of a task's attempts.

    Args:
        lines: of its attempts file.
        heartbeat: its newest one.
        running_at: the time now, if the newest attempt is running; without an end it counts as killed otherwise.

    Returns:
        `seconds` by kind, `painted` (seconds), `places` painted and kept, `used` places, and of every attempt
        [begun, known until, whether it was killed, when it could have begun, GPUs].
    """
    seconds: dict[str, float] = defaultdict(float)
    found: dict[str, Any] = {"painted": 0.0, "places": 0.0, "used": 0, "spans": []}
    for start, end, beat in _pairs(lines, heartbeat):
        is_open = end is None and running_at is not None and beat is heartbeat
        begun = min(float(start.get("since", start["time"])), start["time"])
        last = end or beat or start
        if is_open and beat is None and running_at is not None:  # it has not come to its first step
            last = {"time": running_at, "use": {"seconds": {START_UP: max(0.0, running_at - start["time"])}}}
        use, until = last.get("use") or {}, max(float(last["time"]), begun)
        ranks = int(use.get("ranks") or 1)
        mine = _divide(start, use, begun, until, ranks, is_kept=is_open or (end or {}).get("reason") == "done")
        painting = float((use.get("seconds") or {}).get(PAINTING, 0.0)) * bool(use.get("places"))
        if painting:
            kept = max(0.0, 1 - mine[REPEATED] / max(sum(use["seconds"].get(kind, 0.0) for kind in MADE), 1e-9))
            found["painted"] += painting * kept
            found["places"] += use["places"] * kept
        found["used"] += int(use.get("used") or 0)
        found["spans"].append([begun, until, end is None and not is_open, start.get("ready"), ranks])
        for kind, amount in mine.items():
            seconds[kind] += amount
    return {"seconds": dict(seconds), **found}


def _pairs(
    lines: Iterable[Mapping[str, Any]], heartbeat: Mapping[str, Any] | None
) -> list[tuple[Mapping[str, Any], Mapping[str, Any] | None, Mapping[str, Any] | None]]:
    """(start, end or None, last heartbeat of one without an end or None) of every attempt; damaged lines are skipped.

    The start of an attempt keeps the heartbeat of the one before it.
    """
    good = [line for line in lines if isinstance(line.get("time"), (int, float))]
    found: list[tuple[Mapping[str, Any], Mapping[str, Any] | None, Mapping[str, Any] | None]] = []
    start: Mapping[str, Any] | None = None
    for line in good:
        if line.get("event") == "start":
            if start is not None:
                found.append((start, None, line.get("progress")))
            start = line
        elif start is not None:
            found.append((start, line, None))
            start = None
    return found if start is None else [*found, (start, None, heartbeat)]


def _divide(
    start: Mapping[str, Any], use: Mapping[str, Any], begun: float, until: float, ranks: int, is_kept: bool
) -> dict[str, float]:
    """The seconds of one attempt by kind; what nothing is known of is `other`."""
    booked: dict[str, float] = {kind: float(amount) for kind, amount in (use.get("seconds") or {}).items()}
    made = sum(booked.get(kind, 0.0) for kind in MADE)
    lost = 0.0 if is_kept else min(float(use.get("unsaved") or 0.0), made)
    found = dict.fromkeys(KINDS, 0.0)
    for kind, amount in booked.items():
        amount *= 1 - lost / made if kind in MADE and made else 1.0
        held = ranks if kind == TRAINING else 1
        found[_HEADING.get(kind, OTHER)] += amount * held
        found[IDLE] += amount * (ranks - held)  # the others wait while the first one prepares or writes
    found[REPEATED] += lost * ranks
    waited = min(float(start.get("waited") or 0.0), start["time"] - begun)
    found[IDLE] += waited * ranks
    found[START_UP] += (min(start["time"], until) - begun - waited) * ranks
    found[OTHER] += max(0.0, until - start["time"] - sum(booked.values())) * ranks
    return found


_HEADING = {PAINTING: UNET_VAE, TRAINING: UNET_VAE, WAITING: IDLE} | {
    kind: kind for kind in (SCORING, LOADING, WRITING, START_UP, EVALUATING, OTHER)
}


def add_up(records: Mapping[tuple[str, str], Record], ledger: Iterable[Mapping[str, Any]] = ()) -> Efficiency:
    """The efficiency of a campaign.

    Args:
        records: of its tasks, by stage and name.
        ledger: its events; they say when tasks were queued and, of a local run, when a process ended.
    """
    submitted, ended = _times(ledger)
    seconds = dict.fromkeys(KINDS, 0.0)
    painted = places = used = queued = 0.0
    for key, record in records.items():
        for kind, amount in record["seconds"].items():
            seconds[kind if kind in KINDS else OTHER] += amount
        painted, places, used = painted + record["painted"], places + record["places"], used + record["used"]
        for number, (begun, until, killed, ready, ranks) in enumerate(record["spans"]):
            following = record["spans"][number + 1][0] if number + 1 < len(record["spans"]) else float("inf")
            place = bisect_left(ended[key], until)
            end = ended[key][place] if place < len(ended[key]) else until
            if until <= end <= following:
                seconds[REPEATED if killed else IDLE] += (end - until) * ranks
            place = bisect_right(submitted[key], begun)
            since = [submitted[key][place - 1]] if place else []
            since += [float(ready)] if ready else []
            since += [record["spans"][number - 1][1]] if number else []
            if place or number:
                queued += max(0.0, begun - max(since))
    rejected = painted * max(0.0, 1 - used / places) if places else 0.0
    rejected = min(rejected, seconds[UNET_VAE])
    seconds[UNET_VAE] -= rejected
    seconds[REJECTED] += rejected
    return Efficiency({kind: seconds[kind] for kind in KINDS}, queued)


def _times(
    ledger: Iterable[Mapping[str, Any]],
) -> tuple[dict[tuple[str, str], Sequence[float]], dict[tuple[str, str], Sequence[float]]]:
    """When each task was queued, and when its processes ended, both ascending."""
    submitted: dict[tuple[str, str], list[float]] = defaultdict(list)
    ended: dict[tuple[str, str], list[float]] = defaultdict(list)
    everything: list[float] = []
    for event in ledger:
        kind, when = event.get("event"), event.get("time")
        if not isinstance(when, (int, float)):
            continue
        if kind == "submitted":
            everything.append(when)
        elif kind == "queued" and event.get("kind") == "tasks":
            for name in event.get("tasks") or ():
                submitted[event.get("stage", ""), name].append(when)
        elif kind == "ended":
            ended[event.get("stage", ""), event.get("task", "")].append(when)
    return _WithAll(everything, submitted), _WithAll([], ended)


class _WithAll(dict[tuple[str, str], Sequence[float]]):
    """Ascending times of each task: its own, and those of all."""

    def __init__(self, everything: list[float], own: Mapping[tuple[str, str], list[float]]) -> None:
        super().__init__({key: sorted([*everything, *times]) for key, times in own.items()})
        self._everything = sorted(everything)

    def __missing__(self, key: tuple[str, str]) -> Sequence[float]:
        return self._everything
