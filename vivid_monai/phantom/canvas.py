"""Drawing primitives on float32 grids: numpy, element by element, so that pixels do not depend on a BLAS."""

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np

Array = np.ndarray


@lru_cache(maxsize=16)
def unit_grid(size: int) -> tuple[Array, Array]:
    """Pixel centres (x, y) of a square image, each float32 (size, size), x right, y down, in (0, 1)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.broadcast_to(axis, (size, size)).copy(), np.broadcast_to(axis[:, None], (size, size)).copy()
    x.flags.writeable = y.flags.writeable = False  # shared by every caller
    return x, y


@lru_cache(maxsize=64)
def _resampling(source: int, target: int) -> tuple[Array, Array, Array]:
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    position = np.clip(position, 0, source - 1)
    low = np.minimum(position.astype(np.intp), max(source - 2, 0))
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)


def resample(image: Array, size: int) -> Array:
    """Bilinear resampling of a square image (n, n) to (size, size), edges repeated."""
    if image.shape[0] == size:
        return image
    low, high, weight = _resampling(image.shape[0], size)
    rows = image[low] + (image[high] - image[low]) * weight[:, None]
    left = rows[:, low]
    return left + (rows[:, high] - left) * weight


def smoothstep(t: Array) -> Array:
    """0 below 0, 1 above 1, cubic in between."""
    t = np.maximum(t, 0)
    np.minimum(t, 1, out=t)
    result = t * t
    t *= -2
    t += 3
    result *= t
    return result


def ellipse(x: Array, y: Array, centre: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0,
            soft: float = 0.2) -> Array:  # fmt: skip
    """Soft-edged ellipse, 1 inside, 0 outside; `soft` is the width of the edge in radii, `tilt` in radians."""
    dx, dy = x - centre[0], y - centre[1]
    c, s = math.cos(tilt), math.sin(tilt)
    a, b = (dx * c + dy * s) * (1 / radii[0]), (dy * c - dx * s) * (1 / radii[1])
    return smoothstep(((1 + soft) - (a * a + b * b)) * (0.5 / soft))


def blob(x: Array, y: Array, centre: tuple[float, float], radii: tuple[float, float]) -> Array:
    """Gaussian-like bump with finite support: (1 - r²/6)³ within r² < 6, cheaper than exp and nearly its shape."""
    a, b = (x - centre[0]) * (1 / radii[0]), (y - centre[1]) * (1 / radii[1])
    t = np.maximum(1 - (a * a + b * b) * (1 / 6), 0)
    return t * t * t


def band(distance: Array, half_width: float, soft: float) -> Array:
    """1 where |distance| < half_width, fading to 0 over `soft`."""
    return smoothstep((half_width + soft - np.abs(distance)) * (1 / soft))


def texture(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth random field (size, size) of about unit variance with `cells` bumps across."""
    return resample(rng.standard_normal((cells, cells), dtype=np.float32), size) * 1.5


def stroke(canvas: Array, points: Array, half_width: float, value: float) -> None:
    """Draw a soft polyline on `canvas` (n, n) in place, keeping the larger of old and new value.

    `points` (k, 2) are (x, y) in unit image coordinates, `half_width` likewise but never thinner than half a pixel:
    a thinner line is drawn fainter instead, as a detector would show it.
    """
    size = canvas.shape[0]
    width = half_width * size
    value *= min(1.0, width / 0.5)
    width = max(width, 0.5)
    reach = width + 1.0
    pixels = (np.asarray(points) * size - 0.5).tolist()
    for (x0, y0), (x1, y1) in pairwise(pixels):
        left, right = max(int(min(x0, x1) - reach), 0), min(int(max(x0, x1) + reach) + 2, size)
        top, bottom = max(int(min(y0, y1) - reach), 0), min(int(max(y0, y1) + reach) + 2, size)
        if left >= right or top >= bottom:
            continue
        px = np.arange(left, right, dtype=np.float32) - x0
        py = (np.arange(top, bottom, dtype=np.float32) - y0)[:, None]
        dx, dy = x1 - x0, y1 - y0
        along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6), 0, 1)
        ex, ey = px - along * dx, py - along * dy
        ink = np.clip(width + 0.5 - np.sqrt(ex * ex + ey * ey), 0, 1) * value
        patch = canvas[top:bottom, left:right]
        np.maximum(patch, ink, out=patch)


def bend(points: Array, steps: int = 5) -> Array:
    """A Catmull-Rom curve through `points` (k, 2), with `steps` straight pieces between neighbours."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True)
    ]
    return np.concatenate([*pieces, points[-1:]])
