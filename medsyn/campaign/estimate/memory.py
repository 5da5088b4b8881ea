"""Bytes that the stages need: GPU memory while they run, disk while they run and permanently.

Estimates from the networks' shapes; docs/performance.md says what they rest on.
"""

from __future__ import annotations

from dataclasses import dataclass

from medsyn.arms import filters
from medsyn.campaign.estimate import architecture
from medsyn.campaign.estimate.architecture import Architecture, Count
from medsyn.campaign.estimate.workload import Volume
from medsyn.config import Config, FinetuneSection
from medsyn.modality_names import base_modality
from medsyn.models.lora_targets import lora_parameters
from medsyn.stage import Task
from medsyn.text import GIB

CONTEXT = 0.75 * GIB  # CUDA's context, loaded kernels and convolution workspaces: 0.5 to 0.8 GiB
FLOAT = 4
HALF = 2
ADAM = 8  # bytes of state per parameter: two float32 averages
ADAM_8BIT = 2
AUTOCAST_SAVED = 3  # bytes of a number saved under bfloat16 autocast, on average: norms stay in float32
WORKING = 3  # tensors as large as the widest one, alive at once in a forward pass
# The next ones repeat constants of modules that a login node does not import; a test holds them in step.
VALIDATED = 64  # held-out images that a loss is measured on, at most
VALIDATED_ROWS = 4  # of each
SAMPLE_STEPS = 20  # of a validation image
JUDGED_TOGETHER = 64  # rated images in one forward pass
SCORER_CHECKPOINTS = 2  # kept while the scorers learn
ORIGINALS, KINDS_PER_IMAGE, GRADES = (
    64,
    4,
    2,
)  # good images of a modality that are damaged, in how many ways and degrees
# for each good image that a modality's generator samples: whole runs of the sampler, single steps besides, and pictures
SAMPLED_RUNS, SAMPLED_CALLS, SAMPLED_PICTURES = 1.8, 5, 16
EXAMINED = 512  # comparisons that are looked at after every epoch, of each kind, at most
PULLS, COMPARED = 0.5, 2.0  # images that a step of the Selector sees for each rating besides it
LEVELS = 8  # noise levels that a candidate is learned from at, at most
REAL_IMAGES = 2048  # of a modality's training images, that the Selector looks at beside candidates, at most
COLOURS = {"Fundus": 3}  # channels of a modality's PNG files; all others are grey

PNG_BYTES_PER_VALUE = 0.8  # of a noisy grey or colour image; smooth ones need half of it
IMAGE_RECORDS = 2_500  # bytes of an image's text chunks and its line in the manifest
ATTEMPT_RECORD = 300  # bytes of a candidate's line
DISK_BLOCK = 4_096  # what the file system gives out at once
BLOCK_FILES = 3  # of a block of images, beside the images
REPORT = 5 * 2**20  # bytes of report, metrics and judge


def scorers(config: Config) -> list[Count]:
    """One network of each scorer; there are `selector.members` of each. The Selector is the first, if there is one."""
    policy = architecture.scorer(config.policy_model)
    return [architecture.scorer(config.selector), policy] if config.training.stage1.train_selector else [policy]


def scorer_parameters(config: Config) -> int:
    """Of all networks of all scorers."""
    return config.selector.members * sum(count.parameters for count in scorers(config))


def seen_for_a_rating(config: Config) -> list[float]:
    """How many images each scorer sees in a step for one rating; comparisons and assumed ones are the Selector's."""
    further = PULLS + COMPARED if config.selector.artifact_detection else 0.0
    return [1 + further, 1.0][-len(scorers(config)) :]


def samples(config: Config, stage: str) -> int:
    """How many good images a stage samples to learn what bad ones are."""
    section = config.selector
    judges = stage == "rlhf-stage2" and config.training.stage1.train_selector and section.artifact_detection
    return section.sampled_prompts if judges else 0


def memory(config: Config, stage: str, model: Architecture) -> int:
    """Peak bytes of GPU memory (of main memory where there is no GPU) that one task of a stage needs."""
    if stage == "finetune":
        return round(CONTEXT + max(_encoding(model, True), _finetuning(config, model)))
    if stage == "align":
        return round(CONTEXT + max(_aligning(config, model), _generating(config, model, True)))
    if stage == "generate":
        return round(CONTEXT + _generating(config, model))
    if stage == "evaluate":
        return 0  # it computes on the processor
    fitting = _encoding(model, False) + _fitting(config)
    return round(CONTEXT + max(fitting, _generating(config, model) if samples(config, stage) else 0))


def _encoding(model: Architecture, with_unet: bool) -> float:
    """Images pass the VAE one by one."""
    parameters = model.vae_parameters + model.text.parameters + (model.unet.parameters if with_unet else 0)
    return FLOAT * (parameters + WORKING * model.decoder.widest)


def _finetuning(config: Config, model: Architecture, images: int | None = None) -> float:
    """Weights, gradients, optimizer, and what the backward pass needs; a moving average lies in the host's memory.

    `images` are in a forward pass; None: as many as a batch has.
    """
    section, unet = config.finetune, model.unet
    saved = unet.inputs + unet.block if section.gradient_checkpointing else unet.saved
    number = AUTOCAST_SAVED if config.device.precision in ("float16", "bfloat16") else FLOAT
    weights = FLOAT + (HALF if number != FLOAT else 0)  # autocast keeps a copy in half precision
    optimizer = ADAM_8BIT if section.use_8bit_adam else ADAM
    frozen = 0 if section.lora.rank is None else unet.parameters
    trained = trained_parameters(section, model)
    batch = min(section.train_batch_size, -(-section.global_batch // ranks(section))) if images is None else images
    working: float = batch * saved * number
    if section.validation_images is not None:  # between two steps the VAE decodes, image by image
        working = max(working, FLOAT * (model.vae_parameters + WORKING * model.decoder.widest))
    return frozen * weights + trained * (weights + FLOAT + optimizer) + working


def _aligning(config: Config, model: Architecture) -> float:
    """Training as in fine-tuning, with what samples and judges beside it: VAE, text encoder, scorers."""
    finetune = config.align.as_finetuning(config.finetune)
    training = _finetuning(config.model_copy(update={"finetune": finetune}), model, 0)
    learning = _finetuning(config.model_copy(update={"finetune": finetune}), model) - training
    size = config.generation.images_per_batch
    rows = size * (2 if config.generation.guidance_scale != 1 else 1)
    sampling = FLOAT * WORKING * max(rows * model.unet.widest, size * model.decoder.widest)
    beside = FLOAT * (model.vae_parameters + model.text.parameters + scorer_parameters(config))
    return training + beside + max(learning, sampling)


def ranks(section: FinetuneSection) -> int:
    """How many GPUs a fine-tuning task is expected to have; one, where it takes what it is given."""
    return 1 if section.gpus == "auto" else section.gpus


def trained_parameters(section: FinetuneSection, model: Architecture) -> int:
    """Of the UNet, or of its adapters."""
    return model.unet.parameters if section.lora.rank is None else lora_parameters(model.unet_shapes, section.lora)


def _generating(config: Config, model: Architecture, scores: bool = False) -> float:
    """What sampling needs, with scorers beside it where a mode has them, or `scores`.

    The UNet counts as float32 in half precision too: a batch that overflows is repeated in float32.
    """
    section, size = config.generation, config.generation.images_per_batch
    rows = size * (2 if section.guidance_scale != 1 else 1)
    working = WORKING * max(rows * model.unet.widest, size * model.decoder.widest)
    beside = scorer_parameters(config) if scores or section.filters else 0
    return FLOAT * (model.unet.parameters + model.vae_parameters + model.text.parameters + beside + working)


def _fitting(config: Config) -> float:
    """Weights, gradients, two averages and the best weights so far of each network; they see a batch one by one."""
    trained, size = scorers(config), config.training.batch_size
    saved = max(size * rows * count.saved for rows, count in zip(seen_for_a_rating(config), trained, strict=True))
    batch = max(saved, JUDGED_TOGETHER * trained[0].widest)
    return FLOAT * (5 * scorer_parameters(config) + batch)


@dataclass(frozen=True)
class Disk:
    """Bytes that one task leaves, and those it needs in addition while it runs."""

    kept: int
    scratch: int = 0


def disk(config: Config, task: Task, model: Architecture, work: Volume, candidates: float) -> Disk:
    """Bytes of disk that one task needs; `candidates` is how many a filtered image is expected to take."""
    if task.stage == "finetune":
        captions = work.images + 1  # at most: many images share one
        posteriors = work.images * config.finetune.augment.encoded + validated(config.finetune, work)
        cache = HALF * (2 * posteriors * model.latent + captions * model.prompt)
        section, checkpoint = config.finetune, checkpoint_bytes(config, model)
        last = last_checkpoint_bytes(config, model)
        checkpoints = (section.checkpoints_total_limit + 1) * checkpoint - last
        if section.keep_best:  # one for each of them at most
            checkpoints += (section.checkpoints_total_limit + 1) * FLOAT * model.unet.parameters
        parts = model.encoder + model.decoder + model.text  # at most: they are links where that is possible
        unets = model.unet.parameters + (config.finetune.lora.rank is not None) * trained_parameters(
            config.finetune, model
        )
        saved = unets * (1 + kept_unets(config.finetune)) + parts.parameters
        return Disk(cache + FLOAT * saved + last, checkpoints)
    if task.stage == "align":
        return _aligned(config, task, model)
    if task.stage == "generate":
        return Disk(round(_images(config, task, work, candidates)))
    if task.stage == "evaluate":
        return Disk(REPORT)
    weights = FLOAT * scorer_parameters(config)
    pixels = 3 * config.data.resolution**2
    # stage 2 finds its images in stage 1's cache, and adds what it samples
    cache = HALF * samples(config, task.stage) * SAMPLED_PICTURES * pixels
    if task.stage == "rlhf-stage1":
        cache += HALF * (work.rated * (pixels + model.text_width) + damaged(config, work, task.modality) * pixels)
    # in each: weights, the best ones so far, two averages
    return Disk(cache + weights, (SCORER_CHECKPOINTS + 1) * 4 * weights)


def _aligned(config: Config, task: Task, model: Architecture) -> Disk:
    """Candidates and the model are left; what is computed of candidates, checkpoints and rounds' UNets go."""
    section = config.align
    changed = config.model_copy(update={"finetune": section.as_finetuning(config.finetune)})
    candidates = section.prompts * section.candidates
    pictures = candidates * image_bytes(config, task.modality or "")
    reference = min(section.max_train_steps * section.learned, LEVELS * candidates)
    cache = FLOAT * model.latent * (candidates + reference) + candidates * COLOURS.get(task.modality or "", 1) * (
        config.data.resolution**2
    )
    unet = FLOAT * model.unet.parameters
    checkpoints = (section.checkpoints_total_limit + 1) * (checkpoint_bytes(changed, model) + unet)
    parts = model.encoder + model.decoder + model.text  # at most: they are links where that is possible
    kept = unet + FLOAT * parts.parameters + section.rounds * pictures
    return Disk(round(kept), round(cache + checkpoints + (section.rounds - 1) * unet))


def damaged(config: Config, work: Volume, modality: str | None) -> int:
    """How many good images are damaged, at most, to learn from what that does."""
    if not (config.training.stage1.train_selector and config.selector.artifact_detection):
        return 0
    modalities = 1 if modality else max(1, len(config.data.modalities))
    return min(ORIGINALS * modalities, work.images + work.held_out + work.rated)


def validated(section: FinetuneSection, work: Volume) -> int:
    """How many held-out images a fine-tuning measures its loss on."""
    return 0 if section.validate_every is None else min(work.held_out, VALIDATED)


def kept_unets(section: FinetuneSection) -> int:
    """How many UNets a fine-tuning keeps besides the last."""
    return (section.max_train_steps - 1) // section.keep_every if section.keep_every else 0


def checkpoint_bytes(config: Config, model: Architecture) -> int:
    """Bytes of one checkpoint of a fine-tuning: weights, optimizer, moving average."""
    section = config.finetune
    each = FLOAT + (ADAM_8BIT if section.use_8bit_adam else ADAM) + (FLOAT if section.use_ema else 0)
    return each * trained_parameters(section, model)


def image_bytes(config: Config, modality: str) -> float:
    """Bytes of disk that one image of a modality and its records take."""
    values = COLOURS.get(base_modality(modality), 1) * config.data.resolution**2
    return PNG_BYTES_PER_VALUE * values + IMAGE_RECORDS + DISK_BLOCK


def last_checkpoint_bytes(config: Config, model: Architecture) -> int:
    """Bytes of the checkpoint that a finished fine-tuning leaves, to be given more steps."""
    section = config.finetune
    return checkpoint_bytes(config, model) if section.can_be_lengthened and section.keep_last_checkpoint else 0


def _images(config: Config, task: Task, work: Volume, candidates: float) -> float:
    image = image_bytes(config, task.modality or "")
    blocks = work.places / config.generation.block_size
    total = 0.0
    for mode in config.generation.modes:
        attempts = candidates if filters(mode) else 1
        kept = 1 + min(config.generation.keep_rejected, attempts - 1)  # not all are rejected: at most
        total += work.asked * (kept * image + attempts * ATTEMPT_RECORD) + blocks * BLOCK_FILES * DISK_BLOCK
    return total
