"""`generation.batch_size: auto`: the largest batch that a card's memory is estimated to hold, chosen at plan time."""

from __future__ import annotations

from medsyn.campaign import footprint, machine
from medsyn.campaign.footprint import GIB
from medsyn.campaign.machine import CONFIGURATION
from medsyn.config import Config
from medsyn.errors import InputError
from medsyn.models import architecture

SIZES = (1, 2, 4, 8, 16, 32, 64)
ON_CPU = 8
RESERVE = 0.1  # of the card's memory: how far off the estimate may be


def resolve(config: Config) -> Config:
    """The configuration with a number in the place of `auto`.

    A batch of one is chosen where even that is too large: `capacity.check` says what would help.

    Raises:
        InputError: the tasks will run on a GPU and `cluster.gpu_memory_gib` does not say how much memory it has.
    """
    if config.generation.batch_size != "auto":
        return config
    if not machine.expects_gpu(config):
        return with_size(config, ON_CPU)
    if config.cluster.gpu_memory_gib is None:
        reason = (
            "generation.batch_size=auto needs to know how much memory a card has: set it, or give a batch size, or set "
            "device.use_cuda=false where tasks compute without a GPU"
        )
        raise InputError(CONFIGURATION, reason, key="cluster.gpu_memory_gib")
    budget = (1 - RESERVE) * config.cluster.gpu_memory_gib * GIB
    return with_size(config, max((size for size in SIZES if needed(config, size) <= budget), default=SIZES[0]))


def with_size(config: Config, size: int) -> Config:
    """The configuration with another batch size."""
    return config.model_copy(update={"generation": config.generation.model_copy(update={"batch_size": size})})


def needed(config: Config, size: int) -> int:
    """Bytes of a card's memory that generation in batches of `size` is estimated to need."""
    networks = architecture.read(config.model_paths.stable_diffusion, config.data.resolution)
    return footprint.memory(with_size(config, size), "generate", networks)
