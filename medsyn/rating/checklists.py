"""What the page offers for each modality: defects to tick, and windows to choose.

Ten defects at most, for each has a key. Their names are part of the files that come back: a text may change, a name
may not.
"""

from __future__ import annotations

from medsyn.data.images.pixels import CT_WINDOW
from medsyn.modality_names import MODALITIES
from medsyn.rating.formats import Checklist, Defect, Preset

_OF_ALL = {
    "anatomy": "Anatomy that cannot be",
    "not-as-described": "Does not show what the text says",
    "texture": "Texture looks artificial",
    "blur": "Blurred, detail missing",
    "noise": "Noise, stripes or blocks",
    "doubled": "Structures doubled or merged",
}
_OF_ONE = {
    "OCT": {
        "layers": "Retinal layers broken or crossing",
        "fovea": "Fovea missing or misshapen",
        "shadows": "Shadows do not fit the vessels",
        "speckle": "Speckle missing or wrong",
    },
    "CT": {
        "grey-values": "Tissue has the wrong density",
        "bones": "Bones broken up or misshapen",
        "vessels": "Vessels or airways end nowhere",
        "streaks": "Streaks or rings",
    },
    "X-Ray": {
        "ribs": "Ribs or bones merge or end nowhere",
        "heart": "Heart or mediastinum misshapen",
        "lung-markings": "Lung markings missing or wrong",
        "devices": "Tubes, lines or markers that cannot be",
    },
    "MRI": {
        "contrast": "Contrast does not fit the sequence",
        "boundaries": "Tissue boundaries wrong",
        "symmetry": "Sides differ where they should not",
        "ghosts": "Ghosts or uneven brightness",
    },
    "Fundus": {
        "vessels": "Vessels broken, looping or ending nowhere",
        "disc": "Optic disc missing, doubled or misplaced",
        "macula": "Macula missing or misplaced",
        "colour": "Colours unnatural",
    },
}
_PARTS = (
    Preset(name="Whole range", low=0, high=100, unit="%"),
    Preset(name="Dark parts", low=0, high=50, unit="%"),
    Preset(name="Middle", low=25, high=75, unit="%"),
    Preset(name="Bright parts", low=50, high=100, unit="%"),
)


def _window(name: str, centre: float, width: float) -> Preset:
    return Preset(name=name, low=round(centre - width / 2), high=round(centre + width / 2), unit="HU")


_OF_CT = (
    _window("Soft tissue", *CT_WINDOW),
    _window("Lung", -600, 1500),
    _window("Bone", 400, 1800),
    _window("Brain", 40, 80),
)

CHECKLISTS: dict[str, Checklist] = {
    modality: Checklist(
        defects=tuple(Defect(id=name, text=text) for name, text in (_OF_ALL | _OF_ONE[modality]).items()),
        presets=(*(_OF_CT if modality == "CT" else ()), *_PARTS),
    )
    for modality in MODALITIES
}
