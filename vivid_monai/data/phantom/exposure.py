"""From density to a picture: scatter, exposure, collimation, side marker, noise, eight bits."""

import numpy as np

from vivid_monai.data.phantom.canvas import Array, smoothstep, stroke, texture, unit_grid
from vivid_monai.data.phantom.scene import Scene

# Strokes of the two side markers in a box of 1 by 1.
_LETTERS = {
    "R": (((0.2, 1), (0.2, 0), (0.8, 0.1), (0.8, 0.45), (0.2, 0.5), (0.8, 1)),),
    "L": (((0.2, 0), (0.2, 1), (0.8, 1)),),
}


def expose(rng: np.random.Generator, scene: Scene, portable: bool) -> Array:
    """The picture: uint8 (size, size), bright = dense."""
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
        for points in _LETTERS[letter]:
            stroke(ink, corner + np.array(points) * (width, height), 0.003, 0.97)
    return ink
