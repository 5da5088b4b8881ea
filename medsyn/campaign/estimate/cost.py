"""What a campaign is expected to cost: seconds, memory and disk of every task. Pure functions; estimates, not promises.

Seconds are the floating-point operations of the work over the rate of a card, and at least what starting every layer
takes. docs/performance.md says where the constants come from and how far off they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from medsyn.arms import filters
from medsyn.campaign.estimate import architecture
from medsyn.campaign.estimate import memory as estimate_memory
from medsyn.campaign.estimate.architecture import Architecture, Count
from medsyn.campaign.estimate.workload import Counts, Volume, unet_calls, volume
from medsyn.campaign.tasks import Key, Plan
from medsyn.config import Config
from medsyn.stage import Task

# TFLOP/s that Stable Diffusion reaches, where cluster.tflops says nothing: what the slowest card in use with the
# precision reaches. `auto` may be a Pascal card.
GPU_TFLOPS = {"auto": 5.0, "float32": 5.0, "float16": 10.0, "bfloat16": 30.0}
CPU_TFLOPS = 0.04  # of one thread
LAYER_SECONDS = 1e-4  # to start one layer, its activation included: a floor for small batches
BACKWARD = 2  # times a forward pass
LORA_BACKWARD = 1  # without the gradients of frozen weights
START_SECONDS = 8.0  # of a process that runs a task: Python, torch, the weights
CONTINUED_SECONDS = 0.2  # from a task to the next one in the same process, or in a fork: benchmarks/launch.py, between
READ_BYTES_PER_SECOND = 1e9  # of weights that this machine has read before: a fork reads them again
WRITE_BYTES_PER_SECOND = 300e6  # of weights and checkpoints, hashed and flushed to a shared file system
COPY_BYTES_PER_SECOND = 4e9  # of a checkpoint from a card to ordinary memory; training waits for it
PINNED_BYTES_PER_SECOND = 10e9  # of the weights from a card to pinned memory, for their average (PCIe 3)
AVERAGE_BYTES_PER_SECOND = 4e9  # of weights that a processor averages
HASH_BYTES_PER_SECOND = 0.5e9  # of a checkpoint; without a card this is taken from the passes
UPDATE_BYTES = 40  # read and written for a trained weight by clipping and AdamW
UPDATE_BYTES_PER_SECOND = {True: 500e9, False: 8e9}  # with a card, and without
SUM_BYTES_PER_SECOND = 8e9  # of gradients, from a card to another over PCIe 3.0; most of 12e9
CANDIDATES_PER_PASS = 1.5  # two of three candidates pass the Selector
MEASURING_SECONDS = {True: 5e-9, False: 1e-6}  # a pixel's part of the quality metrics, with a card, and without
VERSIONS = 4  # of each image that the scorers are shown, at most
EVALUATION_SECONDS = 0.03  # for one image
# For copies of training images: to describe a real one, and to look for the source of an image (docs/memorization.md).
INDEX_SECONDS, COPY_SECONDS, PLANTED_KINDS = 0.04, 0.15, 18
JUDGE_SECONDS = 15.0  # to train the judge of phantoms


@dataclass(frozen=True)
class TaskCost:
    """One task, of which nothing is done yet."""

    seconds: float  # expected
    least: float  # if every candidate passes the filter
    most: float  # if every image takes generation.max_attempts
    memory: int  # peak bytes of the card
    kept: int  # bytes of disk for good
    scratch: int  # bytes of disk besides, while it runs
    gpus: int = 1  # that it holds
    waiting: float = 0.0  # seconds of `seconds` in which all of them but one have nothing to do


@dataclass(frozen=True)
class Estimate:
    """All tasks of a campaign."""

    tasks: Mapping[Key, TaskCost]  # each as if it was the first one of a process
    spared: Mapping[str, float]  # seconds of starts in them that there will not be, by stage
    on_gpu: bool
    tflops: float
    candidates: float  # that a filtered image is expected to take
    assumed: bool  # the networks' sizes are those of SD v1.5, for want of the weights

    def of(self, stage: str) -> list[TaskCost]:
        """The tasks of a stage, in order."""
        return [cost for (its, _), cost in self.tasks.items() if its == stage]

    def in_all(self, stage: str) -> float:
        """Seconds of all tasks of a stage together."""
        return sum(cost.seconds for cost in self.of(stage)) - self.spared[stage]

    def hours(self, which: str = "seconds") -> float:
        """Hours of all tasks that hold a card (of all tasks where there is none): `seconds`, `least` or `most`."""
        held = [(stage, cost) for (stage, _), cost in self.tasks.items() if stage != "evaluate" or not self.on_gpu]
        spared = sum(self.spared[stage] for stage in {stage for stage, _ in held})
        return (sum(cost.gpus * float(getattr(cost, which)) for _, cost in held) - spared) / 3600


def estimate(config: Config, plan: Plan, counts: Counts, on_gpu: bool, forks: bool = False) -> Estimate:
    """What every task of a plan costs.

    Args:
        config: resolved.
        plan: its tasks.
        counts: the amount of work, by modality; absent counts are zero.
        on_gpu: whether the tasks will find a GPU.
        forks: whether they are forks of one process on this machine, and not jobs.
    """
    model = CostModel(config, counts, on_gpu)
    tasks = {planned.key: model.task(planned.task) for planned in plan}
    spared = model.spared({stage: len(its) for stage, its in plan.by_stage.items()}, forks)
    return Estimate(tasks, spared, on_gpu, model.flops_per_second / 1e12, model.candidates[0], model.networks.assumed)


@dataclass(frozen=True)
class Finetuning:
    """Seconds of one fine-tuning, by what takes them."""

    encoding: float  # images and captions
    unet: float  # forward and backward passes
    update: float  # gradients summed over the ranks, clipping, the optimizer
    waiting: float  # for the moving average and for checkpoints
    ending: float  # writing the model
    validating: float = 0.0  # the held-out loss and validation images

    @property
    def seconds(self) -> float:
        """All together."""
        return self.encoding + self.unet + self.update + self.waiting + self.ending + self.validating

    @property
    def alone(self) -> float:
        """Of one rank, while the others wait."""
        return self.encoding + self.waiting + self.ending + self.validating

    @property
    def outside(self) -> float:
        """The share of the steps' time in which neither passes nor updates are computed."""
        return self.waiting / (self.unet + self.update + self.waiting)


@dataclass(frozen=True)
class CostModel:
    """Costs of the tasks of one campaign; what they share is computed once."""

    config: Config
    counts: Counts
    on_gpu: bool

    @cached_property
    def networks(self) -> Architecture:
        """Of the campaign's generator."""
        return architecture.read(
            self.config.model_paths.described_by, self.config.data.resolution, self.config.data.chunks
        )

    @cached_property
    def flops_per_second(self) -> float:
        """The rate that the work is divided by."""
        device = self.config.device
        usual = GPU_TFLOPS[device.precision] if self.on_gpu else CPU_TFLOPS * device.cpu_threads
        return 1e12 * (self.config.cluster.tflops or usual)

    @cached_property
    def candidates(self) -> tuple[float, float, float]:
        """Candidates for one filtered image: expected, at least, at most."""
        section = self.config.generation
        expected = min(section.num_candidates * CANDIDATES_PER_PASS, section.max_attempts)
        return expected, section.num_candidates, section.max_attempts

    @cached_property
    def _known(self) -> dict[tuple[str, str | None, Volume], TaskCost]:
        return {}

    def task(self, task: Task) -> TaskCost:
        """The cost of one task; cached by amount of work, because there may be 100,000 shards."""
        work = volume(self.config, task, self.counts)
        key = (task.stage, task.modality, work)
        if key not in self._known:
            self._known[key] = self._cost(task, work)
        return self._known[key]

    def _cost(self, task: Task, work: Volume) -> TaskCost:
        seconds = {
            "finetune": self._finetune,
            "rlhf-stage1": self._rlhf,
            "rlhf-stage2": self._rlhf,
            "align": self._align,
            "generate": self._generate,
            "evaluate": self._evaluate,
        }[task.stage]
        expected, least, most = (START_SECONDS + seconds(task, work, candidates) for candidates in self.candidates)
        memory = estimate_memory.memory(self.config, task.stage, self.networks)
        disk = estimate_memory.disk(self.config, task, self.networks, work, self.candidates[0])
        gpus = estimate_memory.ranks(self.config.finetune) if task.stage == "finetune" else 1
        waiting = START_SECONDS + self.finetuning(work).alone if gpus > 1 else 0.0
        return TaskCost(expected, least, most, memory, disk.kept, disk.scratch, gpus, waiting)

    def spared(self, tasks: Mapping[str, int], forks: bool) -> dict[str, float]:
        """Seconds of starts that do not happen, of so many tasks of each stage.

        Forks start once, and each reads the weights. On Slurm `cluster.max_parallel` jobs of generate are taken to be
        at work at once, and go on with the other tasks of their array.
        """
        found, section = dict.fromkeys(tasks, 0.0), self.config.cluster
        if forks:
            networks = self.networks
            parts = (networks.unet, networks.encoder, networks.decoder, networks.text)
            read = estimate_memory.FLOAT * sum(part.parameters for part in parts) / READ_BYTES_PER_SECOND
            each = max(0.0, START_SECONDS - CONTINUED_SECONDS - read)
            found = {stage: count * each for stage, count in tasks.items()}
            if first := next((stage for stage, count in tasks.items() if count), None):
                found[first] -= each
        elif section.continue_in_allocation and not section.claim:
            others = max(0, tasks.get("generate", 0) - section.max_parallel)
            found["generate"] = others * (START_SECONDS - CONTINUED_SECONDS)
        return found

    def _seconds(self, network: Count, rows: int, passes: float = 1) -> float:
        """Of `passes` forward passes of `rows` samples."""
        return passes * max(rows * network.flops / self.flops_per_second, network.layers * LAYER_SECONDS)

    def _finetune(self, task: Task, work: Volume, _: float) -> float:
        return self.finetuning(work).seconds

    def finetuning(self, work: Volume) -> Finetuning:
        """What a fine-tuning on so many images takes its time for."""
        section, networks = self.config.finetune, self.networks
        validated = estimate_memory.validated(section, work)
        captions = work.images + validated + 1
        encoding = self._seconds(networks.encoder, 1, work.images * section.augment.encoded + validated)
        encoding += self._seconds(networks.text, 1, captions)
        passes, steps, ranks = self._passes(), section.max_train_steps, estimate_memory.ranks(section)
        gradients = estimate_memory.FLOAT * self._trained * 2 * (ranks - 1) / ranks
        update = UPDATE_BYTES * self._trained / UPDATE_BYTES_PER_SECOND[self.on_gpu]
        update += gradients / SUM_BYTES_PER_SECOND
        step = passes / steps + update
        waiting = steps * (self._averaging(step) + self._saving(step))
        published = estimate_memory.FLOAT * networks.unet.parameters
        ending, validating = published / WRITE_BYTES_PER_SECOND, self._validating(validated)
        return Finetuning(encoding, passes, steps * update, waiting, ending, validating)

    def _validating(self, images: int) -> float:
        """Seconds of all measurements of the held-out loss on so many images, and of the images drawn beside them."""
        section, networks = self.config.finetune, self.networks
        if section.validate_every is None:
            return 0.0
        size = max(1, section.train_batch_size // estimate_memory.VALIDATED_ROWS)
        each = self._seconds(networks.unet, size * estimate_memory.VALIDATED_ROWS, images / size)
        drawn = min(section.validation_images or 0, images)
        each += self._seconds(networks.unet, 2, drawn * estimate_memory.SAMPLE_STEPS)
        each += self._seconds(networks.decoder, 1, drawn)
        if section.use_ema:  # goes into the UNet and out again, each time
            each += 3 * estimate_memory.FLOAT * self._trained / COPY_BYTES_PER_SECOND * (2 if drawn else 1)
        # before the first step, and after the last one, too
        return (1 + -(-section.max_train_steps // section.validate_every)) * each

    def _passes(self) -> float:
        """Forward and backward: each rank computes its part of every batch, and the longest part counts."""
        section, networks = self.config.finetune, self.networks
        ranks = estimate_memory.ranks(section)
        backward = BACKWARD if section.lora.rank is None else LORA_BACKWARD
        passes = section.max_train_steps * (1 + backward + section.gradient_checkpointing)
        whole, rest = divmod(-(-section.global_batch // ranks), section.train_batch_size)
        seconds = self._seconds(networks.unet, section.train_batch_size, whole * passes)
        return seconds + (self._seconds(networks.unet, rest, passes) if rest else 0.0)

    @property
    def _trained(self) -> int:
        return estimate_memory.trained_parameters(self.config.finetune, self.networks)

    def _averaging(self, step: float) -> float:
        """Seconds of a step that training waits for the moving average: a card computes meanwhile."""
        section, size = self.config.finetune, estimate_memory.FLOAT * self._trained
        if not section.use_ema:
            return 0.0
        update = size / AVERAGE_BYTES_PER_SECOND + size / (
            PINNED_BYTES_PER_SECOND if self.on_gpu else COPY_BYTES_PER_SECOND
        )
        return (max(0.0, update - section.ema_every * step) if self.on_gpu else update) / section.ema_every

    def _saving(self, step: float) -> float:
        """Seconds of a step that training waits for copies of checkpoints and kept UNets."""
        section, size = self.config.finetune, estimate_memory.checkpoint_bytes(self.config, self.networks)
        writing = size / WRITE_BYTES_PER_SECOND
        interval = max(60 * section.max_lost_minutes - writing, writing)
        if section.checkpointing_steps:
            interval = section.checkpointing_steps * step
        waiting = size / COPY_BYTES_PER_SECOND + max(0.0, writing - interval)
        if not self.on_gpu:
            waiting += size / HASH_BYTES_PER_SECOND
        waiting *= min(step / interval, 1.0)
        kept = estimate_memory.kept_unets(section) * estimate_memory.FLOAT * self._trained
        return waiting + kept / COPY_BYTES_PER_SECOND / section.max_train_steps

    def _rlhf(self, task: Task, work: Volume, _: float) -> float:
        """Stage 2 finds the images of stage 1 in the cache, and samples others."""
        section, config, seconds = self.config.training, self.config, 0.0
        if task.stage == "rlhf-stage1":
            if config.raters.match_decoder:
                seconds += self._seconds(self.networks.encoder, 1, work.rated)
                seconds += self._seconds(self.networks.decoder, 1, work.rated)
            seconds += self._seconds(self.networks.text, 1, work.rated)
        originals = estimate_memory.damaged(config, work, task.modality)
        sampled = estimate_memory.samples(config, task.stage) * estimate_memory.SAMPLED_PICTURES
        copies = originals * (1 + estimate_memory.KINDS_PER_IMAGE * estimate_memory.GRADES)
        seconds += self._sampling(task) + self._measuring(VERSIONS * work.rated + VERSIONS / 2 * (copies + sampled))
        steps = -(-work.ratings // section.batch_size)
        learning = max(1, config.selector.members - 1)  # none learns from the images that it is asked about
        networks = zip(estimate_memory.scorers(config), estimate_memory.seen_for_a_rating(config), strict=True)
        for network, rows in networks:
            size = round(section.batch_size * rows)
            training = learning * self._seconds(network, size, steps * (1 + BACKWARD))
            asked = work.rated + (rows > 1) * min(copies + sampled, 2 * estimate_memory.EXAMINED)
            together = estimate_memory.JUDGED_TOGETHER
            seconds += section.max_epochs * (training + self._seconds(network, together, asked / together))
        return seconds

    def _sampling(self, task: Task) -> float:
        """Good images of the modality's generator, and bad ones."""
        section, networks = self.config.generation, self.networks
        if not (count := estimate_memory.samples(self.config, task.stage)):
            return 0.0
        size, (guided, plain) = section.images_per_batch, unet_calls(section)
        runs = estimate_memory.SAMPLED_RUNS + estimate_memory.SAMPLED_CALLS / (guided + plain)
        each = self._seconds(networks.unet, 2 * size, runs * guided) + self._seconds(networks.unet, size, runs * plain)
        each += self._seconds(networks.decoder, size, estimate_memory.SAMPLED_PICTURES)
        return -(-count // size) * each

    def _align(self, task: Task, work: Volume, _: float) -> float:
        """Each round: candidates, what the model before it predicts, training, and the judge's looks."""
        section, networks = self.config.align, self.networks
        finetune = section.as_finetuning(self.config.finetune)
        reference = min(section.max_train_steps, estimate_memory.LEVELS * section.prompts) * section.learned
        looks = 1 + -(-section.max_train_steps // section.judge_every)
        training = CostModel(self.config.model_copy(update={"finetune": finetune}), self.counts, self.on_gpu)
        each = self._sampled(section.prompts * section.candidates) + looks * self._sampled(section.judge_images)
        each += self._seconds(networks.unet, section.train_batch_size, reference / section.train_batch_size)
        each += training.finetuning(Volume()).seconds
        kept = estimate_memory.FLOAT * networks.unet.parameters / WRITE_BYTES_PER_SECOND
        looked_at = self._measuring(min(work.images, estimate_memory.REAL_IMAGES))
        return section.rounds * (each + looks * kept) + looked_at

    def _sampled(self, images: int) -> float:
        """So many images as the campaign samples them, decoded and scored."""
        section = self.config.generation
        guided, plain = unet_calls(section)
        size = section.images_per_batch
        members = self.config.selector.members
        judging = members * sum(self._seconds(network, size) for network in estimate_memory.scorers(self.config))
        return -(-images // size) * (self.batch(guided, plain) + judging) + self._measuring(2 * images)

    def _measuring(self, images: float) -> float:
        """The quality metrics of so many images."""
        return images * self.config.selector.image_size**2 * MEASURING_SECONDS[self.on_gpu]

    def _generate(self, task: Task, work: Volume, candidates: float) -> float:
        section, networks, size = self.config.generation, self.networks, self.config.generation.images_per_batch
        batch = self.batch(work.guided, work.plain)
        scorers, members = estimate_memory.scorers(self.config), self.config.selector.members
        # the quality metrics take little beside an image, and without a card are part of any rate that was measured
        judging = members * sum(self._seconds(network, size) for network in scorers)
        batches = work.places / size
        seconds = self._seconds(networks.text, 1, work.asked / section.img_num)
        for mode in section.modes:
            seconds += batches * (candidates * (batch + judging) if filters(mode) else batch)
        return seconds

    def batch(self, guided: float, plain: float) -> float:
        """Seconds to sample and decode one batch, with these numbers of guided and unguided UNet calls."""
        networks, size = self.networks, self.config.generation.images_per_batch
        denoising = self._seconds(networks.unet, 2 * size, guided) + self._seconds(networks.unet, size, plain)
        return denoising + self._seconds(networks.decoder, size)

    def rate_for(self, seconds: float) -> float:
        """The TFLOP/s at which one batch with the configuration's settings takes `seconds`.

        If starting the layers alone takes longer, it is the operations over the seconds, and the estimate stays longer.
        """
        guided, plain = unet_calls(self.config.generation)
        size, networks = self.config.generation.images_per_batch, self.networks
        flops = size * ((2 * guided + plain) * networks.unet.flops + networks.decoder.flops)
        return flops / seconds / 1e12

    def _evaluate(self, task: Task, work: Volume, _: float) -> float:
        """On the processor, wherever the rest computes."""
        images = sum(self.counts.get("images", {}).values())
        modes = len(self.config.generation.modes)
        seconds = JUDGE_SECONDS + EVALUATION_SECONDS * (images + work.asked * modes)
        return seconds + self._copies(work.asked * modes)

    def _copies(self, synthetic: int) -> float:
        """To search for copies, among so many images at most."""
        section = self.config.evaluation
        if not section.copies:
            return 0.0
        real = [min(count, 2 * section.max_images) for count in self.counts.get("images", {}).values()]
        honest = sum(2 * min(section.copies_honest, count) for count in real)
        planted = sum(PLANTED_KINDS * min(section.copies_planted, count) for count in real)
        most = len(self.config.data.modalities) * section.max_images * len(self.config.generation.modes)
        return INDEX_SECONDS * sum(real) + COPY_SECONDS * (min(synthetic, most) + honest + planted)
