"""Which layers of a UNet get a low-rank adapter, by the names and shapes of its tensors; without importing torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from medsyn.config import LoraSection
from medsyn.errors import CONFIGURATION, InputError, Problem
from medsyn.models import weights
from medsyn.models.header import read_shapes
from medsyn.text import and_more

# the projections of every attention, as in diffusers' and peft's examples
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")

_WEIGHT = ".weight"


def adapted_layers(shapes: Mapping[str, Sequence[int]], targets: Sequence[str] | None) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of every linear layer whose name is, or ends with, one of `targets`, in the UNet's order.

    Args:
        shapes: of the UNet's tensors, by name.
        targets: whole parts of dotted names; None: `ATTENTION`.
    """
    ends = tuple(f".{target}" for target in targets or ATTENTION)
    return {name: shape for name, shape in _linear_layers(shapes).items() if f".{name}".endswith(ends)}


def lora_parameters(shapes: Mapping[str, Sequence[int]], section: LoraSection) -> int:
    """How many numbers the adapters have."""
    return (section.rank or 0) * sum(map(sum, adapted_layers(shapes, section.targets).values()))


def problems(source: str, section: LoraSection, key: str = "finetune.lora") -> list[Problem]:
    """What keeps the adapters from being put on the UNet of `source`; nothing where its weights cannot be read."""
    directory = weights.locate(source)
    if section.rank is None or directory is None:
        return []
    try:
        return misfits(read_shapes(directory / "unet" / weights.UNET_WEIGHTS), section, key)
    except InputError:  # what checks the weights has told it
        return []


def misfits(shapes: Mapping[str, Sequence[int]], section: LoraSection, key: str = "finetune.lora") -> list[Problem]:
    """Targets that name no linear layer of the UNet, and a rank over the width of one; `key` is the section's."""
    linear, found = _linear_layers(shapes), []
    lost = [target for target in section.targets or ATTENTION if not adapted_layers(shapes, [target])]
    if lost:
        ends = dict.fromkeys(_kind(name) for name in linear)
        reason = (
            f"no linear layer of the UNet is named {' or '.join(lost)}; their names end in {and_more(list(ends), 8)}"
        )
        found.append(Problem(CONFIGURATION, reason, key=f"{key}.targets"))
    narrow = {name: min(shape) for name, shape in adapted_layers(shapes, section.targets).items()}
    too_narrow = [name for name, width in narrow.items() if width < (section.rank or 0)]
    if too_narrow:
        reason = (
            f"{section.rank} is over the width of {and_more(too_narrow, 2)}; {min(narrow.values())} is the narrowest: "
            "a rank far below it is what saves memory"
        )
        found.append(Problem(CONFIGURATION, reason, key=f"{key}.rank"))
    return found


def _linear_layers(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, int]]:
    return {
        name.removesuffix(_WEIGHT): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(_WEIGHT) and len(shape) == 2
    }


def _kind(name: str) -> str:
    """The end of a name that tells what a layer does: `to_q`, `to_out.0`, `ff.net.2`."""
    found = re.search(r"(ff\.net\..+|[^.]+\.\d+|[^.]+)$", name)
    return found[0] if found else name
