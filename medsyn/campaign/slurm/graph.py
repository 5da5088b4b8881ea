"""Which job arrays and gates a campaign needs, and what each waits for: pure functions of the plan.

finetune[modality] -> gate per modality -->
rlhf-stage1 -> gate --------------------> rlhf-stage2 per modality -> gate per modality
    -> align per modality -> gate per modality (where align.enabled)
    -> generate[shard] per modality, in chunks of what one array may hold -> gate per modality -> evaluate

The number of nodes depends on modalities and chunks, never on tasks or prompts. A gate comes after the tasks it looks
at, however they ended; what needs those tasks comes after the gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from medsyn.campaign.slurm.submissions import Kind, Submission
from medsyn.campaign.tasks import Key, Plan, PlannedTask
from medsyn.stage import slug


@dataclass(frozen=True)
class Node:
    """A job array (one task an element) or a gate, before it is queued.

    Of tasks: `gates` are new gates that must have passed, `queued_gates` Slurm's ids of those already in the queue.
    Of a gate: `after` are the new nodes that run the tasks it looks at, `queued_tasks` Slurm's ids of queued ones.
    """

    name: str
    kind: Kind
    stage: str
    tasks: tuple[str, ...]
    gates: tuple[str, ...] = ()
    queued_gates: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    queued_tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queued:
    """What is in Slurm's queue already, by Slurm's id: tasks, and the gates that will look at them."""

    tasks: Mapping[Key, str] = field(default_factory=dict)
    gates: Mapping[Key, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in the order of queueing, each after everything it refers to."""

    nodes: tuple[Node, ...]
    gate_of: Mapping[Key, str]  # the new gate that looks at a task


def build(
    plan: Plan,
    done: Collection[Key],
    queued: Queued,
    chunk: int,
    only: Collection[Key] | None = None,
    to_the_end: bool = False,
) -> Graph:
    """What has to be queued to run everything that is neither done nor in the queue.

    Args:
        plan: the campaign's plan.
        done: tasks that are done.
        queued: what is in the queue already.
        chunk: most elements of one array (Slurm's MaxArraySize).
        only: queue only these tasks.
        to_the_end: whether a gate comes after the last stage, too: it tells that the campaign is over.
    """
    missing = [
        planned
        for planned in plan
        if planned.key not in done and planned.key not in queued.tasks and (only is None or planned.key in only)
    ]
    nodes, gate_of = _replaced_gates(plan, [*missing, *(plan.by_key[key] for key in queued.tasks)], queued)
    for name, members in _groups(missing).items():
        stage = members[0].task.stage
        gates, queued_gates = dependencies(members, gate_of, queued, done)
        arrays = [members[start : start + chunk] for start in range(0, len(members), chunk)]
        names = [name if len(arrays) == 1 else f"{name}.{number}" for number in range(len(arrays))]
        for array_name, array in zip(names, arrays, strict=True):
            nodes.append(Node(array_name, "tasks", stage, _names(array), gates, queued_gates))
        if stage != "evaluate" or to_the_end:  # no task comes after it
            for gate, looked_at in _gates(members).items():
                nodes.append(Node(gate, "gate", stage, _names(looked_at), after=tuple(names)))
                gate_of |= {planned.key: gate for planned in looked_at}
    return Graph(tuple(nodes), gate_of)


def _replaced_gates(plan: Plan, waiting: Iterable[PlannedTask], queued: Queued) -> tuple[list[Node], dict[Key, str]]:
    """New gates for tasks in the queue that lost theirs (it was cancelled), where another task waits for them."""
    waited_for = {key for planned in waiting for key in (*planned.needs, *planned.after)}
    bare = [plan.by_key[key] for key in queued.tasks if key in waited_for and key not in queued.gates]
    nodes: list[Node] = []
    gate_of: dict[Key, str] = {}
    for name, looked_at in _gates(bare).items():
        jobs = tuple(queued.tasks[planned.key] for planned in looked_at)
        nodes.append(Node(f"{name}-again", "gate", looked_at[0].task.stage, _names(looked_at), queued_tasks=jobs))
        gate_of |= {planned.key: f"{name}-again" for planned in looked_at}
    return nodes, gate_of


def dependencies(
    members: Iterable[PlannedTask], gate_of: Mapping[Key, str], queued: Queued, done: Collection[Key]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(new gates by name, queued gates by Slurm's id) that look at what the members wait for, done tasks aside."""
    waits_for = dict.fromkeys(key for planned in members for key in (*planned.needs, *planned.after))
    open_keys = [key for key in waits_for if key not in done]
    new = dict.fromkeys(gate_of[key] for key in open_keys if key in gate_of)
    old = dict.fromkeys(queued.gates[key] for key in open_keys if key not in gate_of and key in queued.gates)
    return tuple(new), tuple(old)


def queued(submissions: Sequence[Submission], tasks: Mapping[Key, str], gates: Collection[str]) -> Queued:
    """What is in the queue, of what was ever submitted.

    Args:
        submissions: oldest first.
        tasks: Slurm's id of every task with a job in the queue.
        gates: names of the gates in the queue.

    A gate that was queued before a task's newest submission does not wait for that one and does not count for it.
    """
    found: dict[Key, str] = {}
    for submission in submissions:
        keys = [(submission.stage, task) for task in submission.tasks]
        if submission.kind == "tasks":
            for key in keys:
                found.pop(key, None)
        elif submission.name in gates:
            found |= dict.fromkeys(keys, submission.job)
    return Queued(tasks, {key: job for key, job in found.items() if key in tasks})


def _groups(tasks: Iterable[PlannedTask]) -> dict[str, list[PlannedTask]]:
    """Tasks by the array they belong to: one per stage.

    It is one per modality where tasks wait for another of their modality: one that fails stops its own branch alone.
    """
    groups: dict[str, list[PlannedTask]] = {}
    for planned in tasks:
        stage, its = planned.task.stage, slug(planned.task.modality or "")
        apart = stage == "generate" or (its and any(name == its for _, name in planned.needs))
        groups.setdefault(f"{stage}-{its}" if apart else stage, []).append(planned)
    return groups


def _gates(members: Iterable[PlannedTask]) -> dict[str, list[PlannedTask]]:
    """Tasks by the gate that looks at them: a modality goes on without waiting for the others."""
    gates: dict[str, list[PlannedTask]] = {}
    for planned in members:
        of = f"-{slug(planned.task.modality)}" if planned.task.modality else ""
        gates.setdefault(f"gate-{planned.task.stage}{of}", []).append(planned)
    return gates


def _names(members: Iterable[PlannedTask]) -> tuple[str, ...]:
    return tuple(planned.task.name for planned in members)
