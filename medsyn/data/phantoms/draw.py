"""Draws the phantoms: schematic anatomy from signed distance fields and smooth noise, in numpy.

Radiology kinds show the patient's right on the image's left; an eye is drawn as a right eye (optic nerve on the
image's right) and mirrored for a left one. Values are display values: 0 black, 1 white.

The anatomy depends on the phantom's identity alone and the finding is added to it, so two phantoms that differ only in
their finding are twins: same body, with and without. So are two that differ in their protocol: B shows the same
patients as A on other devices, which is what `Scene.look` chooses between:

* OCT in reverse, black on white;
* the fundus in red-free light, grey;
* the chest radiograph of a patient who lies down: a wide heart, effusions as a veil over the lung, consolidations low;
* chest CT with contrast medium, in less deep a breath;
* the brain T2-weighted: fluid and oedema are bright, the mass is dark;
* the breast likewise, fat suppressed: cysts are bright, the mass is dark.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from medsyn.data.phantoms.scene import Scene, bump, degrade, paint
from medsyn.seeds import seed as seed_of

# Chest CT is drawn in Hounsfield units and shown through this window: wide, so that lung, vessels and bone all show.
CT_LEVEL, CT_WIDTH = -400.0, 1600.0
CT_LOWEST, CT_HIGHEST = -1024.0, 3071.0  # what a scanner stores: 12 bits, intercept -1024


def hu_to_display(hu: Any) -> Any:
    """Hounsfield units as display values of the CT window."""
    return (hu - CT_LEVEL) / CT_WIDTH + 0.5


def display_to_hu(values: Any) -> Any:
    """The inverse of `hu_to_display`."""
    return (values - 0.5) * CT_WIDTH + CT_LEVEL


# -- the eye: drawn as a right eye -------------------------------------------------------------------------------------


def _oct(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """A B-scan through the fovea, from temporal to the edge of the optic nerve head."""
    x, y = scene.x, scene.y
    fovea = scene.vary(-0.32, -0.16)
    thickness = scene.vary(0.56, 0.66)
    pit = scene.vary(0.5, 0.62)
    bend, tilt = scene.vary(-0.02, 0.14), scene.vary(-0.06, 0.06)
    rpe = scene.vary(0.26, 0.38) - bend * (x - fovea) ** 2 + tilt * x + 0.012 * scene.noise(4)
    depth = thickness * (1 - pit * bump(x - fovea, 0.24) - 0.15 * bump(x + 1.1, 0.5))
    nerve = np.clip((x - scene.vary(0.72, 0.8)) / 0.25, 0, 1) ** 2  # the optic nerve head's edge
    speckle = scene.noise(44) * 0.6 + scene.noise(18) * 0.4

    if finding == "intraretinal cystoid fluid":
        depth = depth + scene.place(0.4, 0.48) * bump(x - fovea, scene.place(0.38, 0.46))
    bruch = rpe
    if finding == "drusen":
        for offset in (-0.56, -0.14, 0.28, 0.7):
            dome = (x - fovea - offset - scene.place(-0.07, 0.07)) / scene.place(0.13, 0.17)
            rpe = rpe - scene.place(0.16, 0.23) * np.exp(-(np.abs(dome) ** 2.6))
    lift = np.logaddexp(0, (0.24 - depth - (rpe - bruch)) / 0.05) * 0.05  # the retina drapes over what lifts it
    surface = bruch - depth - lift + 0.7 * nerve
    u = (y - surface) / np.maximum(rpe - surface, 0.05)  # 0 at the inner surface, 1 at the pigment epithelium

    nerve_fibres = 0.06 + 0.09 * np.clip(x - fovea, 0, 1.2)
    layers = np.full_like(x, 0.36)
    layers = paint(layers, 0.78, scene.cover(u - nerve_fibres, 0.06))
    layers = paint(layers, 0.5, scene.cover(np.abs(u - nerve_fibres - 0.14) - 0.11, 0.08))
    layers = paint(layers, 0.24, scene.cover(np.abs(u - 0.46) - 0.07, 0.07))
    layers = paint(layers, 0.52, scene.cover(np.abs(u - 0.57) - 0.03, 0.06))
    layers = paint(layers, 0.2, scene.cover(np.abs(u - 0.72) - 0.09, 0.08))
    below = y - bruch
    choroid = 0.5 * np.exp(-np.clip(below, 0, 2) / 0.22) * (1 + 0.3 * scene.noise(14)) + 0.03
    image = np.full_like(x, 0.05)
    image = paint(image, layers * (1 + 0.14 * speckle), scene.cover(surface - y, 0.03))
    image = paint(image, choroid * (1 + 0.2 * speckle), scene.cover(-below))
    if finding == "drusen":
        image = paint(image, 0.42, scene.cover(np.maximum(rpe - y, y - bruch)))
    if finding == "intraretinal cystoid fluid":
        column = int(np.abs(x[0] - fovea).argmin())
        middle = float(surface[0, column] + rpe[0, column]) / 2
        for offset, lift, size in ((0.0, 0.0, 1.0), (-0.33, 0.03, 0.72), (0.33, 0.03, 0.72)):
            width, height = scene.place(0.13, 0.16) * size, scene.place(0.2, 0.25) * size
            cyst = scene.ellipse(fovea + offset, middle + lift + scene.place(-0.04, 0.04), width, height)
            image = paint(image, 0.06, scene.cover(cyst))
    epithelium = scene.cover(np.abs(y - rpe + 0.01) - 0.035, 0.04) * (1 - nerve)
    image = paint(image, 0.95, epithelium)
    image = paint(image, 0.62, scene.cover(np.abs(y - rpe + 0.11) - 0.012, 0.04) * (1 - nerve) * 0.8)
    image = image * (1 - 0.1 * np.abs(x)) + 0.012 * speckle
    return image if scene.protocol == "A" else 1 - image


# Direction at the disc (radians), bend per unit of length, and half the width: arcades above and below, and branches.
_FUNDUS_VESSELS = (
    (1.45, 0.95, 0.042),
    (-1.45, -0.95, 0.042),
    (2.0, 0.75, 0.026),
    (-2.0, -0.75, 0.026),
    (1.1, -0.2, 0.026),
    (-1.05, 0.2, 0.026),
    (0.35, -0.2, 0.02),
)


_RED_FREE = np.array([0.15, 0.85, 0.0], np.float32)  # a green filter before a grey camera


def _fundus(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """A fundus photograph centred between macula and optic disc; RGB."""
    x, y = scene.x, scene.y
    disc_x, disc_y = scene.vary(0.42, 0.5), scene.vary(-0.08, 0.04)
    macula_x, macula_y = disc_x - scene.vary(0.6, 0.68), disc_y + scene.vary(0.04, 0.1)
    tone = np.array([0.82, 0.42, 0.2]) * scene.vary(0.9, 1.08) + np.array([0.0, 1.0, 0.5]) * scene.vary(-0.05, 0.05)
    radius = np.hypot(x, y)
    light = 1.05 - 0.3 * radius**2 + 0.05 * scene.noise(3) + 0.035 * scene.noise(9)
    image = light[..., None] * tone.astype(np.float32)

    def lay(colour: tuple[float, float, float], mask: np.ndarray) -> None:
        nonlocal image
        image = paint(image, np.array(colour, dtype=np.float32), mask[..., None])

    lay((0.5, 0.17, 0.08), 0.75 * bump(np.hypot(x - macula_x, y - macula_y), scene.vary(0.17, 0.23)))
    # Vessels leave the disc and bend towards the macula: an angle that is a function of the distance from the disc.
    distance = np.hypot(x - disc_x, y - disc_y)
    around = np.arctan2(disc_y - y, x - disc_x)
    vessels = np.full_like(x, 9.0)
    for start, bend, width in _FUNDUS_VESSELS:
        bent = around - start - scene.vary(-0.12, 0.12) - bend * scene.vary(0.85, 1.1) * np.minimum(distance, 1.3)
        across = distance * np.abs((bent + np.pi) % (2 * np.pi) - np.pi)
        vessels = np.minimum(vessels, across - width * (1 - 0.35 * distance))
    lay((0.42, 0.09, 0.06), 0.85 * scene.cover(vessels, 0.045))
    turn, rough = scene.place(0, 2 * np.pi), scene.noise(12, scene.finding_rng)
    blots = np.full_like(x, 9.0)
    if finding == "hard exudates":
        for step in range(8):
            theta = turn + step * 2 * np.pi / 8 + scene.place(-0.3, 0.3)
            reach = scene.place(0.18, 0.38)
            cx, cy = macula_x + reach * np.cos(theta), macula_y + reach * np.sin(theta)
            blots = np.minimum(blots, scene.ellipse(cx, cy, scene.place(0.07, 0.11), scene.place(0.06, 0.09), theta))
        lay((1.0, 0.93, 0.35), scene.cover(blots + 0.012 * rough, 0.04))
    if finding == "intraretinal haemorrhages":
        for step in range(7):
            theta = turn + step * 2 * np.pi / 7 + scene.place(-0.4, 0.4)
            reach = scene.place(0.32, 0.72)
            cx, cy, angle = -0.12 + reach * np.cos(theta), 0.95 * reach * np.sin(theta), theta + scene.place(0.8, 2.2)
            blots = np.minimum(blots, scene.ellipse(cx, cy, scene.place(0.13, 0.19), scene.place(0.09, 0.13), angle))
        lay((0.3, 0.02, 0.03), 0.95 * scene.cover(blots + 0.02 * rough, 0.05))

    tilt, disc = scene.vary(-0.2, 0.2), scene.vary(0.17, 0.2)
    lay((1.0, 0.86, 0.52), scene.cover(scene.ellipse(disc_x, disc_y, disc * 0.9, disc, tilt), 0.06))
    lay((1.0, 0.97, 0.8), scene.cover(scene.ellipse(disc_x - 0.02, disc_y, disc * 0.42, disc * 0.5, tilt), 0.08))
    if scene.protocol == "B":
        image = np.repeat((image @ _RED_FREE)[..., None], 3, axis=-1)
    return image * scene.cover(radius - 0.95)[..., None]


# -- radiology: the patient's right is on the image's left; `direction` -1 is the patient's right, 0 a normal image ----


def _chest_xray(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """A posteroanterior chest radiograph."""
    x, y = scene.x, scene.y
    width, height = scene.vary(0.3, 0.34), scene.vary(0.66, 0.74)
    apart, centre = scene.vary(0.4, 0.44), scene.vary(-0.12, -0.06)
    heart_width, heart_y = scene.vary(0.3, 0.38) * scene.look(1, 1.4), scene.vary(0.26, 0.32)
    shoulders = 0.28 * (np.abs(x) - 0.2) ** 2 - 0.8 - y
    torso = np.maximum(np.maximum(shoulders, np.abs(x) - scene.vary(0.88, 0.96) + 0.12 * np.clip(y, 0, 1)), -1 - y)
    torso = np.minimum(torso, np.maximum(np.abs(x) - 0.25, y))
    image = np.full_like(x, 0.03)
    image = paint(
        image, 0.55 + 0.14 * np.clip((y - 0.1) / 0.5, 0, 1) + 0.025 * scene.noise(4), scene.cover(torso, 0.12)
    )

    fields = {}
    for side in (-1, 1):
        lean = side * 0.1
        dome = scene.vary(0.4, 0.45) + (0.05 if side > 0 else 0.0)  # the liver lifts the right dome
        diaphragm = y - dome - 1.6 * (x - side * 0.36) ** 2 * (1 + 0.6 * (side * x > 0.36))
        fields[side] = np.maximum(scene.ellipse(side * apart, centre, width, height, lean), diaphragm)
        image = paint(image, 0.17, scene.cover(fields[side], 0.06))
    lungs = scene.cover(np.minimum(fields[-1], fields[1]), 0.06)
    hila = bump(np.hypot(np.abs(x) - 0.2, (y - 0.02) / 1.5), 0.2)
    image = image + lungs * (0.04 * scene.noise(16) + 0.03 * scene.noise(7) + 0.16 * hila)
    phase = (y - 0.42 * np.abs(x) ** 1.5 + scene.vary(0, 0.2)) / scene.vary(0.185, 0.21)
    ribs = np.clip(np.cos(2 * np.pi * phase) - 0.35, 0, 1) * scene.cover(scene.ellipse(0, 0.0, 0.82, 0.85), 0.1)
    image = image + 0.11 * ribs * (1 - 0.5 * (1 - lungs))

    spine = np.abs(x) - 0.09 - 0.03 * y
    image = paint(image, 0.8, 0.85 * scene.cover(np.maximum(spine, -0.95 - y), 0.1))
    aortic_knob = scene.ellipse(0.11, -0.24, 0.12, 0.13)
    mediastinum = np.maximum(np.abs(x - 0.02) - 0.15, np.abs(y + 0.05) - 0.35)
    image = paint(image, 0.78, 0.85 * scene.cover(np.minimum(aortic_knob, mediastinum), 0.1))
    ventricle = scene.ellipse(0.15, heart_y, heart_width, 0.24, 0.5)
    atrium = scene.ellipse(-0.03, heart_y - 0.04, 0.2, 0.24, -0.15)
    heart = -0.05 * np.logaddexp(-ventricle / 0.05, -atrium / 0.05)
    image = paint(image, 0.78 + 0.02 * scene.noise(5), 0.95 * scene.cover(heart + 0.02, 0.08))
    trachea = np.maximum(np.abs(x) - 0.045, y + 0.2)
    image = paint(image, 0.52, 0.8 * scene.cover(trachea, 0.05))
    for side in (-1, 1):
        clavicle = np.abs(y + 0.66 + 0.22 * (side * x - 0.1)) - 0.033
        image = image + 0.2 * scene.cover(np.maximum(clavicle, np.abs(side * x - 0.42) - 0.36), 0.05)

    if finding == "consolidation":
        cx, cy = direction * scene.place(0.4, 0.46), scene.place(-0.34, -0.06) + scene.look(0.0, 0.36)
        cloud = scene.ellipse(cx, cy, scene.place(0.26, 0.3), scene.place(0.26, 0.33), scene.place(-0.5, 0.5))
        ragged = cloud + 0.025 * scene.noise(7, scene.finding_rng)
        texture = 0.86 + 0.05 * scene.noise(10, scene.finding_rng)
        image = paint(image, texture, 0.95 * scene.cover(ragged, 0.16) * scene.cover(fields[direction], 0.06))
    if finding == "pleural effusion":
        # The meniscus climbs along the chest wall, and the fluid hides the diaphragm; lying, it is a veil.
        level = scene.place(-0.02, 0.1) - scene.look(0.0, 0.9) - 0.9 * np.clip(direction * x - 0.42, 0, 1) ** 1.5
        chest = scene.ellipse(direction * apart, centre, width + 0.01, height + scene.look(0.3, 0.05), direction * 0.1)
        value = 0.9 - 0.6 * np.clip(y - 0.25, 0, 0.35)  # fades into the abdomen below
        image = paint(image, value, scene.look(0.97, 0.6) * scene.cover(level - y, 0.07) * scene.cover(chest, 0.09))
    stomach_gas = scene.ellipse(0.42, 0.72, 0.13, 0.08)
    image = paint(image, 0.3, 0.6 * scene.cover(stomach_gas, 0.06))
    return image


def _chest_ct(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """An axial slice at the height of the heart, in Hounsfield units until the last line."""
    x, y = scene.x, scene.y
    wide, deep = scene.vary(0.86, 0.94), scene.vary(0.64, 0.72)
    body = scene.ellipse(0, 0, wide, deep)
    table = np.maximum(np.abs(y - 0.84 + 0.12 * (1 - x * x)) - 0.022, np.abs(x) - 0.8)
    hu = np.full_like(x, -1000.0)
    hu = paint(hu, -250.0, scene.cover(table))
    hu = paint(hu, -100.0, scene.cover(body))
    hu = paint(hu, 50 + 10 * scene.noise(12), scene.cover(body + scene.vary(0.06, 0.1)))
    around = np.arctan2(y / deep, x / wide)
    ribs = np.clip(np.cos(around * 14 + scene.vary(0, 6)) - 0.1, 0, 1) ** 0.5
    hu = hu + 520 * ribs * scene.cover(np.abs(body + 0.165) - 0.03, 0.03)

    lung_width, lung_deep = scene.vary(0.33, 0.37), scene.vary(0.45, 0.5)
    fields = {}
    for side in (-1, 1):
        fields[side] = scene.ellipse(side * 0.42, -0.02, lung_width - (0.02 if side > 0 else 0), lung_deep, side * -0.2)
    heart = scene.ellipse(scene.vary(0.1, 0.15), -0.14, scene.vary(0.25, 0.3), 0.23, 0.5)
    middle = np.minimum(np.maximum(np.abs(x) - 0.12, np.abs(y) - 0.5), heart)
    lungs = {side: scene.cover(np.maximum(field, -middle), 0.04) for side, field in fields.items()}
    both = lungs[-1] + lungs[1]
    grain = 14 * scene.noise(26) + 14 * scene.noise(9)
    hu = paint(hu, scene.look(-850, -810) + 30 * y + grain, both)
    hila = bump(np.hypot((np.abs(x) - 0.2) / 1.3, y - 0.05), 0.3)
    hu = hu + both * 380 * np.clip(scene.noise(30) - 1.5 + 1.2 * hila, 0, 1)

    hu = paint(hu, 45.0, scene.cover(middle, 0.04))
    hu = paint(hu, scene.look(110.0, 350.0), scene.cover(heart + 0.07, 0.05))
    airway, aorta = scene.ellipse(-0.01, 0.1, 0.05, 0.06), scene.ellipse(0.19, 0.33, 0.085, 0.085)
    vertebra = np.minimum(scene.ellipse(0, 0.42, 0.13, 0.11), scene.ellipse(0, 0.6, 0.035, 0.1))
    marrow, canal = scene.ellipse(0, 0.42, 0.1, 0.08), scene.ellipse(0, 0.545, 0.05, 0.04)
    sternum = scene.ellipse(0, -deep + 0.13, 0.09, 0.03)
    hu = paint(hu, -980.0, scene.cover(airway))
    hu = paint(hu, 700.0, scene.cover(vertebra))
    hu = paint(hu, 330.0, scene.cover(marrow, 0.05))
    hu = paint(hu, 30.0, scene.cover(canal))
    hu = paint(hu, 600.0, scene.cover(sternum))
    hu = paint(hu, scene.look(200.0, 450.0), scene.cover(aorta))

    if finding == "ground glass opacity":
        cx, cy = direction * scene.place(0.44, 0.5), scene.place(-0.14, 0.14)
        haze = scene.ellipse(cx, cy, scene.place(0.24, 0.29), scene.place(0.28, 0.36), scene.place(-0.4, 0.4))
        haze = haze + 0.05 * scene.noise(7, scene.finding_rng)
        density = scene.look(-480, -300) + 45 * scene.noise(14, scene.finding_rng)
        hu = paint(hu, np.maximum(hu, density), scene.cover(haze, 0.14) * lungs[direction])
    if finding == "solid mass":
        cx, cy = direction * scene.place(0.46, 0.53), scene.place(-0.16, 0.16)
        mass = np.hypot(x - cx, y - cy) - scene.place(0.15, 0.18)
        hu = paint(hu, 45.0, scene.cover(mass + 0.022 * scene.noise(12, scene.finding_rng)))
    return hu_to_display(hu)


def _brain_mri(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """An axial slice at the height of the lateral ventricles; A: T1-weighted with contrast medium, B: T2-weighted."""
    x, y = scene.x, scene.y
    wide, long = scene.vary(0.68, 0.76), scene.vary(0.86, 0.93)
    head = scene.ellipse(0, 0, wide, long)
    white_matter, fluid = scene.look(0.66, 0.36), scene.look(0.1, 0.85)
    image = np.full_like(x, 0.02)
    image = paint(image, 0.97, scene.cover(head))  # fat of the scalp: every slice has a full white
    image = paint(image, 0.06, scene.cover(head + 0.07))
    brain = head + scene.vary(0.125, 0.15)
    folds = 0.03 * scene.noise(11) + 0.03 * scene.noise(20)
    image = paint(image, scene.look(0.4, 0.6) + 0.02 * scene.noise(8), scene.cover(brain + np.clip(0.4 * folds, 0, 1)))
    white = brain + 0.13 + folds * 1.3
    image = paint(image, white_matter + 0.02 * scene.noise(6), scene.cover(white, 0.05))
    fissure = np.maximum(np.abs(x + 0.01 * scene.noise(6)) - 0.012, 0.3 - np.abs(y))
    image = paint(image, fluid, 0.8 * scene.cover(np.maximum(fissure, brain), 0.04))
    corpus = np.maximum(np.abs(y) - 0.34, np.abs(x) - 0.16)
    image = paint(image, white_matter, scene.cover(corpus, 0.06))

    # Mass effect: the midline moves away from the finding, and the ventricle beside it is narrow. No side, no shift.
    shift = -0.05 * direction
    size = scene.vary(0.9, 1.15)
    for side in (-1, 1):
        squeeze = 0.6 if side == direction else 1.0
        nucleus = scene.ellipse(side * 0.25 + shift, -0.04, 0.1, 0.2, side * 0.3)
        image = paint(image, scene.look(0.45, 0.5), scene.cover(nucleus, 0.06))
        front = scene.ellipse(side * 0.1 + shift, -0.2, 0.055 * size * squeeze, 0.17 * size, side * -0.35)
        back = scene.ellipse(side * 0.17 + shift, 0.26, 0.06 * size * squeeze, 0.17 * size, side * -0.45)
        image = paint(image, fluid - 0.02, scene.cover(np.minimum(front, back), 0.04))
    third = np.maximum(np.abs(x - shift) - 0.02, np.abs(y - 0.03) - 0.1)
    image = paint(image, fluid, scene.cover(third, 0.04))

    inside = scene.cover(brain + 0.03)
    if finding == "enhancing mass":
        cx, cy = direction * scene.place(0.32, 0.38), scene.place(-0.3, 0.3)
        mass = scene.ellipse(cx, cy, scene.place(0.18, 0.22), scene.place(0.19, 0.25), scene.place(-0.6, 0.6))
        mass = mass + 0.025 * scene.noise(9, scene.finding_rng)
        image = paint(image, scene.look(1.0, 0.12), scene.cover(mass) * inside)
        image = paint(image, scene.look(0.55, 0.3), scene.cover(mass + scene.place(0.11, 0.13), 0.05))
    if finding == "oedema":
        cx, cy = direction * scene.place(0.34, 0.38), scene.place(-0.26, 0.26)
        swelling = scene.ellipse(cx, cy, scene.place(0.22, 0.26), scene.place(0.28, 0.36), scene.place(-0.4, 0.4))
        swelling = swelling + 0.06 * scene.noise(8, scene.finding_rng)
        image = paint(image, scene.look(0.17, 0.92), 0.95 * scene.cover(swelling, 0.1) * inside)
    return image


def _breast_mri(scene: Scene, finding: str, direction: int) -> np.ndarray:
    """An axial fat-suppressed slice, weighted as `_brain_mri`; the breasts point up."""
    x, y = scene.x, scene.y
    apart, width, length = scene.vary(0.46, 0.5), scene.vary(0.36, 0.42), scene.vary(0.66, 0.78)
    wall = scene.vary(0.26, 0.34)
    chest = scene.ellipse(0, wall + 0.86, 1.12, 0.9)
    breasts = {side: scene.ellipse(side * apart, wall - 0.08, width, length, side * 0.08) for side in (-1, 1)}
    image = np.full_like(x, 0.02)
    skin = np.minimum(np.minimum(breasts[-1], breasts[1]), chest)
    image = paint(image, 0.62, scene.cover(skin))
    image = paint(image, 0.3 + 0.02 * scene.noise(6), scene.cover(skin + 0.04))
    gland_size = scene.vary(0.85, 1.1)
    strands = 0.07 * scene.noise(9) + 0.035 * scene.noise(18)
    for side in (-1, 1):
        gland = scene.ellipse(side * apart, wall - 0.36, width * 0.62 * gland_size, length * 0.42 * gland_size)
        gland = np.maximum(gland + np.clip(strands, -0.12, 0.12), breasts[side] + 0.09)
        image = paint(image, scene.look(0.52, 0.64) + 0.05 * scene.noise(12), scene.cover(gland, 0.08))
        nipple = scene.ellipse(side * (apart + 0.03), wall - 0.08 - length, 0.045, 0.045)
        image = paint(image, 0.66, scene.cover(nipple))
    muscle = scene.ellipse(0, wall + 0.98, 1.14, 0.9)
    image = paint(image, scene.look(0.45, 0.26) + 0.03 * scene.noise(10), scene.cover(muscle, 0.04))
    inner = scene.ellipse(0, wall + 1.12, 1.06, 0.9)
    image = paint(image, 0.14 + 0.02 * scene.noise(8), scene.cover(inner, 0.04))
    ribs = np.clip(np.cos(x * 11 + scene.vary(0, 6)), 0, 1) * scene.cover(np.abs(inner) - 0.03, 0.04)
    image = paint(image, 0.2, 0.8 * ribs)
    heart = scene.ellipse(scene.vary(0.1, 0.16), wall + 0.62, 0.34, 0.28, 0.4)
    image = paint(image, 0.97, scene.cover(heart, 0.1))  # blood with contrast medium: every slice has a full white
    sternum = scene.ellipse(0, wall + 0.17, 0.12, 0.045)
    image = paint(image, 0.35, scene.cover(sternum, 0.04))

    if finding in ("enhancing mass", "cyst"):
        cx, cy = direction * (apart + scene.place(-0.06, 0.06)), wall + scene.place(-0.42, -0.26)
        if finding == "enhancing mass":
            mass = np.hypot(x - cx, y - cy) - scene.place(0.16, 0.2) + 0.025 * scene.noise(12, scene.finding_rng)
            image = paint(image, scene.look(1.0, 0.05), scene.cover(mass))
        else:
            cyst = scene.ellipse(cx, cy, scene.place(0.17, 0.21), scene.place(0.17, 0.21))
            image = paint(image, scene.look(0.62, 0.3), scene.cover(cyst - 0.025))
            image = paint(image, scene.look(0.03, 1.0), scene.cover(cyst))
    return image


_DRAW: dict[str, Callable[[Scene, str, int], np.ndarray]] = {
    "OCT": _oct,
    "Fundus": _fundus,
    "Chest X-ray": _chest_xray,
    "Chest CT": _chest_ct,
    "Brain MRI": _brain_mri,
    "Breast MRI": _breast_mri,
}


def draw(
    kind: str,
    finding: str,
    side: str | None,
    quality: int,
    key: tuple[str | int, ...],
    size: int,
    zoom: float = 1.0,
    protocol: str = "B",
) -> np.ndarray:
    """One phantom as display values, not yet clipped to 0..1.

    Args:
        kind: One of `phantom.KINDS`.
        finding: One of the kind's findings.
        side: "left", "right" or None.
        quality: 1 poor, 2 acceptable, 3 excellent.
        key: The phantom's identity: what its anatomy and its finding's shape depend on.
        size: Pixels per side.
        zoom: Size of the anatomy in the picture; below 1 for slices away from a volume's middle.
        protocol: "A" or "B", see `phantom.Protocol`.

    Returns:
        float32 [size, size, C], C = 3 for Fundus and 1 otherwise. 0..1 is the displayed range; bone in CT lies above.
    """
    eye = kind in ("OCT", "Fundus")
    direction = 0 if side is None else (-1 if side == "right" else 1)
    image = _DRAW[kind](Scene(key, size, zoom, protocol), finding, direction)
    if eye and side == "left":
        image = image[:, ::-1]
    image = degrade(image, kind, quality, np.random.default_rng(seed_of(*key, "quality")))
    if kind == "Chest CT":
        image = np.clip(image, hu_to_display(CT_LOWEST), hu_to_display(CT_HIGHEST))
    return np.ascontiguousarray(image.reshape(size, size, -1), dtype=np.float32)
