"""What keeps a folder of weights from being used, found before anything is queued and without importing torch.

Compute nodes have no internet access, so everything must be there; and a task that cannot load its weights has waited
in the queue for nothing. So the files are looked for, each header is held against what its `config.json` asks for, and
the parts against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsyn import disk
from medsyn.errors import InputError, Problem
from medsyn.models.header import differences, read_shapes, refuse_pointer
from medsyn.models.tensors import Shapes, expected
from medsyn.models.weights import FACTS, KEY, PARTS, SCHEDULE, locate
from medsyn.text import and_more


def missing(source: str) -> list[Problem]:
    """Everything that keeps `source` from being loaded offline, one problem per file."""
    directory = locate(source)
    if directory is None:
        return [Problem(source, _nowhere(Path(source).expanduser()), key=KEY)]
    if way_out := _another_layout(directory):
        return [Problem(str(directory), way_out, key=KEY)]
    paths = (directory / part / name for part, names in PARTS.items() for name in names)
    return [Problem(str(directory), _absent(path), key=KEY) for path in paths if not path.is_file()]


_DIFFUSERS = "a diffusers directory (unet/, vae/, text_encoder/, tokenizer/, scheduler/)"


def _nowhere(path: Path) -> str:
    """Why a source is no directory of weights."""
    if path.is_file():
        return f"is a file, and {_DIFFUSERS} is needed{_conversion(path)}"
    return (
        "these weights are not on this machine: give a diffusers directory, or download the hub id once on a "
        "machine with internet access (huggingface-cli download) and share HF_HOME with the compute nodes"
    )


def _another_layout(directory: Path) -> str | None:
    """What to do where a directory has no part of a model, but a checkpoint in one file, or a model further inside."""
    if any((directory / part).is_dir() for part in PARTS):
        return None
    for child in sorted(directory.iterdir()):
        if child.is_dir() and all((child / part).is_dir() for part in PARTS):
            return f"is not a model; {child} is: give that"
    single = [path for path in sorted(directory.iterdir()) if path.suffix in (".safetensors", ".ckpt")]
    return f"holds {single[0].name}, but is not {_DIFFUSERS}{_conversion(single[0])}" if single else None


def _conversion(path: Path) -> str:
    """How a checkpoint in one file becomes a diffusers directory; empty for other files."""
    if path.suffix not in (".safetensors", ".ckpt"):
        return ""
    call = f"StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained({str(path.with_suffix(''))!r})"
    itself = "a campaign converts it if it is model_paths.stable_diffusion, with model_paths.components; or "
    once = f"convert it once, on a machine with internet access, with diffusers' {call}"
    return f": {itself if path.suffix == '.safetensors' else ''}{once}"


def _absent(path: Path) -> str:
    """That a file of a model is missing, and what is there in its place."""
    reason = f"{path.parent.name}/{path.name} is missing"
    if path.suffix != ".safetensors":
        return reason
    if path.with_name(f"{path.name}.index.json").is_file():
        return f"{reason}; the weights are in several files: load them with diffusers and save them with max_shard_size"
    if variants := sorted(path.parent.glob(f"{path.stem}.*.safetensors")):
        return f"{reason}; there is {variants[0].name}: rename it to {path.name}"
    if path.with_suffix(".bin").is_file():
        return f"{reason}; there is only a .bin, and pickles are not read: convert it to safetensors"
    return reason


def problems(source: str) -> list[Problem]:
    """Everything that keeps `source` from being used: missing or damaged files, parts that do not fit together."""
    found, base = missing(source), locate(source)
    if found or base is None:
        return found
    reasons = [*(wrong_network(base / part) for part in NETWORKS), *wrong_settings(base)]
    return [Problem(str(base), reason, key=KEY) for reason in reasons if reason]


def wrong_settings(base: Path) -> list[str]:
    """What is wrong with a model's tokenizer and noise schedule, and whether its parts' configurations fit together."""
    reasons = [_attempt(lambda: _wrong_tokenizer(base)), _attempt(lambda: _wrong_scheduler(base))]
    with suppress(InputError):  # a configuration that cannot be read is told with its network
        reasons.append(misfit(base, base / "unet"))
    return [reason for reason in reasons if reason]


NETWORKS = {
    "unet": ("_class_name", "UNet2DConditionModel"),
    "vae": ("_class_name", "AutoencoderKL"),
    "text_encoder": ("model_type", "clip_text_model"),
}


def _attempt(look: Callable[[], str | None]) -> str | None:
    """What `look` finds, or why it could not look."""
    try:
        return look()
    except InputError as error:
        return f"{Path(error.problem.source).name} {error.problem.reason}"


def wrong_network(folder: Path) -> str | None:
    """Why a network cannot be loaded: by its configuration, and the names and shapes in its file; None if it can."""
    part = folder.name
    weights = folder / next(name for name in PARTS[part] if name.endswith(".safetensors"))
    try:
        settings = network_settings(folder)
        has, wanted = read_shapes(weights), expected(part, settings)
        reason = None if wanted is None else differences(_renamed_attention(has), wanted)
    except InputError as error:
        return f"{part}/{Path(error.problem.source).name} {error.problem.reason}"
    return f"{part}/{weights.name} does not fit {part}/config.json: {reason}" if reason else None


def network_settings(folder: Path) -> dict[str, Any]:
    """The `config.json` of a network; raises InputError if it cannot be read, or is of another kind of network."""
    settings, (key, kind) = _read_settings(folder / "config.json"), NETWORKS[folder.name]
    if settings.get(key, kind) != kind:
        raise InputError(folder / "config.json", f"describes a {settings[key]}, not a {kind}")
    return settings


# of the VAE's attention in older files, which diffusers still reads
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _renamed_attention(shapes: Shapes) -> Shapes:
    def today(name: str) -> str:
        before, _, last = name.rpartition(".")
        above, _, layer = before.rpartition(".")
        known = above.endswith("mid_block.attentions.0") and layer in _OLD_NAMES
        return f"{above}.{_OLD_NAMES[layer]}.{last}" if known else name

    return {today(name): shape for name, shape in shapes.items()}


_WORD_END = "</w>"
_ENDS = ("<|startoftext|>", "<|endoftext|>")  # of every text that CLIP reads


def _wrong_tokenizer(base: Path) -> str | None:
    """Why the tokenizer cannot be used with the text encoder, or None."""
    vocabulary = _read_settings(base / "tokenizer" / "vocab.json")
    size = _setting(base / "text_encoder", "vocab_size")
    if not vocabulary or not all(isinstance(number, int) for number in vocabulary.values()):
        return "tokenizer/vocab.json has no tokens with numbers"
    if isinstance(size, int) and max(vocabulary.values()) >= size:
        return f"the tokenizer does not fit the text encoder: it has {len(vocabulary)} tokens, not {size}"
    return _wrong_merges(base / "tokenizer" / "merges.txt", vocabulary)


def _wrong_merges(path: Path, vocabulary: Mapping[str, Any]) -> str | None:
    """Why the merges are not those of the vocabulary, or None: a text would be read as other tokens, without a word.

    Every token of a byte-pair vocabulary is a letter (with or without the mark of a word's end), what a merge makes, or
    a special token in angle brackets.
    """
    try:
        content = path.read_bytes()
        refuse_pointer(path, content)
        lines = content.decode().splitlines()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(path, "is not UTF-8 text; copy or download it again") from None
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    strange = next((pair for pair in pairs if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys()), None)
    if strange is not None:
        return f"tokenizer/merges.txt does not belong to vocab.json: the merge {' '.join(strange)[:60]!r} is not in it"
    made = {"".join(pair) for pair in pairs}
    unmade = [
        token
        for token in vocabulary
        if len(token.removesuffix(_WORD_END)) > 1 and token not in made and not token.startswith("<")
    ]
    if unmade:
        reason = f"{len(unmade)} tokens of vocab.json are made by no merge ({and_more(unmade, 3)})"
        return f"tokenizer/merges.txt is cut off: {reason}; copy or download it again"
    absent = [token for token in _ENDS if token not in vocabulary]
    return f"tokenizer/vocab.json has no {' and no '.join(absent)}" if absent else None


# what diffusers' samplers know; a model of another kind has no noise schedule of this kind
_SCHEDULE: dict[str, tuple[str, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
}


def _wrong_scheduler(base: Path) -> str | None:
    """Why the noise schedule cannot be used, or None."""
    settings = _read_settings(base / SCHEDULE)
    name = str(settings.get("_class_name"))
    if name.startswith("FlowMatch"):
        return f"scheduler/scheduler_config.json is a {name}: flow matching models are not Stable Diffusion v1 or v2"
    for key, known in _SCHEDULE.items():
        if settings.get(key, known[0]) not in known:
            return f"scheduler/scheduler_config.json: {key} is {settings[key]!r}, not one of {', '.join(known)}"
    return None


def misfit(base: Path, unet: Path) -> str | None:
    """Why the UNet in `unet` does not fit the text encoder or the VAE of `base`, or None if it does.

    Raises:
        InputError: one of the `config.json` files cannot be read.
    """
    width, channels = _setting(base / "text_encoder", "hidden_size"), _setting(base / "vae", "latent_channels")
    wanted = {"cross_attention_dim": width, "in_channels": channels, "out_channels": channels}
    found = {key: _setting(unet, key) for key in wanted}
    wrong = [f"{key} is {found[key]}, not {value}" for key, value in wanted.items() if found[key] != value]
    return f"the UNet does not fit {base}: {', '.join(wrong)}" if wrong else None


def text_features(base: Path) -> int:
    """Size of the text encoder's pooled output; raises InputError if its `config.json` cannot be read."""
    return int(_setting(base / "text_encoder", "hidden_size"))


def text_positions(base: Path) -> int:
    """How many tokens the text encoder reads; raises InputError if its `config.json` cannot be read."""
    return int(_setting(base / "text_encoder", "max_position_embeddings"))


def trained_chunks(directory: Path) -> int | None:
    """How many chunks of a text were read while a model was fine-tuned; None where that is not on record."""
    try:
        recorded = disk.read_json(directory / FACTS)
        return int(recorded.get("data.text_chunks", 1))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


# the defaults of diffusers and transformers for keys that a config.json lacks
_DEFAULTS = {
    "hidden_size": 512,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "latent_channels": 4,
    "cross_attention_dim": 1280,
    "in_channels": 4,
    "out_channels": 4,
}


def _setting(part: Path, key: str) -> Any:
    return _read_settings(part / "config.json").get(key, _DEFAULTS[key])


def _read_settings(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; raises InputError if there is none."""
    try:
        content = file.read_bytes()
        refuse_pointer(file, content)
        loaded = disk.from_json(content)
    except OSError as error:
        raise InputError(file, f"cannot be read: {error.strerror}") from None
    except InputError:
        raise
    except ValueError:
        loaded = None
    if not isinstance(loaded, dict):
        raise InputError(file, "is not a readable model configuration")
    return loaded


def scheduler_config(source: str, unet_from: Path | None = None) -> dict[str, Any]:
    """The noise schedule that a model was trained with; raises InputError if it cannot be read.

    A fine-tuned UNet may have one of its own, in `unet_from`/scheduler beside it.
    """
    directory = locate(source)
    assert directory is not None, "missing is asked first"
    own = unet_from / SCHEDULE if unet_from else None
    return _read_settings(own if own and own.is_file() else directory / SCHEDULE)
