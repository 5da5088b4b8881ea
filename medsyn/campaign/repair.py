"""Quarantine damaged images, so that exactly they are made again.

Nothing is deleted: damaged files are moved into a new directory inside the campaign's. A task whose block is gone no
longer counts as done, so a repair may be killed at any moment and run again.

Also the check that records and tables of finished generate tasks are, byte by byte, what they were when the task ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from medsyn import disk
from medsyn.campaign.state import locks, markers
from medsyn.campaign.state.campaign_file import Campaign, FileRecord
from medsyn.campaign.state.markers import done_marker, outputs
from medsyn.campaign.tasks import Key, PlannedTask
from medsyn.generation.block_store import MANIFEST
from medsyn.generation.verify.finding import Finding
from medsyn.generation.write.parquet import ATTEMPTS_TABLE, MANIFEST_TABLE
from medsyn.generation.write.provenance import ENVIRONMENT_FILE, write_environment
from medsyn.records import ENVIRONMENT

QUARANTINE = "set-aside"
_STAGES = ("generate", "evaluate")  # whose tasks write or read images


@contextmanager
def alone(campaign: Campaign) -> Iterator[None]:
    """Hold the campaign's lock while nothing else works on its images; raises `Busy` if something does."""
    with locks.exclusive(campaign.directory.ledger, campaign.directory.root):
        for planned in campaign.plan:
            path = campaign.directory.attempts(*planned.key)
            if planned.task.stage in _STAGES and locks.is_held(path):
                raise locks.Busy(path, " ".join(planned.key))
        yield


def quarantine(campaign: Campaign, findings: Sequence[Finding]) -> tuple[Path, list[PlannedTask]]:
    """Move damaged files to quarantine, with the done markers of the tasks that make them; call it within `alone`.

    Returns:
        The directory they are in now, and the tasks to run again.

    Raises:
        Busy: one of the tasks has begun meanwhile; what was moved until then stays so.
    """
    root = campaign.directory.root
    damaged = list(dict.fromkeys(one.damaged for one in findings if one.damaged is not None))
    damaged = [path for path in damaged if not any(parent in set(damaged) for parent in path.parents)]
    target = _new_folder(root / QUARANTINE)
    made_by = _makers(campaign)
    again: dict[Key, PlannedTask] = {}
    for path in damaged:
        is_table = path.name in (MANIFEST_TABLE, ATTEMPTS_TABLE)
        tasks = made_by.get(path.parent if is_table else path, [])
        with ExitStack() as held:
            for planned in tasks:
                lock = locks.exclusive(campaign.directory.attempts(*planned.key), " ".join(planned.key))
                held.enter_context(lock)
            _move(path, root, target)
            for planned in tasks:
                _move(campaign.directory.done(*planned.key), root, target)
                again[planned.key] = planned
    for name in (MANIFEST_TABLE, ATTEMPTS_TABLE) if again else ():  # they are made of what was damaged
        _move(root / name, root, target)
    _restore_environment(campaign)
    return target, list(again.values())


def _makers(campaign: Campaign) -> dict[Path, list[PlannedTask]]:
    """The tasks that make each block, each directory of tables and each done marker."""
    makers: dict[Path, list[PlannedTask]] = defaultdict(list)
    for planned in campaign.plan.by_stage.get("generate", []):
        task = planned.task
        makers[campaign.directory.done(*planned.key)].append(planned)
        if task.modality is None or task.blocks is None:
            continue
        for mode in campaign.config.generation.modes:
            makers[campaign.directory.shard(mode, task.modality, task.blocks)].append(planned)
            for number in range(*task.blocks):
                makers[campaign.directory.block(mode, task.modality, number)].append(planned)
    return makers


def _new_folder(parent: Path) -> Path:
    taken = [int(path.name) for path in parent.glob("*") if path.name.isdigit()]
    return parent / f"{max(taken, default=0) + 1:03d}"


def _move(path: Path, root: Path, target: Path) -> None:
    """Move a file or directory of the campaign below `target`, if it still exists."""
    if path.exists() or path.is_symlink():
        to = target / path.relative_to(root)
        disk.make_directory(to.parent)
        path.rename(to)


def _restore_environment(campaign: Campaign) -> None:
    """Record again the environment that the images are made in, from the first whole block."""
    path = campaign.directory.work("generate", ENVIRONMENT_FILE)
    if path.exists():
        return
    for planned in campaign.plan.by_stage.get("generate", []):
        for manifest in markers.outputs(campaign, planned):
            if manifest.name == MANIFEST and manifest.is_file():
                record = next(disk.read_jsonl(manifest), {})
                if all(key in record for key in ENVIRONMENT):
                    write_environment(path, record)
                    return


def marker_findings(campaign: Campaign, reported: Collection[Path]) -> Iterator[Finding]:
    """A finding for every file that differs from its done marker's list, except blocks and tables in `reported`."""
    root = campaign.directory.root
    for planned in campaign.plan.by_stage.get("generate", []):
        marker = campaign.directory.done(*planned.key)
        facts = done_marker(campaign, planned)
        if facts is None:
            if marker.exists():
                yield Finding(marker, "is damaged, or belongs to another campaign", marker)
            continue
        try:
            listed = [FileRecord(**output) for output in facts["outputs"]]
            places = [(record, root / record.path) for record in listed]
        except (KeyError, TypeError):
            places = []
        if [path for _, path in places] != list(outputs(campaign, planned)):
            yield Finding(marker, "is damaged: it does not list the task's outputs", marker)
            continue
        for record, path in places:
            damaged = path if path.name in (MANIFEST_TABLE, ATTEMPTS_TABLE) else path.parent
            if damaged in reported or not path.is_file():
                continue
            if path.stat().st_size != record.size or disk.sha256_file(path) != record.sha256:
                yield Finding(path, "has changed since its task ended", damaged)
