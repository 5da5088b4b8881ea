"""How many blocks of a modality one shard holds: as many as take `generation.shard_minutes`, or the user's number.

The sizes are chosen once, when the campaign is prepared, and recorded: done markers are named by shard. A campaign is
re-sharded where the user changes one of `RESHARDED_BY`, or something that no image exists of yet. No image is lost by
that: a shard finds the blocks that are there, whichever task made them.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

from medsyn import config as configuration
from medsyn.campaign.estimate.cost import START_SECONDS, CostModel
from medsyn.campaign.tasks import RESHARDED_BY, reads_key
from medsyn.config import Config
from medsyn.data.prompts.store import ListIndex
from medsyn.stage import Task

ShardSizes = Mapping[str, int]  # blocks of one shard, by modality


def choose_sizes(model: CostModel, blocks: Mapping[str, int]) -> dict[str, int]:
    """How many blocks a shard of each modality holds.

    By time, all shards of a modality are about equally long, two thirds to three halves of `shard_minutes` with the
    start of the task, if the modality has work for so long. All its blocks count as equally long.

    Args:
        model: what a block costs.
        blocks: how many there are of each modality.
    """
    limit = model.config.cluster.max_shards
    blocks = {modality: count for modality, count in blocks.items() if count}
    sizes = _unbounded(model, blocks)
    return sizes if limit is None or count_shards(blocks, sizes) <= limit else _longer(model, blocks, limit)


def notes(model: CostModel, blocks: Mapping[str, int], sizes: ShardSizes) -> list[str]:
    """What a plan must say about the shard `sizes` for so many blocks, beside its numbers."""
    limit, said = model.config.cluster.max_shards, []
    unbounded, today = count_shards(blocks, _unbounded(model, blocks)), choose_sizes(model, blocks)
    if limit is not None and limit < len(blocks):
        said.append(f"cluster.max_shards={limit}, but each of {len(blocks)} modalities has a shard of its own")
    if limit is not None and unbounded > max(limit, len(blocks)):
        said.append(f"cluster.max_shards={limit} makes them longer; without it there would be {unbounded}")
    if today != sizes:
        count = count_shards(blocks, today)
        said.append(
            f"their sizes date from when the campaign was prepared; by today's estimate there would be {count}; "
            "change generation.shard_minutes to re-shard"
        )
    return said


def count_shards(blocks: Mapping[str, int], sizes: ShardSizes) -> int:
    """How many shards there are of all modalities."""
    return sum(-(-count // sizes[modality]) for modality, count in blocks.items())


def block_seconds(model: CostModel, modality: str, count: int) -> float:
    """What each of the `count` blocks of a modality takes on average in all modes, without the start of the task."""
    return (model.task(Task("generate", 0, "", modality, (0, count))).seconds - START_SECONDS) / count


def _unbounded(model: CostModel, blocks: Mapping[str, int]) -> dict[str, int]:
    """The sizes without `cluster.max_shards`."""
    section = model.config.generation
    if section.blocks_per_shard is not None:
        return dict.fromkeys(blocks, section.blocks_per_shard)
    each = 60 * section.shard_minutes - START_SECONDS
    full = {modality: max(1, round(each / block_seconds(model, modality, count))) for modality, count in blocks.items()}
    return {modality: _split(count, round(count / full[modality])) for modality, count in blocks.items()}


def _split(count: int, shards: int) -> int:
    """The size of `shards` about equal parts of `count`."""
    return -(-count // min(max(shards, 1), count))


def _longer(model: CostModel, blocks: Mapping[str, int], limit: int) -> dict[str, int]:
    """`limit` shards in all (one a modality at least), the longest of them as short as can be."""
    seconds = {modality: count * block_seconds(model, modality, count) for modality, count in blocks.items()}
    shards = dict.fromkeys(blocks, 1)
    longest = [(-seconds[modality], modality) for modality in blocks]
    heapq.heapify(longest)
    for _ in range(limit - len(blocks)):
        modality = longest[0][1]
        shards[modality] += 1
        heapq.heapreplace(longest, (-seconds[modality] / shards[modality], modality))
    return {modality: _split(count, shards[modality]) for modality, count in blocks.items()}


def recorded(record: Mapping[str, Any] | None, config: Config, index: ListIndex) -> dict[str, int] | None:
    """The shard sizes of a prepared campaign, or None where it has none or is to be re-sharded.

    Args:
        record: its record, as written when it was prepared.
        config: resolved, as it is now.
        index: the prompts as they are now.
    """
    if record is None:
        return None
    changed = configuration.changes(record["config"], config)
    amounts = {modality: [list(run) for run in runs] for modality, runs in index.amounts().items()}
    if record["prompts"] != amounts or any(
        key in RESHARDED_BY or reads_key("generate", key, config) for key in changed
    ):
        return None
    return dict(record["blocks_per_shard"])
