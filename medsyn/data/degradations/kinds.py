"""All kinds of damage, and which images can have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from medsyn.data.degradations import coding, exposure, layout, motion, noise, patterns, sharpness
from medsyn.modality_names import MODALITIES

Damage = Callable[[Tensor, float, np.random.Generator], Tensor]


@dataclass(frozen=True)
class Degradation:
    """One kind of damage."""

    name: str
    family: str  # kinds that look alike: a benchmark that leaves one out leaves all of them out
    modalities: tuple[str, ...]  # whose images can have it
    damage: Damage | None  # None: it needs another picture, `layout.stitched`


_ALL = MODALITIES
_LIGHT = ("Fundus", "X-Ray")  # a lamp or a beam shines on it
# name: family, modalities, how
_TABLE: tuple[tuple[str, str, tuple[str, ...], Damage | None], ...] = (
    ("blur", "sharpness", _ALL, sharpness.blur),
    ("low_resolution", "sharpness", _ALL, sharpness.low_resolution),
    ("ringing", "sharpness", _ALL, sharpness.ringing),
    ("sharpening", "sharpening", _ALL, sharpness.sharpening),
    ("motion", "motion", _ALL, motion.motion),
    ("ghosting", "ghosting", _ALL, motion.ghosting),
    ("fold_over", "ghosting", ("MRI",), layout.fold_over),
    ("scan_motion", "motion", ("MRI",), motion.scan_motion),
    ("line_jitter", "lines", ("OCT", "MRI", "CT"), motion.line_jitter),
    ("noise", "noise", _ALL, noise.noise),
    ("coarse_noise", "noise", _ALL, noise.coarse_noise),
    ("rician_noise", "noise", ("MRI",), noise.rician_noise),
    ("speckle", "noise", ("OCT",), noise.speckle),
    ("quantum_noise", "noise", ("X-Ray", "CT", "Fundus"), noise.quantum_noise),
    ("static", "noise", _ALL, noise.static),
    ("salt_and_pepper", "noise", _ALL, noise.salt_and_pepper),
    ("clipping", "exposure", _ALL, exposure.clipping),
    ("crushed_shadows", "exposure", _ALL, exposure.crushed_shadows),
    ("dimming", "exposure", _ALL, exposure.dimming),
    ("low_contrast", "exposure", _ALL, exposure.low_contrast),
    ("uneven_light", "shading", ("Fundus", "X-Ray", "MRI", "OCT"), exposure.uneven_light),
    ("glare", "shading", _LIGHT, exposure.glare),
    ("vignetting", "shading", _LIGHT, exposure.vignetting),
    ("jpeg", "coding", _ALL, coding.jpeg),
    ("damaged_blocks", "coding", _ALL, coding.damaged_blocks),
    ("quantisation", "grey_levels", _ALL, coding.quantisation),
    ("wrap_around", "grey_levels", _ALL, coding.wrap_around),
    ("stripes", "patterns", _ALL, patterns.stripes),
    ("checkerboard", "patterns", _ALL, patterns.checkerboard),
    ("banding", "lines", _ALL, patterns.banding),
    ("lost_lines", "lines", _ALL, layout.lost_lines),
    ("rings", "patterns", ("CT",), patterns.rings),
    ("streaks", "patterns", ("CT",), patterns.streaks),
    ("missing_part", "missing", _ALL, layout.missing_part),
    ("cut_off", "missing", _ALL, layout.cut_off),
    ("shuffled", "layout", _ALL, layout.shuffled),
    ("torn", "layout", _ALL, layout.torn),
    ("stitched", "layout", _ALL, None),
)
DEGRADATIONS: dict[str, Degradation] = {row[0]: Degradation(*row) for row in _TABLE}


def kinds_of(modality: str) -> tuple[str, ...]:
    """The kinds that images of a modality can have; of one that is not known, those that any image can have."""
    known = modality if modality in MODALITIES else None
    return tuple(
        name
        for name, kind in DEGRADATIONS.items()
        if (known in kind.modalities if known else kind.modalities == MODALITIES)
    )


def family_of(kind: str) -> str:
    """The family of a kind."""
    return DEGRADATIONS[kind].family
