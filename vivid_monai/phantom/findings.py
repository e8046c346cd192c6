"""Diseases and support devices, drawn on the body; the same code serves frontal and lateral views."""

from collections.abc import Callable, Sequence

import numpy as np

from vivid_monai.phantom.canvas import Array, bend, blob, ellipse, smoothstep, stroke, texture
from vivid_monai.phantom.patients import SIDES, Disease
from vivid_monai.phantom.scene import BrokenRib, Scene, Shape

_WATER = 0.88  # density of a lung without air
_FLUID = 1.0  # and of the same depth filled with fluid, which hides the diaphragm
_ZONE_CENTRE = {"upper": 0.28, "middle": 0.55, "lower": 0.82}


def shape_of(rng: np.random.Generator, drawn: dict[str, Disease]) -> Shape:
    """What the diseases change in the anatomy itself."""
    shape = Shape()
    if ill := drawn.get("Cardiomegaly"):
        shape.heart = 1.12 + 0.38 * ill.severity
    if ill := drawn.get("Enlarged Cardiomediastinum"):
        shape.mediastinum = 1.3 + 0.6 * ill.severity
    if ill := drawn.get("Atelectasis"):
        shape.raised |= dict.fromkeys(ill.sides, 0.015 + 0.05 * ill.severity)
    if ill := drawn.get("Fracture"):
        shape.broken_rib = BrokenRib(
            side=ill.sides[0],
            rib=int(rng.integers(3, 7)),
            count=2 + int(3 * ill.severity * rng.random()),
            distance=float(rng.uniform(0.17, 0.28)),
            step=0.35 + 0.3 * ill.severity,
        )
    return shape


def _fill(scene: Scene, amount: Array) -> None:
    """Replace a share of the air by water: `amount` in [0, 1] per pixel."""
    scene.density += amount * np.maximum(_WATER - scene.density, 0)
    scene.marking *= 1 - amount


def _patch(rng: np.random.Generator, scene: Scene, side: str, zone: str, radius: float, ragged: float) -> Array:
    """A ragged area of a lung zone, 0 to 1."""
    centre = scene.locate(side, rng.uniform(0.25, 0.75), _ZONE_CENTRE[zone] + rng.uniform(-0.1, 0.1))
    stretch = rng.uniform(0.75, 1.35)
    dx = (scene.x - centre[0]) * (1 / (radius * stretch))
    dy = (scene.y - centre[1]) * (stretch / radius)
    edge = 1 - np.sqrt(dx * dx + dy * dy) + ragged * texture(rng, scene.body_size, 13)
    return smoothstep(edge * 2 + 0.5) * scene.lungs[side]


def _opacity(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    areas = [_patch(rng, scene, side, ill.zone, rng.uniform(0.06, 0.12), 0.2) for side in ill.sides]
    area = np.maximum.reduce(areas)
    _fill(scene, area * (0.2 + 0.4 * ill.severity))
    return area


def _consolidation(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """Dense, with one straight border (the fissure) and dark bronchi running through."""
    area = _patch(rng, scene, ill.sides[0], ill.zone, 0.07 + 0.07 * ill.severity, 0.25)
    inside = area > 0.5
    if inside.any():
        level = np.quantile(scene.y[inside], 0.15 if ill.zone == "lower" else 0.85)
        border = smoothstep((scene.y - level if ill.zone == "lower" else level - scene.y) * 60)
        area = area * border
    bronchi = np.minimum(scene.marking * 6, 0.5)
    _fill(scene, area * (0.3 + 0.5 * ill.severity) * (1 - bronchi))
    return area


def _pneumonia(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """Several ragged patches of one zone."""
    area = np.zeros_like(scene.density)
    for side in ill.sides:
        for _ in range(int(rng.integers(2, 4))):
            area = np.maximum(area, _patch(rng, scene, side, ill.zone, rng.uniform(0.04, 0.09), 0.5))
    grain = 0.8 + 0.3 * texture(rng, scene.body_size, 29)
    _fill(scene, np.clip(area * (0.3 + 0.4 * ill.severity) * grain, 0, 1))
    return area


def _lesion(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    area = np.zeros_like(scene.density)
    for i in range(int(rng.choice([1, 1, 1, 2, 4]))):
        side = ill.sides[0] if i == 0 else SIDES[int(rng.integers(2))]
        centre = scene.locate(side, rng.uniform(0.2, 0.8), _ZONE_CENTRE[ill.zone] + rng.uniform(-0.12, 0.12))
        radius = 0.022 + 0.04 * ill.severity * rng.uniform(0.6, 1.0)
        area = np.maximum(area, ellipse(scene.x, scene.y, centre, (radius, radius * rng.uniform(0.8, 1.2)), 0.0, 0.4))
    _fill(scene, area * (0.5 + 0.4 * ill.severity))
    return area


def _edema(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """Haze around the hila, strong markings, short septal lines at the outer bases."""
    lungs = np.maximum(scene.lungs["right"], scene.lungs["left"])
    spread = 0.06 + 0.05 * ill.severity
    wings = np.maximum.reduce([blob(scene.x, scene.y, hilum, (spread, spread * 1.5)) for hilum in scene.hila.values()])
    area = (wings + 0.25) * lungs
    grain = 1 + 0.35 * texture(rng, scene.body_size, 17)
    scene.marking *= 1.2 + 0.9 * ill.severity
    _fill(scene, np.clip(area * (0.08 + 0.42 * ill.severity) * grain, 0, 0.9))
    for side in SIDES:
        for down in rng.uniform(0.65, 0.95, int(rng.integers(2, 6))):
            points = np.array([scene.locate(side, 0.84, down), scene.locate(side, 0.97, down)])
            stroke(scene.lines, scene.pose.to_image(points), 0.0015, 0.05 + 0.05 * ill.severity)
    return (wings > 0.3) * lungs


def _atelectasis(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """Flat bands above a raised diaphragm, in a little haze."""
    ink = np.zeros_like(scene.lines)
    for side in ill.sides:
        for _ in range(int(rng.integers(1, 4))):
            start, down, tilt = rng.uniform(0.05, 0.45), rng.uniform(0.74, 0.96), rng.normal(0, 0.06)
            end = start + rng.uniform(0.25, 0.5)
            points = np.array([scene.locate(side, start, down), scene.locate(side, end, down + tilt)])
            stroke(ink, scene.pose.to_image(points), rng.uniform(0.005, 0.012), 0.1 + 0.12 * ill.severity)
        base = scene.lungs[side] * smoothstep((scene.down - 0.78) * 5)
        _fill(scene, base * (0.08 + 0.22 * ill.severity))
    np.maximum(scene.lines, ink, out=scene.lines)
    return ink * 20


def _pneumothorax(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """No markings outside a thin pleural line; wider towards the apex."""
    side, depth = ill.sides[0], (0.1 + 0.4 * ill.severity)
    width = depth * np.maximum(1.45 - 1.2 * scene.down, 0.05)
    area = scene.lungs[side] * smoothstep((scene.across - 1 + width) * 25)
    scene.marking *= 1 - area
    scene.density -= 0.14 * area
    collapsed = scene.lungs[side] * (1 - area)
    scene.density += (0.05 * ill.severity) * collapsed
    edge = [scene.locate(side, 1 - float(depth) * max(1.45 - 1.2 * b, 0.05), b) for b in np.linspace(0.02, 0.95, 12)]
    stroke(scene.lines, scene.pose.to_image(np.array(edge)), 0.004, 0.12 + 0.08 * ill.severity)
    return area


def _effusion(rng: np.random.Generator, scene: Scene, ill: Disease) -> Array:
    """Fluid that fills the angle first and climbs the wall: a level with a meniscus, or a veil in a lying patient."""
    area = np.zeros_like(scene.density)
    across = np.clip(scene.across, 0, 1)
    for side in ill.sides:
        height = (0.07 + 0.5 * ill.severity**1.5) * rng.uniform(0.6, 1.1)
        level = 1.03 - height * (0.35 + 0.8 * across * across)
        fluid = scene.lungs[side] * smoothstep((scene.down - level) * 14 + 0.5)
        scene.density += 0.85 * fluid * np.maximum(_FLUID - scene.density, 0)
        scene.marking *= 1 - fluid
        veil = scene.lungs[side] * np.clip(scene.down, 0, 1)
        _fill(scene, veil * veil * (0.22 * ill.severity))
        area = np.maximum(area, fluid)
    return area


# Paths in body coordinates; every image moves the points a little.
_FRONTAL = {
    "endotracheal tube": ((0.5, 0.0), (0.5, 0.15), (0.5, 0.31)),
    "enteric tube": ((0.505, 0.0), (0.51, 0.25), (0.52, 0.5), (0.54, 0.68), (0.6, 0.76), (0.66, 0.78)),
    "central venous catheter": ((0.33, 0.02), (0.38, 0.13), (0.44, 0.22), (0.455, 0.32), (0.458, 0.44)),
    "pacemaker": ((0.74, 0.2), (0.66, 0.19), (0.56, 0.22), (0.47, 0.3), (0.45, 0.48), (0.52, 0.62), (0.6, 0.66)),
    "port catheter": ((0.27, 0.27), (0.31, 0.2), (0.37, 0.16), (0.44, 0.23), (0.457, 0.42)),
    "chest tube": ((0.95, 0.62), (0.85, 0.55), (0.79, 0.4), (0.72, 0.22)),
}
_LATERAL = {
    "endotracheal tube": ((0.44, 0.0), (0.46, 0.14), (0.48, 0.28)),
    "enteric tube": ((0.48, 0.0), (0.53, 0.25), (0.56, 0.5), (0.5, 0.7), (0.42, 0.77)),
    "central venous catheter": ((0.42, 0.03), (0.43, 0.2), (0.44, 0.4)),
    "pacemaker": ((0.3, 0.2), (0.38, 0.16), (0.43, 0.25), (0.44, 0.45), (0.38, 0.6), (0.32, 0.64)),
    "port catheter": ((0.25, 0.28), (0.33, 0.18), (0.43, 0.22), (0.44, 0.4)),
    "chest tube": ((0.7, 0.6), (0.64, 0.42), (0.55, 0.22)),
}
_HALF_WIDTH = {"endotracheal tube": 0.012, "enteric tube": 0.007, "chest tube": 0.011}
_BOX = {"pacemaker": 0.05, "port catheter": 0.032}


def _moved(rng: np.random.Generator, scene: Scene, path: Array, amount: float) -> Array:
    points = path + rng.normal(0, amount, (len(path), 2)) * 0.6 + rng.normal(0, amount, 2)
    return scene.pose.to_image(bend(points))


def draw_devices(rng: np.random.Generator, scene: Scene, names: Sequence[str], side: str) -> Array:
    """Draw the named devices and return the mask (size, size) of their pixels; `side` is the chest tube's."""
    ink = np.zeros_like(scene.lines)
    for name in names:
        points = np.array((_LATERAL if scene.lateral else _FRONTAL)[name])
        if name == "chest tube" and side == "right" and not scene.lateral:
            points[:, 0] = 1 - points[:, 0]
        course = _moved(rng, scene, points, 0.012)
        stroke(ink, course, _HALF_WIDTH.get(name, 0.004), float(rng.uniform(0.15, 0.3)))
        if (half := _BOX.get(name)) is not None:
            stroke(ink, course[:1] + np.array([[0.0, -0.4 * half], [0.0, 0.4 * half]]), half * 0.8, 0.5)
    np.maximum(scene.lines, ink, out=scene.lines)
    return ink > 0.02


def draw_cables(rng: np.random.Generator, scene: Scene) -> None:
    """Monitoring cables and electrodes on the skin: bright lines that are no finding."""
    for _ in range(int(rng.integers(1, 4))):
        start, end = rng.uniform(0.05, 0.95, 2), rng.uniform(0.1, 0.9, 2)
        points = np.array([(start[0], 1.0), (start.mean(), 0.7), (end.mean(), 0.5), end])
        course = _moved(rng, scene, points, 0.03)
        value = float(rng.uniform(0.06, 0.16))
        stroke(scene.lines, course, 0.0022, value)
        stroke(scene.lines, course[-1:] + np.array([[0.0, 0.0], [0.001, 0.0]]), 0.01, value)


# In the order of drawing: what fills the lung comes before what lies on it.
_DRAW: dict[str, Callable[[np.random.Generator, Scene, Disease], Array]] = {
    "Pneumothorax": _pneumothorax,
    "Edema": _edema,
    "Lung Opacity": _opacity,
    "Pneumonia": _pneumonia,
    "Consolidation": _consolidation,
    "Lung Lesion": _lesion,
    "Atelectasis": _atelectasis,
    "Pleural Effusion": _effusion,
    "Cardiomegaly": lambda rng, scene, ill: scene.organs["heart"],
    "Enlarged Cardiomediastinum": lambda rng, scene, ill: scene.organs["mediastinum"],
}


def draw_findings(rng: np.random.Generator, scene: Scene, drawn: dict[str, Disease], shape: Shape) -> dict[str, Array]:
    """Draw every disease on the scene; bool masks (size, size) of where, empty findings (out of sight) left out."""
    masks = {}
    for name, draw in _DRAW.items():
        if name in drawn:
            area = draw(rng, scene, drawn[name])
            masks[name] = scene.full(area) > 0.5
    broken = shape.broken_rib
    if broken is not None and scene.rib is not None:  # ribs of a lateral view overlap: a fracture is out of sight there
        ribs = range(broken.rib, broken.rib + broken.count)
        places = [scene.rib(broken.side, rib, broken.distance) for rib in ribs]
        areas = [ellipse(scene.x, scene.y, place, (0.035, 0.035), 0.0, 0.1) for place in places]
        callus = [ellipse(scene.x, scene.y, place, (0.026, 0.022), 0.0, 0.5) for place in places]
        scene.density += (0.2 + 0.15 * drawn["Fracture"].severity) * np.maximum.reduce(callus)
        masks["Fracture"] = scene.full(np.maximum.reduce(areas)) > 0.5
    if "Support Devices" in drawn:
        side = drawn["Pneumothorax"].sides[0] if "Pneumothorax" in drawn else "left"
        masks["Support Devices"] = draw_devices(rng, scene, drawn["Support Devices"].devices, side)
    return {name: mask for name, mask in masks.items() if mask.any()}
