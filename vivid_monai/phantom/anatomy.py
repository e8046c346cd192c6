"""The healthy chest, from the front and from the side (sternum left, spine right, both lungs overlaid)."""

from typing import NamedTuple, TypeVar

import numpy as np

from vivid_monai.phantom.canvas import Array, band, blob, ellipse, smoothstep, texture
from vivid_monai.phantom.patients import Patient
from vivid_monai.phantom.scene import MAX_BODY_SIZE, BrokenRib, Pose, Scene, Shape

CENTRE, APEX = 0.5, 0.12
RIB_SPACING = 0.066
Height = TypeVar("Height", np.ndarray, float)


class Chest:
    """Measures of one frontal chest, in body units (1 = image side at zoom 1).

    `width`: half the rib cage; `base`: height of each dome of the diaphragm; `heart`: half its width; `mediastinum`: a
    factor on its upper part; `knob`: half width at the aortic knob; `wall`: soft tissue outside the ribs.
    """

    def __init__(self, patient: Patient, shape: Shape, portable: bool) -> None:
        # At the bedside a chest is breathed in less, and its heart, farther from the detector, looks larger.
        traits = patient.anatomy
        breath = (0.655 if portable else 0.705) + 0.02 * traits[1]
        left_dome = breath + 0.02 + 0.008 * traits[2]
        self.width = 0.335 + 0.012 * patient.stature
        self.base = {"right": breath - shape.raised["right"], "left": left_dome - shape.raised["left"]}
        self.heart = (0.44 + 0.025 * traits[0]) * (1.09 if portable else 1.0) * shape.heart * self.width
        self.mediastinum = (1.0 + 0.08 * traits[3]) * (1.1 if portable else 1.0) * shape.mediastinum
        self.knob = 0.072 + 0.008 * traits[4] + 0.0003 * (patient.age - 50)
        self.wall = 0.05 + 0.018 * max(patient.habitus, -1.5)
        self.rib_slope = 0.05 + 0.02 * traits[7]

    def outer(self, y: Height) -> Height:
        """Half width of the rib cage at height y, an arch from the apex to the costophrenic angle."""
        t = np.clip((0.84 - y) / (0.84 - APEX), 0, 1)
        return 0.075 + (self.width - 0.075) * np.sqrt(1 - t**2.5)

    def inner(self, y: Height, side: str) -> Height:
        """Distance of the mediastinal border from the midline at height y."""
        if side == "right":  # superior vena cava, then hilum
            edge = 0.05 + 0.016 * _bump(y, 0.42, 0.07)
        else:  # aortic knob, pulmonary trunk
            edge = 0.045 + (self.knob - 0.045) * _bump(y, 0.29, 0.05) + 0.022 * _bump(y, 0.42, 0.05)
        return edge * (1 + (self.mediastinum - 1) * _bump(y, 0.3, 0.16))

    def rib_course(self, reach: Height) -> Height:
        """Height of the first posterior rib at `reach` half widths from the spine; the others run below it."""
        squared = reach * reach
        return 0.105 + self.rib_slope * reach + 0.11 * squared * squared

    def rib(self, side: str, rib: int, distance: float) -> tuple[float, float]:
        """The middle of posterior rib `rib` (counted from 0) at `distance` from the spine."""
        height = self.rib_course(distance / self.width) + (rib + 0.5) * RIB_SPACING
        return CENTRE + (distance if side == "left" else -distance), height

    def locate(self, side: str, across: float, down: float) -> tuple[float, float]:
        """The place `across` (0 mediastinum … 1 wall) and `down` (0 apex … 1 dome) in the lung of a side."""
        y = APEX + down * (self.base[side] - APEX)
        inner, outer = float(self.inner(y, side)), float(self.outer(y))
        distance = inner + across * (outer - inner)
        return CENTRE + (distance if side == "left" else -distance), y


def _bump(y: Height, centre: float, width: float) -> Height:
    return np.exp(-(((y - centre) / width) ** 2))


class Midline(NamedTuple):
    """Where a pixel lies against the midline, float32 or bool (n, n): height, distance, side, rib cage width there."""

    y: Array
    distance: Array
    left: Array
    outer: Array


def bones(patient: Patient, chest: Chest, at: Midline, broken: BrokenRib | None, portable: bool) -> Array:
    """Density of all bones."""
    within = smoothstep((at.outer + 0.015 - at.distance) * 50)
    reach = at.distance * (1 / chest.width)
    height = 0.215 + 0.01 * patient.anatomy[8] - at.distance * (0.34 - 0.35 * at.distance)
    ends = smoothstep((at.distance - 0.035) * 60) * smoothstep((0.36 - at.distance) * 30)
    clavicles = band(at.y - height, 0.009, 0.009) * ends
    spine = smoothstep((0.045 - at.distance) * 50) * (0.075 + 0.025 * np.sin(at.y * (2 * np.pi / 0.058)))
    border = chest.width + (-0.03 if portable else 0.035)  # turned out of the lungs by who stands for a PA view
    edge = band(at.distance - border - 0.25 * (at.y - 0.3), 0.012, 0.02)
    shoulder_blades = edge * smoothstep((at.y - 0.17) * 20) * smoothstep((0.46 - at.y) * 20)
    return (
        0.085 * _posterior_ribs(chest, at, reach, broken) * within
        + 0.03 * _anterior_ribs(at, reach) * within
        + 0.085 * clavicles
        + spine
        + 0.055 * shoulder_blades
    )


def _posterior_ribs(chest: Chest, at: Midline, reach: Array, broken: BrokenRib | None) -> Array:
    rank = (at.y - chest.rib_course(reach)) * (1 / RIB_SPACING)
    gap: Array | None = None
    if broken is not None:
        half = 0.5 * broken.count
        here = (at.left == (broken.side == "left")) * band(rank - (broken.rib + half), half, 0.2)
        beyond = at.distance - broken.distance
        rank = rank + broken.step * here * smoothstep(beyond * 150)
        gap = here * band(beyond, 0.005, 0.008)
    offset = rank - np.floor(rank) - 0.5
    # Brighter at the edges, where the beam runs along the cortex.
    bar = smoothstep((0.27 - np.abs(offset)) * 9) * (0.6 + 5.0 * offset * offset)
    ribs = bar * smoothstep(rank * 3) * smoothstep((10 - rank) * 2) * smoothstep((at.distance - 0.02) * 40)
    return ribs if gap is None else ribs * (1 - gap)


def _anterior_ribs(at: Midline, reach: Array) -> Array:
    rank = (at.y - 0.17 - 0.2 * (1 - reach) + 0.05 * reach * reach) * (1 / 0.075)
    offset = rank - np.floor(rank) - 0.5
    arch = smoothstep((0.26 - np.abs(offset)) * 6)
    return arch * smoothstep(rank * 2) * smoothstep((6 - rank) * 2) * smoothstep((at.distance - 0.1) * 20)


_LEVELS = np.linspace(0, 1, 512, dtype=np.float32)  # body heights at which profiles are tabulated
_HILA = {"right": (CENTRE - 0.085, 0.43), "left": (CENTRE + 0.09, 0.41)}


def frontal(
    rng: np.random.Generator, patient: Patient, shape: Shape, pose: Pose, size: int, *, portable: bool
) -> Scene:
    """Draw the chest; `rng` decides what changes between two images of the same patient."""
    chest = Chest(patient, shape, portable)
    x, y = pose.grid(min(size, MAX_BODY_SIZE))
    level = (np.clip(y, 0, 1) * 511).astype(np.intp)
    left, distance = x > CENTRE, np.abs(x - CENTRE)
    outer = chest.outer(_LEVELS)[level]
    inner = np.where(left, chest.inner(_LEVELS, "left")[level], chest.inner(_LEVELS, "right")[level])
    at = Midline(y=y, distance=distance, left=left, outer=outer)

    dome = (distance - 0.17) * (1 / 0.17)
    sag = dome * dome * np.where(dome > 0, np.float32(0.075), np.float32(0.03))
    base = np.where(left, np.float32(chest.base["left"]), np.float32(chest.base["right"])) + sag
    above = smoothstep((base - y) * 50)
    heart = _heart(chest, x, y) * above
    lung = smoothstep((outer - distance) * 33) * smoothstep((distance - inner) * 45) * above
    across = (distance - inner) / np.maximum(outer - inner, 0.02)
    middle = 2 * across - 1  # lungs are thickest in the middle

    aerated = lung * (1 - 0.86 * heart)
    body = _soft_tissue(rng, patient, chest, at)
    if patient.sex == "F":
        body += _breasts(patient, x, y)
    body -= aerated * (0.43 - 0.03 * patient.anatomy[5] - 0.1 * middle * middle)
    body += 0.07 * heart + 0.16 * (1 - above) * smoothstep((outer + 0.03 - distance) * 30)
    body += (1 - above) * _abdomen(rng, chest, x, y, left)
    body += bones(patient, chest, at, shape.broken_rib, portable)
    for centre in _HILA.values():
        body += 0.07 * blob(x, y, centre, (0.026, 0.04))

    core = smoothstep((inner - distance) * 50) * smoothstep((y - APEX) * 30) * smoothstep((0.55 - y) * 30)
    return Scene(
        pose=pose,
        lateral=False,
        x=x,
        y=y,
        density=body,
        lungs={"right": lung * ~left, "left": lung * left},
        across=across,
        down=(y - APEX) / (base - sag - APEX),
        hila=_HILA,
        organs={"heart": heart, "mediastinum": np.maximum(core, heart)},
        marking=_marking(rng, x, y, left) * aerated,
        lines=np.zeros((size, size), np.float32),
        locate=chest.locate,
        rib=chest.rib,
    )


def _heart(chest: Chest, x: Array, y: Array) -> Array:
    """Right atrium, left ventricle and the vessels above them as one shadow that narrows into the mediastinum."""
    floor, half = chest.base["left"], chest.heart
    ventricle = ellipse(x, y, (CENTRE + 0.5 * half, floor - 0.06), (0.8 * half, 0.06 + 0.3 * half), 0.55, 0.25)
    atrium = ellipse(x, y, (CENTRE - 0.08 * half, floor - 0.1), (0.6 * half, 0.1 + 0.3 * half), 0.15, 0.25)
    trunk = ellipse(x, y, (CENTRE + 0.15 * half, floor - 0.2), (0.62 * half, 0.15), -0.25, 0.3)
    return np.maximum(np.maximum(ventricle, atrium), trunk)


def _soft_tissue(rng: np.random.Generator, patient: Patient, chest: Chest, at: Midline) -> Array:
    """Neck, shoulders, trunk, and sometimes arms beside it."""
    flank = chest.width + chest.wall + 0.02
    shoulder = 0.1 + 0.5 * smoothstep((at.y + 0.01) * 5)
    armpit = flank + (0.6 - flank) * smoothstep((0.55 - at.y) * 3.5)
    torso = smoothstep((np.minimum(shoulder, armpit) - at.distance) * 33)
    curve = np.clip(at.distance * (1 / flank), 0, 1.3)
    body = torso * (0.83 + 0.05 * patient.habitus - 0.32 * curve * curve)
    if rng.random() < 0.6:
        gap = flank + rng.uniform(0.0, 0.05)
        arm = smoothstep((at.distance - gap) * 40) * smoothstep((gap + 0.13 - at.distance) * 20)
        body = np.maximum(body, 0.45 * arm * smoothstep((at.y - 0.25) * 8))
    return body


def _breasts(patient: Patient, x: Array, y: Array) -> Array:
    reach, height = 0.115 + 0.015 * patient.habitus, 0.60 + 0.02 * patient.anatomy[6]
    pair = [ellipse(x, y, (CENTRE + dx, height), (reach, reach * 1.1), 0.0, 0.35) for dx in (-0.2, 0.2)]
    weight = 0.075 + 0.03 * max(patient.habitus, -1.5)
    return weight * (pair[0] + pair[1]) * smoothstep((y - height + reach) * 8)


def _abdomen(rng: np.random.Generator, chest: Chest, x: Array, y: Array, left: Array) -> Array:
    """Liver on the right, the stomach's bubble and some bowel gas on the left."""
    level = chest.base["left"] + 0.05
    bubble_at, gas_at = (CENTRE + rng.uniform(0.12, 0.2), level), (CENTRE + rng.uniform(0.0, 0.28), level + 0.1)
    bubble = ellipse(x, y, bubble_at, (rng.uniform(0.03, 0.075), rng.uniform(0.02, 0.035)))
    gas = ellipse(x, y, gas_at, (rng.uniform(0.03, 0.09), 0.035), rng.uniform(-1, 1))
    return np.where(left, np.float32(0), np.float32(0.05)) - rng.uniform(0.05, 0.3) * bubble - 0.12 * gas


def _marking(rng: np.random.Generator, x: Array, y: Array, left: Array) -> Array:
    """Vessels that leave the hila and fan out, finer and fainter with distance; about 0 to 0.1 in density."""
    (right_x, right_y), (left_x, left_y) = _HILA["right"], _HILA["left"]
    dx = np.where(left, x - left_x, right_x - x)
    dy = np.where(left, y - left_y, y - right_y)
    radius = np.sqrt(dx * dx + dy * dy)
    n = x.shape[0]
    angle = np.arctan2(dy, dx) + 0.16 * texture(rng, n, 12)
    fan = np.zeros_like(x)
    for count, near, far in ((7, 0.0, 0.2), (15, 0.07, 0.32), (29, 0.16, 0.45)):
        ridge = np.maximum(np.cos(angle * count + (rng.uniform(0, 6) + 1.3 * left.astype(np.float32))), 0)
        ridge *= ridge
        fan += ridge * ridge * smoothstep((radius - near) * 12) * smoothstep((far - radius) * 5)
    return 0.13 * fan * np.maximum(1 - 1.9 * radius, 0.15) * (1 + 0.3 * texture(rng, n, 9))


LATERAL_APEX, LATERAL_BASE = 0.12, 0.68
_HILUM = (0.5, 0.42)


def _front(y: Height) -> Height:
    """Inner side of the sternum at height y."""
    return 0.36 - 0.17 * np.sqrt(np.clip((y - 0.08) / 0.6, 0, 1))


def _back(y: Height) -> Height:
    """Inner side of the rear chest wall at height y."""
    return 0.66 + 0.16 * np.sqrt(np.clip((y - 0.08) / 0.5, 0, 1)) - 0.08 * np.clip((y - 0.6) / 0.3, 0, 1) ** 2


def _locate(side: str, across: float, down: float) -> tuple[float, float]:
    y = LATERAL_APEX + down * (LATERAL_BASE - LATERAL_APEX)
    front, back = float(_front(y)), float(_back(y))
    return front + across * (back - front), y


def lateral(rng: np.random.Generator, patient: Patient, shape: Shape, pose: Pose, size: int) -> Scene:
    """Draw the chest from the patient's left; `rng` decides what changes between two images of the same patient."""
    x, y = pose.grid(min(size, MAX_BODY_SIZE))
    traits = patient.anatomy
    front, back = _front(y), _back(y)
    behind = np.clip(x - 0.42, -0.3, 0.5)
    floor = LATERAL_BASE + 0.015 * traits[1] + behind * behind * np.where(behind > 0, np.float32(1.35), np.float32(0.9))
    raised = 0.5 * (shape.raised["right"] + shape.raised["left"])
    above = 0.5 * (smoothstep((floor - raised - y) * 50) + smoothstep((floor - raised + 0.02 - y) * 50))
    cage = smoothstep((x - front) * 40) * smoothstep((back - x) * 40)
    lung = cage * above * smoothstep((y - (LATERAL_APEX - 0.05)) * 9)

    half = (0.145 + 0.012 * traits[0]) * (0.35 + 0.65 * shape.heart)
    heart = ellipse(x, y, (0.25 + 0.85 * half, 0.585), (half, 0.125 * (0.5 + 0.5 * shape.heart)), 0.5, 0.5) * above
    vessels = ellipse(x, y, (0.43, 0.36), (0.085 * shape.mediastinum, 0.14), 0.1, 0.6)
    body = _soft_tissue_of_lateral(patient, x, y, front, back, above)
    body -= lung * (1 - 0.7 * heart) * (0.36 - 0.03 * traits[5]) * (1 - 0.45 * vessels)
    body += 0.1 * heart + 0.06 * blob(x, y, _HILUM, (0.035, 0.045))
    body -= 0.15 * (1 - above) * ellipse(x, y, (0.36, 0.76 + 0.02 * traits[2]), (0.07, 0.035))  # stomach
    body += _skeleton(x, y, front, back, cage)
    return Scene(
        pose=pose,
        lateral=True,
        x=x,
        y=y,
        density=body,
        lungs={"right": lung, "left": lung},
        across=(x - front) / np.maximum(back - front, 0.05),
        down=(y - LATERAL_APEX) / np.maximum(floor - LATERAL_APEX, 0.1),
        hila={"right": _HILUM, "left": _HILUM},
        organs={"heart": heart, "mediastinum": np.maximum(heart, vessels * lung)},
        marking=_marking_of_lateral(rng, x, y) * lung,
        lines=np.zeros((size, size), np.float32),
        locate=_locate,
    )


def _soft_tissue_of_lateral(patient: Patient, x: Array, y: Array, front: Array, back: Array, above: Array) -> Array:
    """Trunk, raised shoulders above the lungs, abdomen below, and the windpipe's air."""
    wall = 0.06 + 0.02 * max(patient.habitus, -1.5)
    skin = smoothstep((x - front + wall) * 30) * smoothstep((back + wall + 0.06 - x) * 30)
    trunk = (0.72 + 0.04 * patient.habitus) * skin * smoothstep((y - 0.02) * 10)
    shoulders = smoothstep((0.3 - y) * 4.5) * smoothstep((x - 0.12) * 5) * smoothstep((0.95 - x) * 5)
    body = np.maximum(trunk, 0.92 * shoulders) + 0.2 * (1 - above) * skin
    if patient.sex == "F":
        body += 0.08 * ellipse(x, y, (0.16, 0.52), (0.11, 0.12), 0.0, 0.5)
    trachea = band(x - 0.47 - 0.12 * (y - 0.2), 0.014, 0.012) * smoothstep((0.38 - y) * 20)
    return body - 0.08 * trachea


def _skeleton(x: Array, y: Array, front: Array, back: Array, cage: Array) -> Array:
    spine = band(back - 0.035 - x, 0.03, 0.02) * (0.1 + 0.035 * np.sin(y * (2 * np.pi / 0.062)))
    rank = (y - 0.15 - 0.28 * (0.8 - x)) * (1 / 0.075)
    ribs = smoothstep((0.2 - np.abs(rank - np.floor(rank) - 0.5)) * 8) * cage * smoothstep((x - 0.35) * 8)
    sternum = band(x - front + 0.012, 0.008, 0.01) * smoothstep((y - 0.2) * 20) * smoothstep((0.62 - y) * 20)
    return spine + 0.035 * ribs + 0.06 * sternum


def _marking_of_lateral(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Vessels that fan out from the one hilum in sight."""
    dx, dy = x - _HILUM[0], y - _HILUM[1]
    radius = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) + 0.3 * texture(rng, x.shape[0], 12)
    ridge = np.maximum(np.cos(angle * 13 + rng.uniform(0, 6)), 0)
    return 0.07 * ridge * ridge * ridge * np.maximum(1 - 2 * radius, 0.1)
