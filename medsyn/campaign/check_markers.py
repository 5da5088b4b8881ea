"""Are the records and tables of finished generate tasks, byte by byte, what they were when the task ended?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from medsyn import disk
from medsyn.campaign.records import Campaign, FileRecord, done_marker, outputs
from medsyn.generation.findings import Finding
from medsyn.generation.shard_tables import ATTEMPTS_TABLE, MANIFEST_TABLE


def findings(campaign: Campaign, told: Collection[Path]) -> Iterator[Finding]:
    """A finding for every file that a done marker lists otherwise; blocks and tables in `told` are passed over."""
    root = campaign.directory.root
    for planned in campaign.plan.by_stage.get("generate", []):
        marker = campaign.directory.done(*planned.key)
        facts = done_marker(campaign, planned)
        if facts is None:
            if marker.exists():
                yield Finding(marker, "is damaged, or of another campaign", marker)
            continue
        try:
            listed = [FileRecord(**output) for output in facts["outputs"]]
            places = [(record, root / record.path) for record in listed]
        except (KeyError, TypeError):
            places = []
        if [path for _, path in places] != list(outputs(campaign, planned)):
            yield Finding(marker, "is damaged: it does not list what the task made", marker)
            continue
        for record, path in places:
            damaged = path if path.name in (MANIFEST_TABLE, ATTEMPTS_TABLE) else path.parent
            if damaged in told or not path.is_file():
                continue
            if path.stat().st_size != record.size or disk.sha256_file(path) != record.sha256:
                yield Finding(path, "has other content than when its task ended", damaged)
