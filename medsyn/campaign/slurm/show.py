"""What `medsyn plan` prints about the queue: every array and gate, what it waits for, and its sbatch options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from medsyn.campaign.slurm import graph, sbatch
from medsyn.campaign.slurm.graph import Node, Queued
from medsyn.campaign.slurm.site import Site
from medsyn.campaign.state import gate
from medsyn.campaign.tasks import Plan
from medsyn.config import Config


def jobs(config: Config, plan: Plan, chunk: int) -> Sequence[Node]:
    """What the first submission of a campaign queues; `chunk`: most elements of one array."""
    first, tells = gate.first(plan, config), bool(config.cluster.notify)
    return graph.build(plan, set(), Queued(), chunk, first, tells).nodes


def show(console: Console, nodes: Sequence[Node], site: Site) -> None:
    """Print the jobs of a whole campaign as a table.

    Args:
        console: where to.
        nodes: the jobs.
        site: the cluster.
    """
    table = Table("job", "tasks", "waits for", "sbatch", title="Slurm", title_justify="left")
    for row in as_list(nodes, site):
        table.add_row(row["job"], str(row["tasks"]) if row["tasks"] else "", ", ".join(row["waits_for"]), row["sbatch"])
    console.print(table)
    _warn(console, nodes, site)


def as_list(nodes: Sequence[Node], site: Site) -> list[dict[str, Any]]:
    """The jobs for scripts: name, kind, number of tasks, what each waits for, sbatch options as text."""
    return [
        {
            "job": node.name,
            "kind": node.kind,
            "tasks": len(node.tasks) if node.kind == "tasks" else 0,
            "waits_for": [f"{_dependency(node)} {name}" for name in (*node.gates, *node.after)],
            "sbatch": sbatch.options_as_text(_options(site, node)),
        }
        for node in nodes
    ]


def _options(site: Site, node: Node) -> sbatch.Options:
    chosen = sbatch.sbatch_options(site, node)
    array = sbatch.array_option(site, node)
    return ({"array": array} if array else {}) | chosen | {"signal": f"USR2@{site.signal_seconds}"}


def _dependency(node: Node) -> str:
    return "afterany" if node.kind == "gate" else "afterok"


def _warn(console: Console, nodes: Sequence[Node], site: Site) -> None:
    """`array_parallelism` holds for each array; where a stage has several, more run at once than it says."""
    arrays: dict[str, int] = {}
    for node in nodes:
        if node.kind == "tasks":
            arrays[node.stage] = arrays.get(node.stage, 0) + 1
    for stage, count in arrays.items():
        limit = site.resources(stage).array_parallelism
        if limit is not None and count > 1:
            many = f"{count} arrays: up to {limit * count} tasks at once"
            text = f"{stage}: array_parallelism {limit} applies to each of its {many}"
            console.print(text, soft_wrap=True, highlight=False)
