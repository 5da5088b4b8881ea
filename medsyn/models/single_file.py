"""A Stable Diffusion v1 model that is one `.safetensors` file, in the layout of its first release.

The file has weights only. Configurations and the tokenizer come from a directory of a model of the same shape, and
with them the file becomes a diffusers directory: tensors get other names, and their bytes are copied as they are. So
neither the hub nor torch is needed, and no more memory than for one piece of a tensor.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from medsyn import disk
from medsyn.errors import CONFIGURATION, InputError, Problem
from medsyn.models.header import Entry, differences, read_entries
from medsyn.models.model_folder import NETWORKS, network_settings, wrong_settings
from medsyn.models.tensors import Settings, Shapes, expected
from medsyn.models.weights import KEY, PARTS, SCHEDULE, content_digest, locate
from medsyn.text import and_more

COMPONENTS = "model_paths.components"
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
_SUFFIX = ".safetensors"
_READ = ("F16", "BF16", "F32")
_PIECE = 1 << 24  # bytes
_DIGITS = 12  # of the hash in a folder's name


def is_one(source: str) -> bool:
    """Whether a source of weights is one file that can be converted."""
    path = Path(source).expanduser()
    return path.suffix == _SUFFIX and path.is_file()


def folder_name(file: Path, components: str | None) -> str:
    """The name of the directory that a file is converted to; it follows from what is in it and in `components`."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", file.stem)[:80]
    base = locate(components) if components else None
    try:
        digests = [content_digest(path) for path in (file, *(_settings_files(base) if base else []))]
    except OSError:  # `problems` tells it
        digests = []
    return f"{stem}-{disk.fingerprint(digests)[:_DIGITS]}"


def unet_shapes(components: Path) -> Shapes:
    """The tensors of the UNet that a directory describes; none if they are not understood."""
    return expected("unet", network_settings(components / "unet")) or {}


# Names ---------------------------------------------------------------------------------------------------------------

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_UNET_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_VAE_BLOCK = re.compile(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_VAE_MIDDLE = re.compile(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def original_names(part: str, settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """The name that each tensor of a part has in a single file, by its name in diffusers."""
    name_of = {"unet": _unet_name, "vae": _vae_name, "text_encoder": lambda name, _: name}[part]
    return {name: PREFIXES[part] + name_of(name, settings) for name in names}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """A name whose beginning is another one in a table."""
    return next((old + name[len(new) :] for new, old in table.items() if name.startswith(f"{new}.")), name)


def _unet_name(name: str, settings: Settings) -> str:
    layers = settings.get("layers_per_block", 2)
    if match := _UNET_MIDDLE.fullmatch(name):
        kind, number, rest = match.groups()
        if kind == "attentions":
            return f"middle_block.1.{rest}"
        return f"middle_block.{2 * int(number)}.{_renamed(rest, _UNET_RESNET)}"
    if (match := _UNET_BLOCK.fullmatch(name)) is None:
        return _renamed(name, _UNET_ENDS)
    way, level, kind, number, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    blocks, first = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
    place = first + level * (layers + 1) + number
    if kind == "resnets":
        return f"{blocks}.{place}.0.{_renamed(rest, _UNET_RESNET)}"
    if kind == "attentions":
        return f"{blocks}.{place}.1.{rest}"
    place = first + level * (layers + 1) + layers
    if kind == "downsamplers":
        return f"{blocks}.{place}.0.{_renamed(rest, {'conv': 'op'})}"
    attends = "CrossAttn" in (settings.get("up_block_types") or ("", *["CrossAttn"] * 3))[level]
    return f"{blocks}.{place}.{2 if attends else 1}.{rest}"


def _vae_name(name: str, settings: Settings) -> str:
    levels = len(settings.get("block_out_channels") or (64,))
    if match := _VAE_MIDDLE.fullmatch(name):
        half, kind, number, rest = match.groups()
        if kind == "attentions":
            return f"{half}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}"
        return f"{half}.mid.block_{int(number) + 1}.{rest}"
    if match := _VAE_BLOCK.fullmatch(name):
        half, way, level, kind, number, rest = match.groups()
        place = int(level) if way == "down" else levels - 1 - int(level)
        if kind == "resnets":
            return f"{half}.{way}.{place}.block.{number}.{_renamed(rest, {'conv_shortcut': 'nin_shortcut'})}"
        return f"{half}.{way}.{place}.{kind.removesuffix('rs')}.{rest}"
    return name.replace(".conv_norm_out.", ".norm_out.")


# Checks --------------------------------------------------------------------------------------------------------------


def problems(file: Path, components: str | None) -> list[Problem]:
    """Everything that keeps a file from being converted: of the directory beside it, and of the file."""
    base = locate(components) if components else None
    if base is None:
        given = f"{components} is not on this machine: give" if components else f"{file} has weights only: give"
        reason = (
            f"{given} a diffusers directory of a model of the same shape, for its {_wanted()}; no weights are needed"
        )
        return [Problem(CONFIGURATION, reason, key=COMPONENTS)]
    absent = [path for path in _settings_files(base) if not path.is_file()]
    found = [Problem(str(base), f"{path.relative_to(base)} is missing", key=COMPONENTS) for path in absent]
    if not found:
        found = [Problem(str(base), reason, key=COMPONENTS) for reason in _wrong_components(base)]
    try:
        entries = read_entries(file)
        wrong = _another_kind(list(entries)) or (None if found else _misfit(entries, base))
    except InputError as error:
        wrong = error.problem.reason
    return [*found, Problem(str(file), wrong, key=KEY)] if wrong else found


def _wanted() -> str:
    networks = ", ".join(f"{part}/config.json" for part in NETWORKS)
    return f"{networks}, {SCHEDULE} and tokenizer/"


def _settings_files(base: Path) -> list[Path]:
    """The files of a model that hold no weights."""
    return [base / part / name for part, names in PARTS.items() for name in names if not name.endswith(_SUFFIX)]


def _wrong_components(base: Path) -> Iterator[str]:
    for part in NETWORKS:
        try:
            if expected(part, network_settings(base / part)) is None:
                yield f"{part}/config.json describes another network than Stable Diffusion's"
        except InputError as error:
            yield f"{part}/config.json {error.problem.reason}"
    yield from wrong_settings(base)


_XL = "is a Stable Diffusion XL checkpoint, and v1 is read"
_V2 = "is a Stable Diffusion v2 checkpoint (its text encoder is OpenCLIP's), and v1 is read: convert it with diffusers"
_NEWER = "is a checkpoint of another architecture (Stable Diffusion 3, Flux or the like), and v1 is read"
_ADAPTER = "is an adapter (LoRA or the like), not a model: merge it into one first"
_CONTROL = "is a ControlNet, not a model"
_PART = "is one part of a diffusers model: give the directory that the part is in"
_KINDS: tuple[tuple[str, str], ...] = (  # in names of tensors
    (r"conditioner\.embedders\.|model\.diffusion_model\.label_emb\.", _XL),
    (r"(^|\.)(joint_blocks|double_blocks|transformer_blocks\.\d+\.attn\.add_)", _NEWER),
    (r"lora_(up|down|A|B)|\.lora\.|^lora_|hada_w|lokr_", _ADAPTER),
    (r"^cond_stage_model\.model\.", _V2),
    (r"^(control_model\.|controlnet_|input_hint_block)", _CONTROL),
    (r"^(down_blocks|mid_block|encoder\.down_blocks|decoder\.mid_block|text_model)\.", _PART),
)


def _another_kind(names: Sequence[str]) -> str | None:
    """What a file is that is no Stable Diffusion v1 checkpoint, by the names of its tensors; None if it is one."""
    for pattern, reason in _KINDS:
        if any(map(re.compile(pattern).search, names)):
            return reason
    absent = [part for part, prefix in PREFIXES.items() if not any(name.startswith(prefix) for name in names)]
    if len(absent) == len(PREFIXES):
        return f"is not a Stable Diffusion v1 checkpoint: its tensors are {and_more(names, 3) or 'none'}"
    if absent:
        return f"has no {' and no '.join(f'{part} ({PREFIXES[part]}...)' for part in absent)}: give a whole model"
    return None


def _misfit(entries: Mapping[str, Entry], base: Path) -> str | None:
    """Why the tensors do not fit the configurations, or None."""
    for part in NETWORKS:
        settings = network_settings(base / part)
        shapes = expected(part, settings) or {}
        wanted = {old: shapes[new] for new, old in original_names(part, settings, list(shapes)).items()}
        has = {name: entry.shape for name, entry in entries.items() if name.startswith(PREFIXES[part])}
        if reason := differences(has | _as_matrices(has, wanted), wanted):
            return f"does not fit {part}/config.json of {base}: {reason}"
        if odd := next((name for name in wanted if entries[name].dtype not in _READ), None):
            return f"{odd} is stored as {entries[odd].dtype}, and {', '.join(_READ)} are read"
    return None


def _as_matrices(has: Shapes, wanted: Shapes) -> Shapes:
    """Those convolutions of one pixel that are matrices in diffusers: the same numbers."""
    return {
        name: shape
        for name, shape in wanted.items()
        if len(shape) == 2 and name in has and has[name][:2] == shape and set(has[name][2:]) == {1}
    }


# Conversion ----------------------------------------------------------------------------------------------------------


def convert(file: Path, components: Path, directory: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Make a diffusers directory of a file that has no `problems`; it appears whole, and one that exists is left.

    Args:
        file: with the weights.
        components: a directory with the configurations and the tokenizer.
        directory: to make.
        progress: called with how many tensors are written, and of how many.
    """
    entries, base = read_entries(file), locate(str(components))
    assert base is not None, "problems is asked first"
    parts = {part: _to_copy(part, network_settings(base / part), entries) for part in NETWORKS}
    done, total = 0, sum(map(len, parts.values()))
    with disk.atomic_directory(directory) as temporary, file.open("rb") as stream:
        for part in PARTS:
            (temporary / part).mkdir()
        for path in {*_settings_files(base), *_tokenizer_files(base)}:
            shutil.copyfile(path, temporary / path.relative_to(base))
        for part, tensors in parts.items():
            with (temporary / part / PARTS[part][1]).open("wb") as written:
                written.write(_header(tensors))
                for _, entry in tensors:
                    _copy(stream, entry, written)
                    done += 1
                    if progress is not None:
                        progress(done, total)


def _tokenizer_files(base: Path) -> list[Path]:
    """All that a tokenizer consists of: it may have more files than it needs."""
    return [path for path in (base / "tokenizer").iterdir() if path.suffix in (".json", ".txt") and path.is_file()]


def _to_copy(part: str, settings: Settings, entries: Mapping[str, Entry]) -> list[tuple[str, Entry]]:
    """The tensors of a part by their names in diffusers, with the shapes that these have, in the order of the file."""
    shapes = expected(part, settings) or {}
    names = original_names(part, settings, list(shapes))
    found = [(new, entries[old]._replace(shape=shapes[new])) for new, old in names.items()]
    return sorted(found, key=lambda one: one[1].begin)


def _header(tensors: Sequence[tuple[str, Entry]]) -> bytes:
    """What a safetensors file with these tensors, one after the other, begins with."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, entry in tensors:
        end = place + entry.end - entry.begin
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (place, end)}
        place = end
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    return len(content).to_bytes(8, "little") + content


def _copy(stream: BinaryIO, entry: Entry, written: BinaryIO) -> None:
    stream.seek(entry.begin)
    left = entry.end - entry.begin
    while left:
        piece = stream.read(min(left, _PIECE))
        if not piece:
            raise InputError(stream.name, "became shorter while it was read")
        written.write(piece)
        left -= len(piece)
