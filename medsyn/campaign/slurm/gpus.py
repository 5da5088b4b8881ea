"""Several GPUs for a fine-tuning task: what the profile asks for one, times `finetune.gpus`, for that array alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from medsyn.campaign.slurm.site import Resources, Site, option
from medsyn.config import Config
from medsyn.errors import Problem

_COUNTED = ("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")
_GPU = re.compile(r"^(?P<kind>gpu(?::[A-Za-z_][\w.-]*)?)(?::(?P<count>\d+))?(?P<rest>\(.*\))?$")  # of --gres
_NUMBER = re.compile(r"^(?P<kind>(?:[A-Za-z_][\w.-]*:)?)(?P<count>\d+)$")  # of --gpus and its like


def with_gpus(profile: Site, config: Config) -> Site:
    """The profile, with as many GPUs for fine-tuning as a task has; where its entry names a number, that stands."""
    wanted = config.finetune.gpus
    if wanted == "auto" or wanted == 1 or not config.device.use_cuda:
        return profile
    own = profile.stages.get("finetune")
    ours = profile.resources("finetune")
    changes: dict[str, Any] = {}
    if not _names_gpus(own):
        changes = {"gres": _times(ours.gres, wanted), "sbatch": _sbatch(ours, wanted)}
    if ours.cpus_per_task and not (own and "cpus_per_task" in own.model_fields_set):
        changes["cpus_per_task"] = ours.cpus_per_task * wanted
    given = own.model_dump(exclude_unset=True) if own else {}
    changes = {name: value for name, value in changes.items() if value}
    entry = Resources.model_validate(given | changes)
    return profile.model_copy(update={"stages": {**profile.stages, "finetune": entry}})


def problems(profile: Site, config: Config, source: str) -> Iterator[Problem]:
    """A number of GPUs that `with_gpus` cannot ask for, or that the profile contradicts."""
    wanted = config.finetune.gpus
    if wanted == "auto" or wanted == 1 or not config.device.use_cuda:
        return
    ours = with_gpus(profile, config).resources("finetune")
    if (ours.gres or "").startswith(("shard", "mps")):
        reason = f"{ours.gres} is a part of a card, and finetune.gpus is {wanted}: ask for whole cards here"
        yield Problem(source, reason, key="stages.finetune.gres")
        return
    asked = _asked(ours)
    if asked is None:
        reason = f"it asks for no GPU, and finetune.gpus is {wanted}: if the partition gives none by itself, add gres"
        yield Problem(source, reason, key="gres", severity="warning")
    elif asked < wanted:
        reason = f"it gives a fine-tuning task {asked}, and finetune.gpus is {wanted}: raise it, or leave it out"
        yield Problem(source, reason, key="stages.finetune")


def _names_gpus(entry: Resources | None) -> bool:
    if entry is None:
        return False
    return entry.gres is not None or any(option(name) in _COUNTED for name in entry.sbatch)


def _times(gres: str | None, wanted: int) -> str | None:
    """`gpu:titanxp:1,lscratch:10` -> `gpu:titanxp:2,lscratch:10`."""
    if gres is None:
        return None
    return ",".join(_part(part, wanted) for part in gres.split(","))


def _part(part: str, wanted: int) -> str:
    match = _GPU.match(part)
    return f"{match['kind']}:{max(wanted, int(match['count'] or 1))}{match['rest'] or ''}" if match else part


def _sbatch(ours: Resources, wanted: int) -> dict[str, str | int | bool]:
    changed: dict[str, str | int | bool] = {}
    for name, value in ours.sbatch.items():
        match = _NUMBER.match(str(value)) if option(name) in _COUNTED else None
        if match:
            number = max(wanted, int(match["count"]))
            changed[name] = f"{match['kind']}{number}" if match["kind"] else number
    return changed


def _asked(ours: Resources) -> int | None:
    """How many GPUs a task is given, as far as the options say."""
    numbers = [int(match["count"] or 1) for part in (ours.gres or "").split(",") if (match := _GPU.match(part))]
    for name, value in ours.sbatch.items():
        if option(name) in _COUNTED and (match := _NUMBER.match(str(value))):
            numbers.append(int(match["count"]))
    return max(numbers, default=None)
