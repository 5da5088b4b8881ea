"""`campaign.gate: ratings`: evaluation waits until experts have rated images of the campaign."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from medsyn import own_ratings
from medsyn.campaign.state.campaign_file import Campaign
from medsyn.campaign.tasks import Key, Plan
from medsyn.config import Config
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.stage import CampaignDirectory

STAGE = "evaluate"


def held(campaign: Campaign) -> frozenset[Key]:
    """The tasks that wait for ratings."""
    if campaign.config.campaign.gate is None or own_ratings.current(campaign.directory):
        return frozenset()
    return frozenset(planned.key for planned in campaign.plan.by_stage[STAGE])


def first(plan: Plan, config: Config) -> set[Key]:
    """The tasks of a campaign that run before anybody has rated anything."""
    return {key for key in plan.by_key if config.campaign.gate is None or key[0] != STAGE}


def commands(directory: CampaignDirectory) -> tuple[str, str]:
    """What to type for the page that experts open, and for what comes back."""
    root = shlex.quote(str(directory.root))
    return (
        f"medsyn rate export {root} --out set.html",
        f"medsyn rate import ANSWERS --key set.key.json --campaign {root}",
    )


def why(directory: CampaignDirectory) -> str:
    """Why a task waits, and what opens the gate."""
    export, back = commands(directory)
    return f"waits for ratings of the campaign's own images (campaign.gate): `{export}`, then `{back}`"


def require_open(campaign: Campaign, key: Key) -> None:
    """Raise InputError if the task waits for ratings."""
    if key in held(campaign):
        raise InputError(" ".join(key), why(campaign.directory))


def require_none_held(campaign: Campaign, only: Collection[Key] | None) -> None:
    """Raise InputProblems if a task was chosen that waits for ratings."""
    if chosen := sorted(held(campaign) & set(only or ())):
        reason = why(campaign.directory)
        raise InputProblems([Problem("--only", f"{' '.join(key)} {reason}") for key in chosen])
