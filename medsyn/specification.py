"""The names of the specification: its environment variables and the keys of its `config.yaml`, and what each is here.

Most are keys of the configuration under another name, and are read as such. For the others there is nothing to set;
what stands in for them is said to whoever gives them. `python -m medsyn.specification` prints the tables of
docs/from-the-specification.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# The environment variables that set a key.
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
    "REPORT_TO": "training.report_to",
}

# Those that set nothing, and what does it here.
OTHER_VARIABLES: dict[str, str] = {
    "AUTOPICK_GPU": "a task gets a GPU of its own (finetune.gpus: several), from Slurm or CUDA_VISIBLE_DEVICES",
    "DEVICE": "device.use_cuda=false is the CPU; CUDA_VISIBLE_DEVICES names the cards",
    "OUTPUT_DIR": "campaign.dir is where a campaign keeps everything",
    "UNET_OUTPUT_DIR": "the fine-tuned UNets are in work/finetune of the campaign's directory (campaign.dir)",
    "E2E_OUTPUT_DIR": "the images are in work/generate of the campaign's directory (campaign.dir)",
    "RLHF_CONFIG_PATH": "one file configures all stages; its section training is the specification's",
    "DATALOADER_NUM_WORKERS": "images are read once, into the campaign's cache; there are no loader processes",
}

# The keys of the specification's `config.yaml` that have another name here.
RENAMED: dict[str, str] = {
    "synthetic_system.num_inference_steps": "generation.num_inference_steps",
    "synthetic_system.guidance_scale": "generation.guidance_scale",
    "synthetic_system.max_attempts": "generation.max_attempts",
    "synthetic_system.image_size": "data.resolution",
    "selector.quality_metrics.artifact_detection": "selector.artifact_detection",
    "synthetic_system.enable_training": "align.enabled",
    "synthetic_system.training.learning_rate": "finetune.learning_rate",
    "synthetic_system.training.batch_size": "finetune.train_batch_size",
    "synthetic_system.training.gradient_accumulation_steps": "finetune.gradient_accumulation_steps",
}

_SCALE = "ratings are 1 (poor), 2 (acceptable) or 3 (excellent); a table with others is refused, row by row"

# Those that set nothing, and what does it here. Whatever is below such a key goes with it.
OTHER_KEYS: dict[str, str] = {
    "training.load_latest_checkpoint": "a task always continues from its newest checkpoint",
    "model_paths.clip": "the text encoder is that of model_paths.stable_diffusion",
    "data.num_workers": OTHER_VARIABLES["DATALOADER_NUM_WORKERS"],
    "data.rating_range": _SCALE,
    "raters.min": _SCALE,
    "raters.max": _SCALE,
    "data.augmentation": "images are not altered: a flip would contradict a caption that says left",
    "synthetic_system.medical_settings": "how an image is read follows from its file and its modality (docs/data.md)",
    "policy_model.pretrained": "the Policy learns from the ratings and the captioned images alone",
    "selector.pretrained": "the Selector learns from the ratings alone",
    "selector.quality_metrics": "the Selector learns what SNR and contrast are good from the ratings",
}


def foreign_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(name, what does it here) of each variable of the specification that is given but sets nothing."""
    yield from ((name, reason) for name, reason in OTHER_VARIABLES.items() if environment.get(name))


def translate(tree: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Take the specification's names out of a configuration, in place; yield (key, what became of it) of each.

    A key that has its name here beside it is left, to be refused: which of the two is meant?

    Args:
        tree: sections and their values, as a file gives them.
    """
    for key, name in RENAMED.items():
        if _has(tree, key) and not _has(tree, name):
            _put(tree, name, _take(tree, key))
            yield key, f"is read as {name}"
    for key, reason in OTHER_KEYS.items():
        if _has(tree, key):
            _take(tree, key)
            yield key, f"is not used: {reason}"


def _parent(tree: Mapping[str, Any], key: str) -> tuple[Any, str]:
    *sections, leaf = key.split(".")
    place: Any = tree
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    return place, leaf


def _has(tree: Mapping[str, Any], key: str) -> bool:
    place, leaf = _parent(tree, key)
    return isinstance(place, dict) and leaf in place


def _take(tree: dict[str, Any], key: str) -> Any:
    """Remove a key, and the sections that are empty without it; return its value."""
    place, leaf = _parent(tree, key)
    value = place.pop(leaf)
    above, _, _ = key.rpartition(".")
    if above and not place:
        _take(tree, above)
    return value


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, leaf = key.partition(".")
    there = tree.get(section)
    tree[section] = {**(there if isinstance(there, dict) else {}), leaf: value}


def markdown() -> str:
    """The tables of docs/from-the-specification.md."""
    variables = [(name, f"`{key}`") for name, key in ENVIRONMENT.items()] + list(OTHER_VARIABLES.items())
    keys = [(key, f"`{name}`") for key, name in RENAMED.items()] + list(OTHER_KEYS.items())
    return "\n\n".join(
        "\n".join([f"| {what} | here |", "| --- | --- |", *(f"| `{name}` | {here} |" for name, here in rows)])
        for what, rows in (("variable", variables), ("key", keys))
    )


if __name__ == "__main__":
    print(markdown())
