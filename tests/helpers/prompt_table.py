"""A whole prompt list in memory, as medsyn never reads one."""

from __future__ import annotations

from pathlib import Path

from medsyn.data.prompts.rows import PromptRow, PromptSource, new_faults
from medsyn.data.tables.read import InputTable


def read_prompts(path: Path) -> InputTable[PromptRow]:
    """Its good rows and its problems; raises as `PromptSource.rows` does."""
    faults = new_faults(path)
    rows = list(PromptSource.file(path).rows(faults))
    return InputTable(path, rows, [*faults.all_errors(), *faults.warnings()])
