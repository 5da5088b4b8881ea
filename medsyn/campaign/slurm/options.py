"""The sbatch options of an array or gate, the same for `plan`, which prints them, as for `submit`."""

from __future__ import annotations

from collections.abc import Sequence

from medsyn.campaign.slurm.graph import Node
from medsyn.campaign.slurm.site import GATE, Resources, Site

DEFAULT_PARALLELISM = 256  # elements of an array at work at once, where the site says nothing

Options = dict[str, str | int | bool]


def wanted(site: Site, node: Node) -> Resources:
    """What the site asks for, for this node's jobs."""
    return site.resources(GATE if node.kind == "gate" else node.stage)


def sbatch(site: Site, node: Node, bad_nodes: Sequence[str] = ()) -> Options:
    """The node's sbatch options, by their names with underscores, except name, dependency and array.

    Args:
        site: the cluster.
        node: the array or gate.
        bad_nodes: nodes to leave out besides the site's own.
    """
    ours = wanted(site, node)
    options: Options = {name.replace("-", "_"): value for name, value in ours.sbatch.items()}
    for name in ("partition", "account", "qos", "gres", "constraint", "reservation", "mem", "cpus_per_task", "nice"):
        value = getattr(ours, name)
        if value is not None:
            options[name] = value
    if ours.time is not None:
        options["time"] = ours.time
    if excluded := [*filter(None, [ours.exclude]), *bad_nodes]:
        options["exclude"] = ",".join(excluded)
    if site.mail_user:
        options |= {"mail_user": site.mail_user, "mail_type": site.mail_type}
    options["requeue"] = True  # after preemption and node failure, by Slurm; after saving, by the batch script
    return options


def array(site: Site, node: Node) -> str | None:
    """The value of --array, or None: a single task is no array."""
    count = len(node.tasks)
    if node.kind == "gate" or count == 1:
        return None
    return f"0-{count - 1}%{min(count, parallelism(site, node))}"


def parallelism(site: Site, node: Node) -> int:
    """Elements of the array at work at once."""
    return wanted(site, node).array_parallelism or DEFAULT_PARALLELISM


def as_text(options: Options) -> str:
    """The options as one would type them."""
    return " ".join(
        f"--{name.replace('_', '-')}" if value is True else f"--{name.replace('_', '-')}={value}"
        for name, value in options.items()
    )


def srun(site: Site, node: Node) -> list[str]:
    """Arguments of srun. Since Slurm 22.05 a step does not inherit --cpus-per-task everywhere."""
    ours = wanted(site, node)
    return [*([f"--cpus-per-task={ours.cpus_per_task}"] if ours.cpus_per_task else []), *ours.srun]
