"""What a prompt list's further columns are called in the tables of generated images.

A column keeps its name, unless the tables have one of that name (case does not count): then it is `prompt_<name>`.
"""

from __future__ import annotations

from collections.abc import Iterable

# the columns of manifest.parquet, and what else an image's record has
_NAMES = (
    "id prompt modality mode replicate seed accepted reason attempts attempt selector policy precision synthetic "
    "num_inference_steps guidance_scale negative_prompt scheduler batch_size dtype attention container software "
    "file member offset bytes sha256 width height archive dicom dicom_bytes dicom_sha256 dicom_offset "
    "model_fingerprint config_fingerprint scorers_fingerprint item_fingerprint extra block device gpu_seconds"
)
RESERVED = frozenset(_NAMES.split())


def carried_name(column: str) -> str:
    """What a further column is called in the tables."""
    return f"prompt_{column}" if column.casefold() in RESERVED else column


def clash(column: str, others: Iterable[str]) -> str | None:
    """That one of `others` which would be called in the tables as `column` would, or None."""
    name = carried_name(column).casefold()
    return next((other for other in others if other != column and carried_name(other).casefold() == name), None)
