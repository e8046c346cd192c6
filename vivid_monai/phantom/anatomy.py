"""Tubes, lines and boxes: the support devices, and the cables that lie on a patient without being one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from vivid_monai.phantom.canvas import Array, band, bend, smoothstep, stroke
from vivid_monai.phantom.patients import Patient
from vivid_monai.phantom.scene import BrokenRib, Scene, Shape

CENTRE, APEX = 0.5, 0.12
RIB_SPACING = 0.066
Height = TypeVar("Height", np.ndarray, float)


@dataclass(frozen=True, kw_only=True)
class Chest:
    """Measures of one frontal chest, in body units (1 = image side at zoom 1).

    `width`: half the rib cage; `base`: height of each dome of the diaphragm; `heart`: half its width; `mediastinum`: a
    factor on its upper part; `knob`: half width at the aortic knob; `wall`: soft tissue outside the ribs.
    """

    width: float
    base: dict[str, float]
    heart: float
    mediastinum: float
    knob: float
    wall: float
    rib_slope: float

    @classmethod
    def of(cls, patient: Patient, shape: Shape, portable: bool) -> Self:
        """A chest at the bedside is breathed in less, and its heart, farther from the detector, looks larger."""
        traits = patient.anatomy
        width = 0.335 + 0.012 * patient.stature
        breath = (0.655 if portable else 0.705) + 0.02 * traits[1]
        ratio = (0.44 + 0.025 * traits[0]) * (1.09 if portable else 1.0) * shape.heart
        left_dome = breath + 0.02 + 0.008 * traits[2]
        return cls(
            width=width,
            base={"right": breath - shape.raised["right"], "left": left_dome - shape.raised["left"]},
            heart=ratio * width,
            mediastinum=(1.0 + 0.08 * traits[3]) * (1.1 if portable else 1.0) * shape.mediastinum,
            knob=0.072 + 0.008 * traits[4] + 0.0003 * (patient.age - 50),
            wall=0.05 + 0.018 * max(patient.habitus, -1.5),
            rib_slope=0.05 + 0.02 * traits[7],
        )

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


@dataclass(frozen=True, kw_only=True)
class Midline:
    """Where a pixel lies against the midline, float32 or bool (n, n): height, distance, side, rib cage width there."""

    y: Array
    distance: Array
    left: Array
    outer: Array


def bones(patient: Patient, chest: Chest, at: Midline, broken: BrokenRib | None, portable: bool) -> Array:
    """Density of all bones."""
    within = smoothstep((at.outer + 0.015 - at.distance) * 50)
    reach = at.distance * (1 / chest.width)
    return (
        0.085 * _posterior_ribs(chest, at, reach, broken) * within
        + 0.03 * _anterior_ribs(at, reach) * within
        + 0.085 * _clavicles(patient, at)
        + _spine(at)
        + 0.055 * _shoulder_blades(chest, at, portable)
    )


def _posterior_ribs(chest: Chest, at: Midline, reach: Array, broken: BrokenRib | None) -> Array:
    rank = (at.y - chest.rib_course(reach)) * (1 / RIB_SPACING)
    gap: Array | None = None
    if broken is not None:
        here = (at.left == (broken.side == "left")) * band(
            rank - (broken.rib + 0.5 * broken.count), 0.5 * broken.count, 0.2
        )
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


def _clavicles(patient: Patient, at: Midline) -> Array:
    height = 0.215 + 0.01 * patient.anatomy[8] - at.distance * (0.34 - 0.35 * at.distance)
    ends = smoothstep((at.distance - 0.035) * 60) * smoothstep((0.36 - at.distance) * 30)
    return band(at.y - height, 0.009, 0.009) * ends


def _spine(at: Midline) -> Array:
    return smoothstep((0.045 - at.distance) * 50) * (0.075 + 0.025 * np.sin(at.y * (2 * np.pi / 0.058)))


def _shoulder_blades(chest: Chest, at: Midline, portable: bool) -> Array:
    """Turned out of the lungs only by a patient who stands for a PA view."""
    border = chest.width + (-0.03 if portable else 0.035)
    edge = band(at.distance - border - 0.25 * (at.y - 0.3), 0.012, 0.02)
    return edge * smoothstep((at.y - 0.17) * 20) * smoothstep((0.46 - at.y) * 20)


_Path = Sequence[tuple[float, float]]

# Paths in body coordinates; every image moves the points a little.
_FRONTAL: dict[str, list[_Path]] = {
    "endotracheal tube": [((0.5, 0.0), (0.5, 0.15), (0.5, 0.31))],
    "enteric tube": [((0.505, 0.0), (0.51, 0.25), (0.52, 0.5), (0.54, 0.68), (0.6, 0.76), (0.66, 0.78))],
    "central venous catheter": [((0.33, 0.02), (0.38, 0.13), (0.44, 0.22), (0.455, 0.32), (0.458, 0.44))],
    "pacemaker": [((0.74, 0.2), (0.66, 0.19), (0.56, 0.22), (0.47, 0.3), (0.45, 0.48), (0.52, 0.62), (0.6, 0.66))],
    "port catheter": [((0.27, 0.27), (0.31, 0.2), (0.37, 0.16), (0.44, 0.23), (0.457, 0.42))],
    "chest tube": [((0.95, 0.62), (0.85, 0.55), (0.79, 0.4), (0.72, 0.22))],
}
_LATERAL: dict[str, list[_Path]] = {
    "endotracheal tube": [((0.44, 0.0), (0.46, 0.14), (0.48, 0.28))],
    "enteric tube": [((0.48, 0.0), (0.53, 0.25), (0.56, 0.5), (0.5, 0.7), (0.42, 0.77))],
    "central venous catheter": [((0.42, 0.03), (0.43, 0.2), (0.44, 0.4))],
    "pacemaker": [((0.3, 0.2), (0.38, 0.16), (0.43, 0.25), (0.44, 0.45), (0.38, 0.6), (0.32, 0.64))],
    "port catheter": [((0.25, 0.28), (0.33, 0.18), (0.43, 0.22), (0.44, 0.4))],
    "chest tube": [((0.7, 0.6), (0.64, 0.42), (0.55, 0.22))],
}
_HALF_WIDTH = {"endotracheal tube": 0.0045, "enteric tube": 0.0035, "chest tube": 0.0055}
_BOX = {"pacemaker": 0.032, "port catheter": 0.017}


def _moved(rng: np.random.Generator, scene: Scene, path: _Path, amount: float) -> Array:
    points = np.array(path) + rng.normal(0, amount, (len(path), 2)) * 0.6 + rng.normal(0, amount, 2)
    return scene.pose.to_image(bend(points))


def draw_devices(rng: np.random.Generator, scene: Scene, names: Sequence[str], side: str) -> Array:
    """Draw the named devices and return the mask (size, size) of their pixels; `side` is the chest tube's."""
    ink = np.zeros_like(scene.lines)
    for name in names:
        for path in (_LATERAL if scene.lateral else _FRONTAL)[name]:
            points = np.array(path)
            if name == "chest tube" and side == "right" and not scene.lateral:
                points[:, 0] = 1 - points[:, 0]
            course = _moved(rng, scene, [(float(px), float(py)) for px, py in points], 0.012)
            stroke(ink, course, _HALF_WIDTH.get(name, 0.0024), float(rng.uniform(0.1, 0.24)))
            if name in _BOX:
                half = _BOX[name]
                stroke(ink, course[:1] + np.array([[0.0, -0.4 * half], [0.0, 0.4 * half]]), half * 0.8, 0.5)
    np.maximum(scene.lines, ink, out=scene.lines)
    return ink > 0.02


def draw_cables(rng: np.random.Generator, scene: Scene) -> None:
    """Monitoring cables and electrodes on the skin: bright lines that are no finding."""
    for _ in range(int(rng.integers(1, 4))):
        start, end = rng.uniform(0.05, 0.95, 2), rng.uniform(0.1, 0.9, 2)
        points = [
            (float(start[0]), 1.0),
            (float(start.mean()), 0.7),
            (float(end.mean()), 0.5),
            (float(end[0]), float(end[1])),
        ]
        course = _moved(rng, scene, points, 0.03)
        value = float(rng.uniform(0.06, 0.16))
        stroke(scene.lines, course, 0.0022, value)
        stroke(scene.lines, course[-1:] + np.array([[0.0, 0.0], [0.001, 0.0]]), 0.01, value)
