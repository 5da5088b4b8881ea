"""The whole configuration of a campaign as typed, strict models.

A campaign is one YAML file. Values come, later wins, from the defaults below, the file, the specification's
environment variables (`ENVIRONMENT`) and `key=value` overrides on the command line. An unknown key, a wrong type or a
value out of range is one clear error naming the key; all of them are reported at once. This module imports neither
torch nor pandas: login nodes read configurations.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_serializer,
    field_validator,
    model_validator,
)

from medsyn.arms import WEIGHTS_IN_WORDS, Arm, Mode, Weights, arm_of, filters, same
from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems, Problem
from medsyn.modality_names import MODALITIES, canonical_name
from medsyn.schedulers import FAST, MOST_GUIDANCE, TRAINING_STEPS, SchedulerName, Shortcuts, wrong_steps
from medsyn.specification import ENVIRONMENT, OTHER_KEYS, RENAMED, foreign_variables, translate
from medsyn.text import closest, did_you_mean

EMBEDDED = "embedded"  # model_paths.stable_diffusion: the tiny model that ships with medsyn
MOST_IMAGES = 1_000_000  # of one prompt
MOST_SEED = 2**63 - 1
MOST = 10**9  # of any other whole number: what is beyond it is a slip, and no estimate can be made
TOGETHER = "all"  # the name of a task for all modalities
PHANTOMS = "phantoms"  # data.table: the procedural data set that medsyn draws itself

Modality = Annotated[str, AfterValidator(canonical_name)]  # one of the five, or of a part of the body: `Brain MRI`
Precision = Literal["auto", "float32", "float16", "bfloat16"]


class Section(BaseModel):
    """One section of the file: strict types, no unknown keys, immutable once read."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_of_this_world(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, int) and abs(value) > MOST and info.field_name != "seed":
            raise ValueError(f"must be at most {MOST:,}")
        return value


class CampaignSection(Section):
    """The campaign's name, seed and directory."""

    name: str = Field("tiny", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0, le=MOST_SEED)
    dir: str = ""  # "" means runs/<name>
    gate: Literal["ratings"] | None = None  # what evaluation waits for: ratings of the campaign's own images

    @field_validator("dir")
    @classmethod
    def _home_is_known(cls, value: str) -> str:
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError("the home directory of this user is unknown") from None
        return value

    @property
    def path(self) -> Path:
        """The campaign's directory, absolute."""
        return Path(self.dir or Path("runs") / self.name).expanduser().absolute()


class PhantomsSection(Section):
    """The size of the procedural data set, used when `data.table` is `phantoms`."""

    images_per_kind: int = Field(64, ge=4)
    prompts_per_kind: int = Field(4, ge=1)
    image_size: int = Field(128, ge=64, le=512)


class DataSection(Section):
    """The three tables and how their images become arrays."""

    table: str = PHANTOMS
    root: str | None = None
    ratings_file: str | None = None
    pairs_file: str | None = None
    prompts: str | None = None
    base_prompt: str | None = None
    modality_column: str = "modality"
    patient_column: str | None = None  # None: recognised by its name
    keep_columns: list[str] = []
    linked_roots: list[str] = []
    strict: bool = True
    modalities: list[Modality] = Field([], min_length=1)  # [] stands for null: those of the table, once it is read
    resolution: int = Field(256, ge=32, le=1024, multiple_of=8)
    text_chunks: int | None = Field(None, ge=2, le=8)  # None: one; the text encoder reads no more of a text
    held_out_fraction: float = Field(0.2, gt=0, lt=1)
    allow_synthetic: bool = False
    phantoms: PhantomsSection = PhantomsSection()

    @model_validator(mode="before")
    @classmethod
    def _phantoms_are_of_all(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("table", PHANTOMS) == PHANTOMS and tree.get("modalities") is None:
            return {**tree, "modalities": list(MODALITIES)}
        return tree

    @field_validator("modalities", mode="wrap")
    @classmethod
    def _null_is_not_known_yet(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> list[Modality]:
        return [] if value is None else validate(value)

    @field_serializer("modalities")
    def _not_known_yet_is_null(self, value: list[Modality]) -> list[Modality] | None:
        return value or None

    @property
    def chunks(self) -> int:
        """How many times the text encoder is run for one text."""
        return self.text_chunks or 1

    @field_validator("base_prompt")
    @classmethod
    def _blank_is_none(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None

    @model_validator(mode="after")
    def _no_modality_twice(self) -> DataSection:
        for place, modality in enumerate(self.modalities):
            if modality in self.modalities[:place]:
                raise ValueError(f"data.modalities lists a modality twice: {modality}")
        return self


class ModelPathsSection(Section):
    """Where pretrained weights are: diffusers directories, local paths or hub ids, or `embedded`.

    Or one file with all weights, which a campaign converts once with the configurations and the tokenizer in
    `components`; its `stable_diffusion` is then the directory that was made.
    """

    stable_diffusion: str = EMBEDDED
    components: str | None = None

    @property
    def described_by(self) -> str:
        """What has the model's configurations: `stable_diffusion`, or `components` while that is still to be made."""
        if self.components is None or Path(self.stable_diffusion).is_dir():
            return self.stable_diffusion
        return self.components


class DeviceSection(Section):
    """Device and precision; the card's compute capability decides what `auto` means."""

    use_cuda: bool = True
    precision: Precision = "auto"
    compile: bool = False  # the UNet that samples, with torch.compile
    cpu_threads: int = Field(1, ge=1)


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning; off without a rank."""

    rank: int | None = Field(None, ge=1)
    alpha: float | None = Field(None, gt=0)  # None: the rank, so that the adapter counts once
    targets: list[str] | None = Field(None, min_length=1)  # None: the attention's projections

    @model_validator(mode="after")
    def _nothing_without_a_rank(self) -> LoraSection:
        if self.rank is None and (self.alpha is not None or self.targets is not None):
            raise ValueError("lora.alpha and lora.targets are of no use without lora.rank")
        return self

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank


class AugmentSection(Section):
    """Versions of each training image, encoded once; off without their number."""

    versions: int | None = Field(None, ge=2, le=64)  # with the image itself
    rotation: float = Field(5.0, ge=0, le=30)  # degrees, to either side
    zoom: float = Field(0.05, ge=0, le=0.5)
    contrast: float = Field(0.1, ge=0, le=0.5)
    mirror: bool = False

    @model_validator(mode="after")
    def _nothing_without_versions(self) -> AugmentSection:
        if self.versions is None and self.mirror:
            raise ValueError("augment.mirror is of no use without augment.versions")
        return self

    @property
    def encoded(self) -> int:
        """How many times each image is encoded."""
        return (self.versions or 1) * (2 if self.mirror else 1)


class FinetuneSection(Section):
    """Fine-tuning of the UNet, once per modality or once for all of them."""

    together: bool = False  # one model for all modalities, which their texts name
    max_train_steps: int = Field(2000, ge=1)
    train_batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(8, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = Field(100, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    adam_weight_decay: float = Field(1e-2, ge=0)
    snr_gamma: float | None = Field(5.0, gt=0)
    noise_offset: float = Field(0.0, ge=0, le=1)
    prediction_type: Literal["epsilon", "v_prediction"] | None = None  # None: the model's own
    zero_terminal_snr: bool = False
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    rare_captions: int | None = Field(None, ge=2, le=20)  # None: every image once an epoch
    use_8bit_adam: bool = False
    use_ema: bool = False
    ema_decay: float = Field(0.9999, gt=0, lt=1)
    ema_every: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    enable_xformers: bool = False
    checkpointing_steps: int | None = Field(None, ge=1)
    max_lost_minutes: float = Field(10, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    validate_every: int | None = Field(None, ge=1)
    validation_images: int | None = Field(None, ge=1, le=16)
    keep_best: bool = False
    keep_last_checkpoint: bool = True
    gpus: int | Literal["auto"] = 1
    lora: LoraSection = LoraSection()
    augment: AugmentSection = AugmentSection()

    @model_validator(mode="after")
    def _best_is_known(self) -> FinetuneSection:
        if self.keep_best and self.validate_every is None:
            raise ValueError("keep_best needs validate_every: the best is that of the held-out loss")
        if self.validation_images is not None and self.validate_every is None:
            raise ValueError("validation_images needs validate_every, which says how often they are made")
        return self

    @model_validator(mode="after")
    def _losses_fit(self) -> FinetuneSection:
        if self.zero_terminal_snr and self.snr_gamma is not None:
            raise ValueError("zero_terminal_snr needs snr_gamma: null, as min-SNR weighs what is pure noise with 0")
        return self

    @field_validator("gpus", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and value != "auto":
            raise ValueError("gpus must be a whole number of at least 1, or auto")
        return value

    @model_validator(mode="after")
    def _every_gpu_has_work(self) -> FinetuneSection:
        if self.gpus != "auto" and self.gpus > self.global_batch:
            sizes = "train_batch_size x gradient_accumulation_steps"
            raise ValueError(f"gpus is {self.gpus}, but a step has {self.global_batch} samples to share ({sizes})")
        return self

    @property
    def can_be_lengthened(self) -> bool:
        """Whether a step is the same however many come after it; what came before the best is not kept."""
        return self.lr_scheduler == "constant" and not self.keep_best

    def task_for(self, modality: str) -> str:
        """The name, in any spelling, of the task whose model a modality is generated with: its own, or `all`."""
        return TOGETHER if self.together else modality

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step, whatever the micro-batch and the number of GPUs."""
        return self.train_batch_size * self.gradient_accumulation_steps


# at these values a campaign is what it was before there were such keys
_LATER: dict[str, Any] = {
    **{"data.text_chunks": None, "finetune.rare_captions": None, "finetune.together": False},
    **{"evaluation.min_images": 50, "evaluation.min_auroc": 0.5, "evaluation.min_diversity": 0.9},
    **{"evaluation.fail_on": None, "evaluation.copies": False},
    **{"evaluation.copies_honest": 200, "evaluation.copies_planted": 20},
}
_BESIDE = ("device.compile",)  # on record with each image (`records.ENVIRONMENT`), and nothing else depends on it
GLOBAL_BATCH = "finetune.global_batch"  # what a step sees: no key to set, but what results depend on
SHARED_OUT = ("train_batch_size", "gradient_accumulation_steps")  # whose product it is
# which change no sample that a step sees, so that they may change in the middle of a run
FREE_OF_FINETUNE = (
    *("checkpointing_steps", "max_lost_minutes", "checkpoints_total_limit", "keep_every", "keep_last_checkpoint"),
    *("gradient_checkpointing", "validation_images"),
    *("gpus", *SHARED_OUT),
)


# of DPO the scale of the margin, of NFT the share of the new prediction, of AWM the weight of the distance to before
_USUAL_BETA = {"dpo": 2000.0, "nft": 1.0, "awm": 1.0, "rejection": 1.0}


class AlignSection(Section):
    """Alignment of a modality's UNet with what its Selector and its Policy have learned from ratings."""

    enabled: bool = False
    method: Literal["dpo", "nft", "awm", "rejection"] = "dpo"
    rounds: int = Field(1, ge=1, le=10)
    prompts: int = Field(64, ge=2)  # of each modality and round
    candidates: int = Field(8, ge=2, le=64)  # of each prompt
    max_train_steps: int = Field(200, ge=1)  # of each round
    train_batch_size: int = Field(4, ge=2)  # images in one forward pass, a pair at least
    gradient_accumulation_steps: int = Field(8, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    lr_warmup_steps: int = Field(10, ge=0)
    beta: float | None = Field(None, gt=0)  # how hard the method pulls; None: its usual value
    real_share: float = Field(0.3, ge=0, lt=1)  # of each batch: well-rated real images
    spread_weight: float = Field(1.0, ge=0)  # the reward is the scorers' mean minus so many of their spreads
    judge_every: int = Field(25, ge=1)  # steps
    judge_images: int = Field(64, ge=8, le=2000)
    judge_share: float = Field(0.2, gt=0, le=0.5)  # of the rated groups, which no scorer learns from
    min_diversity: float = Field(0.95, ge=0, le=1)
    checkpointing_steps: int | None = Field(None, ge=1)
    max_lost_minutes: float = Field(10, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    lora: LoraSection = LoraSection()

    @model_validator(mode="after")
    def _a_batch_has_candidates(self) -> AlignSection:
        if self.learned < 2:
            raise ValueError(
                f"real_share {self.real_share:g} leaves {self.learned} of a batch's {self.global_batch} images for "
                "candidates, and a pair is two: lower it, or raise train_batch_size"
            )
        return self

    @property
    def global_batch(self) -> int:
        """Images of one optimizer step."""
        return self.train_batch_size * self.gradient_accumulation_steps

    @property
    def strength(self) -> float:
        """`beta`, or the method's usual value."""
        return _USUAL_BETA[self.method] if self.beta is None else self.beta

    @property
    def real(self) -> int:
        """Real images of one optimizer step."""
        return round(self.global_batch * self.real_share)

    @property
    def learned(self) -> int:
        """Candidates of one optimizer step: an even number, for they may come in pairs."""
        return (self.global_batch - self.real) // 2 * 2

    def as_finetuning(self, finetune: FinetuneSection) -> FinetuneSection:
        """How a round trains, in the words of fine-tuning, whose noise schedule and loss weights it goes on with."""
        own = (
            *("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "learning_rate"),
            *("lr_warmup_steps", "checkpointing_steps", "max_lost_minutes", "checkpoints_total_limit", "lora"),
        )
        without: dict[str, Any] = {"use_ema": False, "validate_every": None, "validation_images": None}
        without |= {"keep_best": False, "keep_every": None, "gpus": 1, "lr_scheduler": "constant"}
        return finetune.model_copy(update={name: getattr(self, name) for name in own} | without)


class Stage1Section(Section):
    """RLHF stage 1: Selector and Policy on all ratings."""

    learning_rate: float = Field(1e-4, gt=0)
    train_selector: bool = True


class Stage2Section(Section):
    """RLHF stage 2: the Policy of one modality on the ratings that pass the Selector."""

    learning_rate: float = Field(1e-4, gt=0)
    selector_threshold: float = Field(0.2, ge=0, le=1)


class RlhfCheckpointsSection(Section):
    """How often the RLHF stages save."""

    save_dir: str = Field("checkpoints", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    save_frequency: int = Field(10, ge=1)
    keep: bool = False  # scorers as they are at each save


class TrainingSection(Section):
    """RLHF training, under the specification's key names."""

    stage: Literal[1, 2] = 2
    max_epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    report_to: Literal["tensorboard", "wandb"] | None = None  # of fine-tuning, too
    checkpoints: RlhfCheckpointsSection = RlhfCheckpointsSection()


# which change no sample that a step sees
FREE_OF_ALIGN = ("enabled", "checkpointing_steps", "max_lost_minutes", "checkpoints_total_limit")


class RatersSection(Section):
    """How expert ratings are weighted."""

    expert_weights: bool = True
    mismatch_negatives: bool = True
    match_decoder: bool = False


class ScorerSection(Section):
    """The shape of a scorer (Selector or Policy): what sees the image beside the quality metrics, how many times."""

    encoder: Literal["none", "conv", "vit"] = "vit"
    image_size: int = Field(256, ge=32)
    patch_size: int = Field(16, ge=4)
    hidden_dim: int = Field(384, ge=16)
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(6, ge=1)
    mlp_dim: int = Field(1536, ge=16)
    members: int = Field(5, ge=1, le=20)

    @model_validator(mode="after")
    def _shapes_divide(self) -> ScorerSection:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class SelectorSection(ScorerSection):
    """The shape of the Selector, what it learns from, and what is asked of it."""

    encoder: Literal["none", "conv", "vit"] = "none"
    artifact_detection: bool = True  # from damaged copies of good images too, not from ratings and pairs alone
    sampled_prompts: int = Field(16, ge=0)  # that a modality's generator samples well, and badly on purpose
    require_auroc: float | None = Field(0.5, ge=0, lt=1)  # held-out AUROC that it must be shown to exceed to choose


class PolicySection(ScorerSection):
    """The shape of the Policy, and what looks at the image for it."""

    encoder: Literal["conv", "vit"] = "conv"


FREE_OF_SELECTOR = ("require_auroc",)  # changes no scorer


class GenerationSection(Section):
    """Batch generation from the prompt list."""

    modes: list[Mode] = Field(["baseline", "filtered"], min_length=1)
    baseline_model: Literal["pretrained", "finetuned"] = "pretrained"
    img_num: int = Field(1, ge=1, le=MOST_IMAGES)
    scheduler: SchedulerName = "dpm"
    num_inference_steps: int = Field(25, ge=1, le=TRAINING_STEPS)
    guidance_scale: float = Field(7.5, ge=1, le=MOST_GUIDANCE)
    guidance_interval: list[float] = Field([0.0, 1.0], min_length=2, max_length=2)
    fast: bool = False
    deep_cache_every: int | None = Field(None, ge=1)  # None: what `fast` says
    text_attention_until: float | None = Field(None, gt=0, le=1)
    negative_prompt: str = ""
    batch_size: int | Literal["auto"] = 8
    batches_per_block: int | Literal["auto"] = "auto"
    output: Literal["png", "webdataset"] = "png"
    dicom: bool = False
    blocks_per_shard: int | None = Field(None, ge=1)
    shard_minutes: float = Field(30.0, ge=1)
    num_candidates: int = Field(3, ge=1)
    quality_threshold: float | Literal["auto"] = "auto"  # auto: what the Selector's held-out scores say
    min_policy_score: float | None = Field(None, ge=0, le=1)
    max_attempts: int = Field(10, ge=1)
    on_exhausted: Literal["fail", "skip", "keep-best"] = "skip"
    keep_rejected: int = Field(0, ge=0)

    @field_validator("batch_size", "batches_per_block", mode="before")
    @classmethod
    def _number_or_auto(cls, value: Any, info: ValidationInfo) -> Any:
        is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not is_number and value != "auto":
            raise ValueError(f"{info.field_name} must be a whole number of at least 1, or auto")
        return value

    @field_validator("quality_threshold", mode="before")
    @classmethod
    def _score_or_auto(cls, value: Any) -> Any:
        is_score = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
        if not is_score and value != "auto":
            raise ValueError("quality_threshold must be a number from 0 to 1, or auto")
        return float(value) if is_score else value

    @model_validator(mode="after")
    def _candidates_fit(self) -> GenerationSection:
        if self.num_candidates > self.max_attempts:
            raise ValueError(f"num_candidates {self.num_candidates} is more than max_attempts {self.max_attempts}")
        return self

    @model_validator(mode="after")
    def _sampler_can_do_it(self) -> GenerationSection:
        if reason := wrong_steps(self.scheduler, self.num_inference_steps):
            raise ValueError(f"num_inference_steps is out of the scheduler's range: {reason}")
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ValueError(f"guidance_interval must be [start, end] with 0 <= start < end <= 1, got [{start}, {end}]")
        return self

    @property
    def filters(self) -> bool:
        """Whether scorers choose the images of any mode."""
        return any(map(filters, self.modes))

    @property
    def shortcuts(self) -> Shortcuts:
        """What the sampler leaves out: what `fast` says, unless the key of a shortcut says otherwise."""
        usual = FAST if self.fast else Shortcuts()
        start, end = self.guidance_interval
        return Shortcuts(
            (start, end),
            self.deep_cache_every or usual.deep_cache_every,
            self.text_attention_until or usual.text_attention_until,
        )

    @property
    def images_per_batch(self) -> int:
        """`batch_size` as a number; raises InputError while it is `auto`, which preparing a campaign resolves."""
        return _resolved("batch_size", self.batch_size)

    @property
    def block_size(self) -> int:
        """Images in one block; raises InputError while `batch_size` or `batches_per_block` is `auto`."""
        return self.images_per_batch * _resolved("batches_per_block", self.batches_per_block)


# keys of `generation` that a sampled image depends on, besides its prompt
SAMPLING = (
    *("scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "fast", "deep_cache_every"),
    *("text_attention_until", "negative_prompt", "batch_size"),
)


def _resolved(name: str, value: int | Literal["auto"]) -> int:
    """The number that a key of `generation` is, once nothing is left to choose."""
    if value == "auto":
        reason = "auto is resolved when a campaign is prepared; give a number here"
        raise InputError("configuration", reason, key=f"generation.{name}")
    return value


class EvaluationSection(Section):
    """Metrics and the report. All records are counted; at most `max_images` images of a set are examined."""

    max_images: int = Field(1000, ge=2, le=20_000)
    kid_subsets: int = Field(50, ge=1)
    kid_subset_size: int = Field(100, ge=2)
    sheet_columns: int = Field(8, ge=1)
    copies: bool = True  # search for copies of training images (docs/memorization.md)
    copies_honest: int = Field(200, ge=4)  # real images of each modality that set the threshold
    copies_planted: int = Field(20, ge=1)  # copies of each kind that are planted, in each modality
    # what the verdict asks for
    min_images: int = Field(50, ge=1)  # of a set, in one modality
    min_auroc: float = Field(0.5, ge=0.5, lt=1)  # of the Selector on held-out ratings, with all of its interval
    min_diversity: float = Field(0.9, ge=0, le=1)  # part of the held-out real images'
    fail_on: Literal["bad", "unclear"] | None = None  # the verdict from which on evaluation fails


class ClusterSection(Section):
    """How the campaign is queued; nothing here changes a result."""

    max_parallel: int = Field(2, ge=1)
    max_requeues: int = Field(20, ge=0)
    claim: bool = False
    continue_in_allocation: bool = True
    max_shards: int | None = Field(None, ge=1)
    tflops: float | None = Field(None, gt=0)
    gpu_memory_gib: float | None = Field(None, gt=0)
    site: str = ""  # site profile of the Slurm cluster (slurm/*.yaml); "" leaves everything to the cluster's defaults
    notify: str = ""  # a command line, or the URL of a site, that hears of a campaign that is over or needs ratings

    @field_validator("notify")
    @classmethod
    def _is_a_command_line(cls, value: str) -> str:
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"is not a command line: {str(error).lower()}") from None
        if value and not words:
            raise ValueError("is blank: give a command line or a URL, or leave the key out")
        return value


class Config(Section):
    """One campaign."""

    campaign: CampaignSection = CampaignSection()
    data: DataSection = DataSection()
    model_paths: ModelPathsSection = ModelPathsSection()
    device: DeviceSection = DeviceSection()
    finetune: FinetuneSection = FinetuneSection()
    training: TrainingSection = TrainingSection()
    raters: RatersSection = RatersSection()
    selector: SelectorSection = SelectorSection()
    policy_model: PolicySection = PolicySection()
    align: AlignSection = AlignSection()
    generation: GenerationSection = GenerationSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()

    @model_validator(mode="after")
    def _filter_has_its_scorers(self) -> Config:
        filtering = [mode for mode in self.generation.modes if filters(mode)]
        if filtering and not self.training.stage1.train_selector:
            raise ValueError(f"generation.modes includes {filtering[0]}, which needs training.stage1.train_selector")
        if self.align.enabled and not self.training.stage1.train_selector:
            raise ValueError("align.enabled needs training.stage1.train_selector: its rewards are the scorers'")
        if self.device.compile and self.generation.shortcuts.leaves_out_layers:
            raise ValueError(
                "device.compile compiles all of the UNet, and generation.fast, deep_cache_every and "
                "text_attention_until leave parts of it out: choose one of them"
            )
        if self.training.checkpoints.save_dir in ("selector", "policy", "tensorboard", "wandb"):
            raise ValueError("training.checkpoints.save_dir is a name that the stage uses itself; choose another")
        return self

    @model_validator(mode="after")
    def _arms_differ(self) -> Config:
        if "aligned" in self.generation.modes and not self.align.enabled:
            raise ValueError(
                "generation.modes includes aligned, which needs align.enabled=true: set it, or leave aligned out"
            )
        for one, other in same(self.arms):
            names = f"{one.mode} twice" if one == other else f"{one.mode} and {other.mode}"
            model = WEIGHTS_IN_WORDS[one.weights] + (" model, filtered" if one.filters else " model")
            what = f"which would be the same images (of the {model}): leave one out"
            hint = ""
            if "baseline" in (one.mode, other.mode) and one != other:
                hint = ", or choose another generation.baseline_model"
            elif "finetuned-filtered" in (one.mode, other.mode) and one != other:
                hint = ", or set align.enabled=true, after which filtered samples with the aligned model"
            raise ValueError(f"generation.modes includes {names}, {what}{hint}")
        return self

    def arm(self, mode: str) -> Arm:
        """What a mode of `generation.modes` stands for in this campaign."""
        return arm_of(mode, self.generation.baseline_model, "aligned" if self.align.enabled else "finetuned")

    @property
    def arms(self) -> list[Arm]:
        """All arms of the campaign, as `generation.modes` lists them."""
        return [self.arm(mode) for mode in self.generation.modes]

    def samples_with(self, weights: Weights) -> bool:
        """Whether any arm samples with these weights."""
        return any(arm.weights == weights for arm in self.arms)

    def section_fingerprint(self, *keys: str) -> str:
        """Fingerprint of the named sections or dotted keys: two configurations that agree on them agree here."""
        values = dict(flatten(self.model_dump())) | {GLOBAL_BATCH: self.finetune.global_batch}
        later = [key for key, usual in _LATER.items() if values[key] == usual]
        later += [key for key in _BESIDE if key not in keys]
        chosen = {k: v for k, v in values.items() if any(k == key or k.startswith(key + ".") for key in keys)}
        chosen = {k: v for k, v in chosen.items() if k not in later}
        return fingerprint(chosen)


_SWITCH = {"0": False, "false": False, "1": True, "true": True}  # the specification writes its variables 0 and 1
_COMMAND_LINE = "command line"


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice in one mapping; plain YAML silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key '{key.value}' is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would read as numbers."""


# YAML 1.1 reads 1e-5 as a string; here it is the number everybody means.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(
            r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+0123456789."),
    )


def _parse_yaml(text: str, source: str, key: str | None = None) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise InputError(source, "is nested too deeply", key=key) from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark and key is None else None
        raise InputError(source, f"not valid YAML: {getattr(error, 'problem', error)}", line, key) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for every leaf of a nested mapping."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value


def changes(before: Mapping[str, Any], after: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys whose values differ: the value in `before`, a dumped configuration, and the value now.

    The global batch of fine-tuning counts as a key of its own.
    """
    old = dict(flatten(before))
    old[GLOBAL_BATCH] = math.prod(old.get(f"finetune.{key}", 0) for key in SHARED_OUT)
    new = dict(flatten(after.model_dump())) | {GLOBAL_BATCH: after.finetune.global_batch}
    old = dict(flatten(AlignSection().model_dump(), "align.")) | _LATER | old  # that of before there was the section
    return {key: (old.get(key), now) for key, now in new.items() if old.get(key) != now}


def _field_types(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if isinstance(field.default, Section):
            yield from _field_types(type(field.default), f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


_FIELD_TYPES = dict(_field_types(Config))  # dotted key -> annotation


def _unknown_key_reason(key: str, known: Iterable[str] = _FIELD_TYPES) -> str:
    if key in RENAMED:
        return f"is {RENAMED[key]} here"
    if key in OTHER_KEYS:
        return f"there is nothing to set: {OTHER_KEYS[key]}"
    if any(f"{key}." in name for name in (*RENAMED, *OTHER_KEYS)):
        return "is not a section here; docs/from-the-specification.md says what its keys are"
    return f"there is no such key{did_you_mean(key, known, cutoff=0.5)}"


def _set_key(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        child = tree.get(parent)
        tree[parent] = dict(child) if isinstance(child, dict) else {}  # a copy: a YAML alias shares its mapping
        tree = tree[parent]
    tree[leaf] = value


def _settings(environment: Mapping[str, str], overrides: Iterable[str]) -> Iterator[tuple[str, str | None, str]]:
    """(dotted key, text, source) of every value given outside the file, later wins; text None: there was no '='."""
    for name, key in ENVIRONMENT.items():
        if environment.get(name):
            yield key, environment[name], f"environment variable {name}"
    for override in overrides:
        key, equals, text = override.partition("=")
        yield key, text if equals else None, _COMMAND_LINE


def is_unicode(text: str) -> bool:
    """Whether a text can be written: bytes that are not UTF-8 reach a program as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_value(key: str, text: str | None, source: str) -> Any:
    """The value that a key's text stands for: text keys take it verbatim, all others read it as YAML."""
    if text is None:
        raise InputError(source, f"'{key}' is not of the form key=value")
    if key not in _FIELD_TYPES:
        raise InputError(source, _unknown_key_reason(key), key=key)
    if not is_unicode(text):
        raise InputError(source, f"{ascii(text)[:100]} is not valid Unicode text", key=key)
    kind = _FIELD_TYPES[key]
    if kind == str | None and text in ("", "null"):
        return None
    if kind in (str, str | None):
        return text
    if kind is bool and source != _COMMAND_LINE:
        if text.lower() not in _SWITCH:
            raise InputError(source, f"must be 0, 1, true or false, got {text!r}", key=key)
        return _SWITCH[text.lower()]
    return _parse_yaml(text, source, key) if text else ""


def _source_of(key: str, message: str, sources: Mapping[str, str], default: str) -> str:
    """Where the offending value came from; an error of a whole section names the offending keys in its message."""
    for dotted, source in sources.items():
        section, _, leaf = dotted.rpartition(".")
        if f"{key}.".startswith(f"{dotted}.") or (key == section and leaf in message):
            return source
    return default


def problem_of(
    error: Mapping[str, Any], source: str, sources: Mapping[str, str], known: Iterable[str] = _FIELD_TYPES
) -> Problem:
    """A pydantic error as a problem; `known` are the dotted keys that may be suggested for a misspelt one."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem(source, _unknown_key_reason(key, known), key=key)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "literal_error":
        message += _meant_choice(str(error["input"]), re.findall(r"'([^']*)'", str(error["ctx"]["expected"])))
    shown = f", got {_shown(error['input'])}" if not isinstance(error["input"], (dict, BaseModel)) else ""
    place = _source_of(key, message, sources, source)
    return Problem(place, f"{message[0].lower()}{message[1:]}{shown}", key=key or None)


def _shown(value: Any) -> str:
    """A value as a message may print it: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _meant_choice(given: str, choices: Iterable[str]) -> str:
    """The end of a message that suggests the closest choice to an invalid value, or nothing."""
    close = closest(given, choices, cutoff=0.5)
    return f" (did you mean {close}?)" if close else ""


def validate(tree: Mapping[str, Any], source: str, sources: Mapping[str, str] | None = None) -> Config:
    """A `Config` from nested mappings.

    Args:
        tree: sections and their values.
        source: what problems name as their source.
        sources: {dotted key: place} of the values that came from elsewhere.

    Raises:
        InputProblems: every problem, each naming its key.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputProblems(problem_of(item, source, sources or {}) for item in error.errors()) from None


def read_tree(path: Path, what: str = "configuration") -> dict[str, Any]:
    """The mapping in a YAML file; raises InputError if the file is missing or not a mapping."""
    if not path.is_file():
        raise InputError(path, f"there is no such {what} file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(path, "the file is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    tree = _parse_yaml(text, str(path)) or {}
    if not isinstance(tree, dict):
        raise InputError(path, f"a {what} must be a mapping of keys to values")
    return tree


def load(
    path: str | Path,
    overrides: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
    tell: Callable[[Iterable[Problem]], None] | None = None,
) -> Config:
    """Read a campaign's configuration.

    Args:
        path: YAML file, UTF-8.
        overrides: one or more `key=value` strings. A text key takes its value verbatim (`null` or nothing is None
            where the key may be None); every other value is read as YAML.
        environment: where the specification's variables are looked up; `os.environ` unless given. Values are read
            like overrides, but a boolean is 0, 1, true or false; an empty variable counts as unset.
        tell: called with warnings about names of the specification that are others here, or of no use.

    Raises:
        InputError: the file is missing, not UTF-8 or not YAML.
        InputProblems: everything that is wrong with its keys and values, and with those given elsewhere, at once.
    """
    tree, environment = read_tree(Path(path)), os.environ if environment is None else environment
    told = [Problem(str(path), what, key=key, severity="warning") for key, what in translate(tree)]
    for name, reason in foreign_variables(environment):
        told.append(Problem(f"environment variable {name}", f"is not used: {reason}", severity="warning"))
    if tell is not None:
        tell(told)
    overrides = [overrides] if isinstance(overrides, str) else overrides
    return assemble(tree, str(path), overrides, environment)


def assemble(tree: dict[str, Any], place: str, overrides: Iterable[str], environment: Mapping[str, str]) -> Config:
    """A `Config` from nested mappings and the values that override theirs; errors as for `load`.

    Args:
        tree: sections and their values; modified in place.
        place: what problems name as their source.
        overrides: see `load`.
        environment: see `load`.
    """
    sources: dict[str, str] = {}
    problems: list[Problem] = []
    for key, text, source in _settings(environment, overrides):
        try:
            _set_key(tree, key, _read_value(key, text, source))
            sources[key] = source
        except InputError as error:
            problems += error.problems
    try:
        config = validate(tree, place, sources)
    except InputProblems as error:
        raise InputProblems([*problems, *error.problems]) from None
    if problems:
        raise InputProblems(problems)
    return config


def save(config: Config) -> str:
    """The configuration as YAML text that `load` reads back to an equal `Config`."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
