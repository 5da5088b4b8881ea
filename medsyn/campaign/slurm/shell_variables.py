"""Variables of the user's shell that sbatch would have read: medsyn hands Slurm the site profile and nothing else.

What a profile says must be what is queued, from every shell and by every `resume`; so the variables are left out, and
the user is told which key says the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from medsyn.campaign.slurm.site import ONE_CLUSTER, OWNED, Resources, Site, option
from medsyn.errors import Problem

CLUSTERS = ("SLURM_CLUSTERS", "SBATCH_CLUSTERS")
# Variables that are not called as their option, without SBATCH_
_OTHER_NAMES = {"timelimit": "time", "mem-per-node": "mem", "array-inx": "array"}
# Without an option that a profile could have, or set by Slurm inside of a job
_SILENT = {"debug", "debug-flags", "ignore-pbs", "get-user-env", "cpu-bind", "mem-bind"}
# What srun and salloc read; Slurm sets none of them inside of a job, except where noted by SLURM_JOB_ID
_OF_SRUN = {"ACCOUNT", "CONSTRAINT", "EXCLUSIVE", "GPUS", "GRES", "PARTITION", "QOS", "RESERVATION", "TIMELIMIT"}


def problems(
    profile: Site, source: str | None, cluster: str | None, environment: Mapping[str, str] = os.environ
) -> Iterator[Problem]:
    """An error for another cluster, and a warning for every variable whose key the profile leaves out.

    Args:
        profile: the site's.
        source: the profile's file; None where there is no profile.
        cluster: the name of the cluster that Slurm's commands reach; None if it was not asked.
        environment: the shell's variables.
    """
    for name in CLUSTERS:
        if (value := environment.get(name)) and value != cluster:
            yield Problem(name, f"{_shown(value)} in your shell is not passed on: {ONE_CLUSTER}, and unset {name}")
    for name, value in sorted(environment.items()):
        key = _key(name, environment) if value else None
        if key is not None and not _is_set(profile, key):
            place = f"in {source}" if source else "in a site profile (cluster.site)"
            wanted = f"{key}: {value}" if _own_key(key) else f"sbatch: {{{key}: {value}}}"
            reason = f"{_shown(value)} in your shell is not passed to jobs: write {_shown(wanted)} {place}"
            yield Problem(name, reason, severity="warning")


def _key(name: str, environment: Mapping[str, str]) -> str | None:
    """The option that the variable stands for, or None where it stands for none that a profile could have."""
    if name in CLUSTERS:
        return None
    prefix, _, rest = name.partition("_")
    of_srun = prefix == "SLURM" and rest in _OF_SRUN and "SLURM_JOB_ID" not in environment
    if prefix != "SBATCH" and not of_srun:
        return None
    word = option(rest.lower())
    word = _OTHER_NAMES.get(word, word)
    return None if word in OWNED | _SILENT else word


def _own_key(key: str) -> bool:
    return key.replace("-", "_") in Resources.model_fields


def _is_set(profile: Site, key: str) -> bool:
    """Whether the profile, or a stage in it, says something about the option."""
    every = (profile, *profile.stages.values())
    if _own_key(key):
        return any(getattr(one, key.replace("-", "_")) is not None for one in every)
    return any(option(name) == key for one in every for name in one.sbatch)


def _shown(value: str) -> str:
    """A value on one line, and short: it is the user's own shell's."""
    text = value if value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
