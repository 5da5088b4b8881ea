"""Limits on the number of jobs that a cluster takes, and how a campaign stays below them."""

from __future__ import annotations

import re

from medsyn.campaign.slurm.graph import Graph

# As sbatch names them: of a QOS, an association (user and account) or the whole cluster.
_SUBMIT_LIMIT = re.compile(r"(?:QOS|Assoc)\w*(?:SubmitJob|Submit)\w*|job submit limit|MaxJobCount")
_FULL = re.compile(r"Resource temporarily unavailable|temporarily unable to accept job")
_ARRAY = re.compile(r"Invalid job array specification")


def way_out(said: str, wanted: Graph) -> str:
    """What to do about a limit that sbatch's words name, and how many jobs are needed; empty where they name none.

    Args:
        said: by sbatch, as it refused a job.
        wanted: everything that was to be queued.
    """
    if _ARRAY.search(said):
        return "; MaxArraySize, the largest array that the cluster takes, is smaller: set max_array_size in the profile"
    if not (_SUBMIT_LIMIT.search(said) or _FULL.search(said)):
        return ""
    return f"; {needed(wanted)}"


def needed(wanted: Graph) -> str:
    """How many jobs a launch has in the queue at once, each element of an array counted, and how to make that fewer."""
    tasks = [len(node.tasks) for node in wanted.nodes if node.kind == "tasks"]
    gates = sum(node.kind == "gate" for node in wanted.nodes)
    shards = sum(len(node.tasks) for node in wanted.nodes if node.kind == "tasks" and node.stage == "generate")
    text = f"this needs {sum(tasks) + gates} jobs in the queue at once ({sum(tasks)} tasks, {gates} gates)"
    fewer = f"lower cluster.max_shards ({shards} generate tasks now), " if shards > 1 else ""
    return f"{text}: {fewer}queue one stage after the other with resume --only STAGE, or ask for a higher limit"


def too_many(wanted: Graph, settings: dict[str, str]) -> str | None:
    """Why the cluster cannot take a launch at all, by its MaxJobCount; None if it can."""
    count = sum(len(node.tasks) if node.kind == "tasks" else 1 for node in wanted.nodes)
    most = settings.get("MaxJobCount", "")
    if not most.isdigit() or count < int(most):
        return None
    return f"the cluster takes {most} jobs in all (MaxJobCount); {needed(wanted)}"
