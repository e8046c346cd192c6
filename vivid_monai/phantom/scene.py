"""A body as densities, and its exposure: scatter, collimation, side marker, noise, eight bits."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vivid_monai.phantom.canvas import Array, resample, smoothstep, stroke, texture, unit_grid

# Anatomy is smooth: it is built at this size at most and enlarged; lines and noise are made at the image's own size.
MAX_BODY_SIZE = 96


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the body lies in the image: rotation (radians), shift and zoom in units of the image side."""

    angle: float
    shift: tuple[float, float]
    zoom: float

    def to_image(self, points: Array) -> Array:
        """Body coordinates (k, 2) → unit image coordinates (k, 2)."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        p = (np.asarray(points, dtype=np.float64) - 0.5) * self.zoom
        x, y = p[:, 0] * c - p[:, 1] * s, p[:, 0] * s + p[:, 1] * c
        return np.stack([x + 0.5 + self.shift[0], y + 0.5 + self.shift[1]], axis=1)

    def grid(self, size: int) -> tuple[Array, Array]:
        """Body coordinates (x, y) of every pixel, float32 (size, size) each."""
        x, y = unit_grid(size)
        x, y = x - (0.5 + self.shift[0]), y - (0.5 + self.shift[1])
        c, s = math.cos(self.angle) / self.zoom, math.sin(self.angle) / self.zoom
        return x * c + y * s + 0.5, y * c - x * s + 0.5


@dataclass(frozen=True, kw_only=True)
class BrokenRib:
    """The outer part of some ribs stands off by `step` (in rib spacings) beyond `distance` from the spine.

    The highest broken rib is `rib`, counted from 0; `count` neighbours are broken with it, itself included.
    """

    side: str
    rib: int
    count: int
    distance: float
    step: float


@dataclass(kw_only=True)
class Shape:
    """What findings change in the anatomy before it is drawn. Widths are factors, heights are in body units."""

    heart: float = 1.0
    mediastinum: float = 1.0
    raised: dict[str, float] = field(default_factory=lambda: {"right": 0.0, "left": 0.0})
    broken_rib: BrokenRib | None = None


@dataclass(kw_only=True)
class Scene:
    """A body without light: all arrays float32 (body_size, body_size), density in units of a torso's thickness.

    `lungs` are soft masks by patient side (the same mask twice in a lateral view). `across` runs from 0 at the
    mediastinum to 1 at the chest wall (lateral view: front to back), `down` from 0 at the apex to 1 at the dome of the
    diaphragm; `locate(side, across, down)` gives the body coordinates of such a place, `rib(side, rib, distance)`
    those of a rib at a distance from the spine (None where ribs cannot be told apart). `organs` are the masks of
    "heart" and "mediastinum"; `marking` is the lungs' vessels, kept apart because findings fade or strengthen it.
    `lines` is drawn at the image's own size, in image coordinates.
    """

    pose: Pose
    lateral: bool
    x: Array
    y: Array
    density: Array
    lungs: dict[str, Array]
    across: Array
    down: Array
    hila: dict[str, tuple[float, float]]
    organs: dict[str, Array]
    marking: Array
    lines: Array
    locate: Callable[[str, float, float], tuple[float, float]]
    rib: Callable[[str, int, float], tuple[float, float]] | None = None

    @property
    def body_size(self) -> int:
        return self.x.shape[0]

    @property
    def size(self) -> int:
        return self.lines.shape[0]

    def full(self, image: Array) -> Array:
        """A body-sized array at the image's size."""
        return resample(image, self.size)


# Strokes of the two side markers in a box of 1 by 1.
_LETTERS = {
    "R": ((0.2, 1), (0.2, 0), (0.8, 0.1), (0.8, 0.45), (0.2, 0.5), (0.8, 1)),
    "L": ((0.2, 0), (0.2, 1), (0.8, 1)),
}


def expose(rng: np.random.Generator, scene: Scene, portable: bool) -> Array:
    """The image: uint8 (size, size), bright = dense."""
    size = scene.size
    body = scene.density + scene.marking
    body = body + 0.012 * texture(rng, scene.body_size, 5) + 0.008 * texture(rng, scene.body_size, 23)
    scatter = rng.uniform(0.05, 0.3) if portable else rng.uniform(0.0, 0.15)
    body = body + scatter * (0.75 - body) * (body > 0.1)
    density = scene.full(body) + scene.lines

    low, high = rng.uniform(0.1, 0.26), rng.uniform(1.0, 1.22)
    light = np.clip((density - low) * (1 / (high - low)), 0, 1)
    contrast = rng.uniform(0.25, 0.75)
    light = light + contrast * (smoothstep(light) - light)
    quantum = rng.uniform(0.006, 0.02) * (1.4 if portable else 1.0) * min(1.0, size / 224) ** 0.5
    outside, marker = _collimated(rng, size), _marker(rng, scene)
    # Noise comes last: how much of it is drawn depends on the size, and nothing else may.
    light += quantum * rng.standard_normal((size, size), dtype=np.float32) * (0.5 + light)
    light[outside] = 0.0
    np.maximum(light, marker, out=light)
    return (np.clip(light, 0, 1) * 255 + 0.5).astype(np.uint8)


def _collimated(rng: np.random.Generator, size: int) -> Array:
    """Where the shutters keep the light away: in three of four images nowhere."""
    margin, tilt = rng.uniform(0.0, 0.06, 4).tolist(), rng.uniform(-0.03, 0.03)
    if rng.random() >= 0.25:
        return np.zeros((size, size), dtype=bool)
    x, y = unit_grid(size)
    across = x + tilt * y
    return (across < margin[0]) | (across > 1 - margin[1]) | (y < margin[2]) | (y > 1 - margin[3])


def _marker(rng: np.random.Generator, scene: Scene) -> Array:
    """The letter of a side, on most images."""
    ink = np.zeros_like(scene.lines)
    letter = "L" if rng.random() < 0.6 else "R"
    width, height = rng.uniform(0.022, 0.035), rng.uniform(0.035, 0.05)
    x = rng.uniform(0.88, 0.95) if letter == "L" or scene.lateral else rng.uniform(0.03, 0.08)
    corner = np.array([x, rng.uniform(0.04, 0.14)])
    if rng.random() < 0.7:
        stroke(ink, corner + np.array(_LETTERS[letter]) * (width, height), 0.003, 0.97)
    return ink
