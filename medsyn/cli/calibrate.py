"""medsyn calibrate CONFIG: how fast this machine samples, as the key that makes the plan's estimates match."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsyn.cli import app
from medsyn.config import Config
from medsyn.errors import EXIT_BAD_NODE, EXIT_DONE, InputError, InputProblems
from medsyn.models.weights import KEY
from medsyn.stage import BadNode, CampaignDirectory
from medsyn.text import gib

if TYPE_CHECKING:
    from medsyn.generation.sample.batch import ImageSampler

FEW, MORE = 2, 6  # steps of the timed batches; what a step takes is their difference
TIMED = 3  # batches of each; the median counts


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    device: str
    seconds: float  # to sample and decode one batch with the configuration's steps
    images: int  # in one batch
    tflops: float  # the rate by which the cost model comes to these seconds
    estimated: float  # seconds, by the cost model at that rate: more where layers are too small for the device
    memory: int | None  # peak bytes of a GPU


def calibrate(program: str, arguments: Sequence[str]) -> int:
    """Sample a few batches with the campaign's pretrained model, and print the rate to put into the configuration."""
    parser = app.config_parser(program, str(calibrate.__doc__))
    args = parser.parse_intermixed_args(arguments)

    from medsyn.campaign.plan import capacity, inputs
    from medsyn.models import model_folder

    given = app.load(args)
    resolved = inputs.resolve(given)
    if inputs.is_to_convert(given, resolved):
        reason = "is converted when the campaign is prepared: submit it, and calibrate with its directory"
        raise InputError(given.model_paths.stable_diffusion, reason, key=KEY)
    if missing := model_folder.missing(resolved.model_paths.stable_diffusion):
        raise InputProblems(missing)
    try:
        speed = measure(resolved)
    except BadNode as error:
        print(error)
        return EXIT_BAD_NODE
    section = resolved.generation
    print(f"device            {speed.device}")
    print(f"batch             {speed.images} at {resolved.data.resolution} px, {section.num_inference_steps} steps")
    print(f"seconds a batch   {speed.seconds:.3g} ({speed.estimated:.3g} estimated at the rate below)")
    print(f"images a second   {speed.images / speed.seconds:.3g}")
    if speed.memory is not None:
        estimated = gib(capacity.needed(resolved, speed.images))
        print(f"peak memory       {gib(speed.memory)} GiB ({estimated} estimated, for all modes)")
    print(f"cluster.tflops={speed.tflops:.3g}")
    return EXIT_DONE


def measure(config: Config) -> Speed:
    """Sample batches of the configured size as generation does, with few steps, and extrapolate to all steps.

    Args:
        config: resolved. The campaign need not be prepared; the pretrained model is used, as fine-tuning changes no
            shape.

    Raises:
        InputError: the batch does not fit into the device's memory.
        BadNode: the GPU cannot be used.
    """
    import torch

    from medsyn.campaign.estimate.cost import CostModel
    from medsyn.campaign.estimate.workload import unet_calls
    from medsyn.generation.sample.load import Loader
    from medsyn.generation.stage import memory_told

    section, size = config.generation, config.generation.images_per_batch
    whole = {"fast": False, "deep_cache_every": None, "text_attention_until": None}
    plain = config.model_copy(update={"generation": section.model_copy(update=whole)})
    sampler = Loader(plain, config.data.modalities[0], CampaignDirectory(config.campaign.path)).sampler("pretrained")
    on_gpu = sampler.system.device.type == "cuda"
    with memory_told(config):
        sample(sampler, FEW)  # the first batch loads kernels and embeds the prompts
        few, more = (_median(sampler, steps) for steps in (FEW, MORE))
    guided, unguided = unet_calls(section)
    of_a_row = max(more[0] - few[0], 0.0) / (more[1] - few[1])
    seconds = few[0] + of_a_row * (size * (2 * guided + unguided) - few[1])
    tflops = CostModel(config, {}, on_gpu).rate_for(seconds)
    cluster = config.cluster.model_copy(update={"tflops": tflops})
    estimated = CostModel(config.model_copy(update={"cluster": cluster}), {}, on_gpu).batch(guided, unguided)
    memory = torch.cuda.max_memory_reserved() if on_gpu else None
    return Speed(sampler.device_name, seconds, size, tflops, estimated, memory)


def _median(sampler: ImageSampler, steps: int) -> tuple[float, int]:
    """(seconds, rows the UNet computed) of a batch with this number of steps; the median of the seconds."""
    made = [sample(sampler, steps) for _ in range(TIMED)]
    return statistics.median(seconds for seconds, _ in made), made[0][1]


def sample(sampler: ImageSampler, steps: int) -> tuple[float, int]:
    """Sample one full batch with this number of steps: (seconds, rows the UNet computed)."""
    from medsyn.data.prompts.store import Item

    modality = sampler.recipe.modality
    batch = sampler.sample(
        [
            (Item(f"calibrate-{number}", f"{modality}: calibration", number, num_inference_steps=steps), 0)
            for number in range(sampler.recipe.batch_size)
        ]
    )
    return batch.seconds, batch.unet_evaluations
