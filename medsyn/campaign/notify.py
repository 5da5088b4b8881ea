"""Tell somebody that a campaign is done, is over and something failed, or needs ratings: `cluster.notify`.

Whoever runs tasks calls `tell` when some of them are over; what there is to tell follows from their states. What was
told is on record, so that the same news is told once; whoever is killed in between tells it again.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medsyn import disk
from medsyn.campaign.state import attempts, gate, locks, markers
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, Settled
from medsyn.config import Config
from medsyn.disk import fingerprint
from medsyn.errors import CONFIGURATION, Problem

TIMEOUT_SECONDS = 30.0
DONE, FAILED, NEEDS_RATINGS = "done", "failed", "needs-ratings"
_SCHEMES = ("http", "https")

Say = Callable[[str], None]


def is_url(target: str) -> bool:
    """Whether the value of `cluster.notify` is the URL of a site, and not a command line."""
    return target.strip().lower().startswith(tuple(f"{scheme}://" for scheme in _SCHEMES))


def problems(config: Config) -> list[Problem]:
    """An error if the command of `cluster.notify` is not there, seen from this machine; a site is not asked."""
    target = config.cluster.notify
    if not target or is_url(target) or shutil.which(command := shlex.split(target)[0]):
        return []
    reason = f"there is no command {command!r} here: give one that is in PATH, its full path, or an http(s) URL"
    return [Problem(CONFIGURATION, reason, key="cluster.notify")]


def tell(campaign: Campaign, settled: Settled, say: Say = print) -> None:
    """Tell the news that there is, unless it was told; never raises, for nothing depends on it.

    Args:
        campaign: the prepared campaign.
        settled: where its tasks stand.
        say: called with a line about what was told, or why that failed.
    """
    target, event = campaign.config.cluster.notify, news(settled, gate.held(campaign))
    if not target or event is None:
        return
    folder = campaign.directory.root / "tasks" / "notified"
    record = folder / f"{event}.json"
    try:
        facts = _facts(campaign, event, settled)
        this_one = _identity(campaign, event, settled)
        with locks.exclusive(folder / "lock"):
            if _told(record) == this_one:
                return
            problem = _send(target, facts)
            disk.write_json(record, {"news": this_one, "time": time.time(), "problem": problem})
    except locks.Busy:  # another process is at it
        return
    except Exception as error:  # a full disk, say
        problem = f"{type(error).__name__}: {error}"
    say(f"warning: cluster.notify: {problem}" if problem else f"told cluster.notify: the campaign {_WORDS[event]}")


_WORDS = {DONE: "is done", FAILED: "has failed", NEEDS_RATINGS: "needs ratings"}


def news(settled: Settled, held: Collection[Key] = ()) -> str | None:
    """What there is to tell: all is done, or nothing more can run; None while it goes on.

    Args:
        settled: where the tasks stand.
        held: those that wait for ratings.
    """
    states = set(settled.states.values())
    if states <= {"done"}:
        return DONE
    if {key for key, state in settled.states.items() if state in ("ready", "waiting")} == set(held) != set():
        return NEEDS_RATINGS
    return FAILED if "failed" in states and not states & {"ready", "waiting"} else None


def _identity(campaign: Campaign, event: str, settled: Settled) -> str:
    """Two pieces of news are the same if the same results are there and the same attempts have failed."""
    done = {key for key, state in settled.states.items() if state == "done"}
    failed = [key for key, state in settled.states.items() if state == "failed"] if event == FAILED else []
    return fingerprint(
        {
            "event": event,
            "evaluate": [markers.task_fingerprint(campaign, one, done) for one in campaign.plan.by_stage["evaluate"]],
            "failed": [[*key, attempts.read(campaign.directory.attempts(*key)).begun] for key in failed],
        }
    )


def _told(record: Path) -> str | None:
    try:
        told: str = disk.read_json(record)["news"]
        return told
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _facts(campaign: Campaign, event: str, settled: Settled) -> dict[str, Any]:
    """What is told: names and counts, nothing of prompts, images or patients."""
    states = list(settled.states.values())
    return {
        "event": event,
        "campaign": campaign.config.campaign.name,
        "directory": str(campaign.directory.root),
        "tasks": len(states),
        **{state: states.count(state) for state in ("done", "failed", "blocked")},
    }


def _send(target: str, facts: Mapping[str, Any]) -> str | None:
    """Hand the facts over; return what went wrong, or None."""
    return _post(target.strip(), facts) if is_url(target) else _run(shlex.split(target), facts)


def _post(url: str, facts: Mapping[str, Any]) -> str | None:
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    site = urlsplit(url).hostname  # the rest of a URL may be a secret
    headers = {"Content-Type": "application/json"}
    request = Request(url, disk.to_json(facts).encode(), headers, method="POST")
    try:
        with urlopen(request, timeout=TIMEOUT_SECONDS):
            return None
    except (OSError, HTTPException, ValueError) as error:
        return f"{site} was not told: {getattr(error, 'reason', None) or error}"


def _run(words: list[str], facts: Mapping[str, Any]) -> str | None:
    """Run a command without a shell, for `TIMEOUT_SECONDS` at most; what it prints goes where our own output goes."""
    environment = os.environ | {f"MEDSYN_{name.upper()}": str(value) for name, value in facts.items()}
    try:
        process = subprocess.Popen(words, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    except (OSError, ValueError) as error:
        return f"{words[0]} cannot be run: {getattr(error, 'strerror', None) or error}"
    try:
        process.communicate(disk.to_json(facts).encode(), TIMEOUT_SECONDS)
        code = process.returncode
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):  # what it started goes with it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"{words[0]} was stopped after {TIMEOUT_SECONDS:.0f} s"
    return f"{words[0]} ended with exit code {code}" if code else None
