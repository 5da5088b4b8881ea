"""`generation.batches_per_block: auto`: how many batches a block has, chosen when a campaign is prepared.

A block of a tar is five entries of the file system, so a large campaign has larger ones. No image depends on it, but
blocks do: once chosen, the number stays, whatever rate or shard length is given later.
"""

from __future__ import annotations

from collections.abc import Mapping

from medsyn import config as configuration
from medsyn.campaign.estimate import memory
from medsyn.campaign.estimate.cost import CostModel
from medsyn.campaign.plan.shards import block_seconds
from medsyn.campaign.state.campaign_file import CampaignRecord
from medsyn.campaign.tasks import reads_key
from medsyn.config import Config
from medsyn.data.prompts.store import ListIndex

KEY = "generation.batches_per_block"
USUAL = 4  # batches of a block
MOST_BLOCKS = 1_000  # of a campaign, its modalities and modes together
MOST_BYTES = 2**29  # of a block's images: while a tar is packed, memory holds them three times
SHARE_OF_SHARD = 0.5  # of `generation.shard_minutes`: a block is what one task makes alone


def with_batches(config: Config, number: int) -> Config:
    """The configuration with so many batches in a block."""
    return config.model_copy(update={"generation": config.generation.model_copy(update={"batches_per_block": number})})


def as_recorded(config: Config, record: CampaignRecord | None) -> Config:
    """The configuration with the number on record in place of `auto`; unchanged where there is none.

    Args:
        config: resolved but for this.
        record: of the campaign, if it has been prepared.
    """
    if config.generation.batches_per_block != "auto" or record is None:
        return config
    return with_batches(config, record["config"]["generation"]["batches_per_block"])


def resolve(config: Config, record: CampaignRecord | None, index: ListIndex, model: CostModel) -> Config:
    """The configuration with a number in place of `auto`: the one on record while the blocks stay what they are.

    Args:
        config: resolved but for this.
        record: of the campaign, if it has been prepared.
        index: the prompts as they are now.
        model: what the campaign costs.
    """
    if config.generation.batches_per_block != "auto":
        return config
    kept = as_recorded(config, record)
    if record is not None and not _makes_others(record, kept, index):
        return kept
    return with_batches(config, choose(config, model))


def _makes_others(record: CampaignRecord, config: Config, index: ListIndex) -> bool:
    """Whether the campaign has other images to make than on record, so that there are no blocks yet to keep."""
    amounts = {modality: [list(run) for run in runs] for modality, runs in index.amounts().items()}
    changed = configuration.changes(record["config"], config)
    return record["prompts"] != amounts or any(reads_key("generate", key, config) for key in changed)


def choose(config: Config, model: CostModel) -> int:
    """The power of two from `USUAL` on by which a campaign of tars has at most `MOST_BLOCKS` blocks.

    Fewer, where such blocks would be larger than `MOST_BYTES`, or longer than half a shard. A file per image is an
    entry of the file system for each, and larger blocks would save next to nothing.
    """
    section, asked = config.generation, {name: count for name, count in model.counts["asked"].items() if count}
    if section.output != "webdataset" or not asked:
        return USUAL
    batches = len(section.modes) * sum(asked.values()) / section.images_per_batch
    most = _most(config, model, asked)
    number = USUAL
    while batches / number > MOST_BLOCKS and 2 * number <= most:
        number *= 2
    return number


def _most(config: Config, model: CostModel, asked: Mapping[str, int]) -> float:
    """The batches that a block of any modality may have at most, by its bytes and by its seconds."""
    section = config.generation
    usual = with_batches(config, USUAL)
    timed = CostModel(usual, model.counts, model.on_gpu)
    blocks = {name: -(-count // usual.generation.block_size) for name, count in asked.items()}
    longest = max(block_seconds(timed, name, count) for name, count in blocks.items())
    largest = section.images_per_batch * max(memory.image_bytes(config, name) for name in asked)
    return min(SHARE_OF_SHARD * 60 * section.shard_minutes * USUAL / longest, MOST_BYTES / largest)
