"""The whole configuration of a campaign as typed, strict models.

A campaign is one YAML file. Values come, later wins, from the defaults below, the file, the specification's
environment variables (`ENVIRONMENT`) and `key=value` overrides on the command line. An unknown key, a wrong type or a
value out of range is one clear error naming the key; all of them are reported at once. This module imports neither
torch nor pandas: login nodes read configurations.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medsyn.disk import fingerprint
from medsyn.errors import InputError, InputProblems, Problem

EMBEDDED = "embedded"  # model_paths.stable_diffusion: the tiny model that ships with medsyn
PHANTOMS = "phantoms"  # data.table: the procedural data set that medsyn draws itself

Modality = Literal["OCT", "CT", "X-Ray", "MRI", "Fundus"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]
SchedulerName = Literal["dpm", "ddim", "pndm", "euler", "euler_a", "unipc"]


class Section(BaseModel):
    """One section of the file: strict types, no unknown keys, immutable once read."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CampaignSection(Section):
    """What the campaign is called and where everything about it is kept."""

    name: str = Field("tiny", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0)
    dir: str = ""  # "" means runs/<name>

    @property
    def path(self) -> Path:
        """The campaign's directory, absolute."""
        return Path(self.dir or Path("runs") / self.name).absolute()


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
    prompts: str | None = None
    base_prompt: str | None = None
    modality_column: str = "modality"
    strict: bool = True
    modalities: list[Modality] = Field(["OCT", "CT", "X-Ray", "MRI", "Fundus"], min_length=1)
    resolution: int = Field(256, ge=32, le=1024, multiple_of=8)
    held_out_fraction: float = Field(0.2, gt=0, lt=1)
    allow_synthetic: bool = False
    phantoms: PhantomsSection = PhantomsSection()

    @model_validator(mode="after")
    def _no_modality_twice(self) -> DataSection:
        if len(set(self.modalities)) != len(self.modalities):
            raise ValueError("data.modalities names a modality twice")
        return self


class ModelPathsSection(Section):
    """Where pretrained weights are: diffusers directories, local paths or hub ids, or `embedded`."""

    stable_diffusion: str = EMBEDDED
    clip: str | None = None


class DeviceSection(Section):
    """Which processor, in which precision; capability decides where `auto` stands."""

    use_cuda: bool = True
    precision: Precision = "auto"
    cpu_threads: int = Field(1, ge=1)


class FinetuneSection(Section):
    """Fine-tuning of the UNet, once per modality."""

    max_train_steps: int = Field(2000, ge=1)
    train_batch_size: int = Field(4, ge=1)
    gradient_accumulation_steps: int = Field(8, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = Field(100, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    adam_weight_decay: float = Field(1e-2, ge=0)
    snr_gamma: float | None = Field(5.0, gt=0)
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    use_8bit_adam: bool = False
    use_ema: bool = False
    ema_decay: float = Field(0.9999, gt=0, lt=1)
    gradient_checkpointing: bool = False
    enable_xformers: bool = False
    checkpointing_steps: int = Field(200, ge=1)
    checkpoints_total_limit: int = Field(2, ge=1)


class Stage1Section(Section):
    """RLHF stage 1: Selector and Policy on all ratings."""

    learning_rate: float = Field(1e-4, gt=0)
    train_selector: bool = True


class Stage2Section(Section):
    """RLHF stage 2: the Policy of one modality on what the Selector lets pass."""

    learning_rate: float = Field(1e-4, gt=0)
    selector_threshold: float = Field(0.2, ge=0, le=1)


class RlhfCheckpointsSection(Section):
    """How often the RLHF stages save."""

    save_dir: str = Field("checkpoints", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    save_frequency: int = Field(10, ge=1)


class TrainingSection(Section):
    """RLHF training, under the specification's key names."""

    stage: Literal[1, 2] = 2
    max_epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    stage1: Stage1Section = Stage1Section()
    stage2: Stage2Section = Stage2Section()
    checkpoints: RlhfCheckpointsSection = RlhfCheckpointsSection()


class RatersSection(Section):
    """How expert ratings are weighted."""

    expert_weights: bool = True
    mismatch_negatives: bool = True
    match_decoder: bool = True


class ScorerSection(Section):
    """The shape of a scorer's vision transformer (Selector or Policy)."""

    image_size: int = Field(256, ge=32)
    patch_size: int = Field(16, ge=4)
    hidden_dim: int = Field(384, ge=16)
    num_layers: int = Field(6, ge=1)
    num_heads: int = Field(6, ge=1)
    mlp_dim: int = Field(1536, ge=16)

    @model_validator(mode="after")
    def _shapes_divide(self) -> ScorerSection:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}")
        return self


class GenerationSection(Section):
    """Batch generation from the prompt list."""

    modes: list[Literal["baseline", "filtered"]] = Field(["baseline", "filtered"], min_length=1)
    baseline_model: Literal["pretrained", "finetuned"] = "pretrained"
    img_num: int = Field(1, ge=1)
    scheduler: SchedulerName = "dpm"
    num_inference_steps: int = Field(25, ge=1, le=1000)
    guidance_scale: float = Field(7.5, ge=1)
    negative_prompt: str = ""
    batch_size: int = Field(8, ge=1)
    blocks_per_shard: int = Field(16, ge=1)
    num_candidates: int = Field(3, ge=1)
    quality_threshold: float = Field(0.6, ge=0, le=1)
    min_policy_score: float | None = Field(None, ge=0, le=1)
    max_attempts: int = Field(10, ge=1)
    on_exhausted: Literal["fail", "skip", "keep-best"] = "skip"

    @model_validator(mode="after")
    def _candidates_fit(self) -> GenerationSection:
        if self.num_candidates > self.max_attempts:
            raise ValueError(f"num_candidates {self.num_candidates} is more than max_attempts {self.max_attempts}")
        return self


class EvaluationSection(Section):
    """Metrics and the report."""

    kid_subsets: int = Field(50, ge=1)
    kid_subset_size: int = Field(100, ge=2)
    sheet_columns: int = Field(8, ge=1)


class ClusterSection(Section):
    """How the campaign is queued; nothing here changes a result."""

    max_parallel: int = Field(2, ge=1)
    max_requeues: int = Field(20, ge=0)


class Config(Section):
    """One campaign."""

    campaign: CampaignSection = CampaignSection()
    data: DataSection = DataSection()
    model_paths: ModelPathsSection = ModelPathsSection()
    device: DeviceSection = DeviceSection()
    finetune: FinetuneSection = FinetuneSection()
    training: TrainingSection = TrainingSection()
    raters: RatersSection = RatersSection()
    selector: ScorerSection = ScorerSection()
    policy_model: ScorerSection = ScorerSection()
    generation: GenerationSection = GenerationSection()
    evaluation: EvaluationSection = EvaluationSection()
    cluster: ClusterSection = ClusterSection()

    def section_fingerprint(self, *keys: str) -> str:
        """Fingerprint of the named sections or dotted keys: two configurations that agree on them agree here."""
        values = dict(flatten(self.model_dump()))
        chosen = {k: v for k, v in values.items() if any(k == key or k.startswith(key + ".") for key in keys)}
        return fingerprint(chosen)


# The specification's environment variables and the key each one sets.
ENVIRONMENT: dict[str, str] = {
    "MODEL_NAME": "model_paths.stable_diffusion",
    "DATASET_NAME": "data.table",
    "RESOLUTION": "data.resolution",
    "TRAIN_BATCH_SIZE": "finetune.train_batch_size",
    "GRADIENT_ACCUMULATION_STEPS": "finetune.gradient_accumulation_steps",
    "USE_8BIT_ADAM": "finetune.use_8bit_adam",
    "USE_EMA": "finetune.use_ema",
    "ENABLE_XFORMERS": "finetune.enable_xformers",
    "BASE_PROMPT": "data.base_prompt",
    "NUM_IMAGES": "generation.img_num",
    "E2E_OUTPUT_DIR": "campaign.dir",
}
_ENVIRONMENT_SWITCHES = {"USE_8BIT_ADAM", "USE_EMA", "ENABLE_XFORMERS"}  # the specification writes these 0 and 1


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as a string; this loader reads it as the number everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.\d+(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise InputError(source, f"not valid YAML: {getattr(error, 'problem', error)}", row=line) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for every leaf of a nested mapping."""
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, dotted + ".")
        else:
            yield dotted, value


def _known_keys() -> list[str]:
    return [key for key, _ in flatten(Config().model_dump())]


def _unknown_key_reason(key: str) -> str:
    close = difflib.get_close_matches(key, _known_keys(), n=1, cutoff=0.5)
    return f"there is no such key; did you mean {close[0]}?" if close else "there is no such key"


def _set_key(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[leaf] = value


def _apply_overrides(tree: dict[str, Any], overrides: Iterable[str]) -> None:
    known = set(_known_keys())
    problems = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(Problem("command line", f"'{override}' is not of the form key=value"))
        elif key not in known:
            problems.append(Problem("command line", _unknown_key_reason(key), key=key))
        else:
            _set_key(tree, key, _parse_yaml(text, f"command line, {key}") if text else "")
    if problems:
        raise InputProblems(problems)


def environment_overrides(environment: Mapping[str, str]) -> dict[str, Any]:
    """The specification's variables that are set, as {dotted key: value}; a switch reads 0 and 1."""
    found: dict[str, Any] = {}
    for name, key in ENVIRONMENT.items():
        text = environment.get(name, "")
        if text:
            value = _parse_yaml(text, f"environment variable {name}")
            is_text_key = key in {"model_paths.stable_diffusion", "data.table", "data.base_prompt", "campaign.dir"}
            found[key] = text if is_text_key else bool(value) if name in _ENVIRONMENT_SWITCHES else value
    return found


def _problem_of(error: Mapping[str, Any], source: str) -> Problem:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return Problem(source, _unknown_key_reason(key), key=key)
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = f", got {error['input']!r}" if not isinstance(error["input"], (dict, BaseModel)) else ""
    return Problem(source, f"{message[0].lower()}{message[1:]}{shown}", key=key or None)


def validate(tree: Mapping[str, Any], source: str) -> Config:
    """A `Config` from nested mappings; raises `InputProblems` with every problem, each naming its key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise InputProblems(_problem_of(item, source) for item in error.errors()) from None


def load(path: str | Path, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> Config:
    """Read a campaign's configuration.

    Args:
        path: YAML file.
        overrides: `key=value` strings; values are read as YAML.
        environment: where the specification's variables are looked up; `os.environ` unless given.

    Raises:
        InputError: the file is not there or not YAML.
        InputProblems: everything that is wrong with its keys and values, at once.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "there is no such configuration file")
    tree = _parse_yaml(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(tree, dict):
        raise InputError(path, "a configuration is a mapping of sections, such as 'data:' and 'finetune:'")
    for key, value in environment_overrides(os.environ if environment is None else environment).items():
        _set_key(tree, key, value)
    _apply_overrides(tree, overrides)
    return validate(tree, str(path))


def save(config: Config) -> str:
    """The configuration as YAML text that `load` reads back to an equal `Config`."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config) -> list[str]:
    """Dotted keys whose values differ."""
    before, after = dict(flatten(old.model_dump())), dict(flatten(new.model_dump()))
    return [key for key in after if before.get(key) != after[key]]
