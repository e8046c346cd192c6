"""Tubes, lines and boxes: the support devices, and the cables that lie on a patient without being one."""

from collections.abc import Sequence

import numpy as np

from vivid_monai.data.phantom.canvas import Array, bend, stroke
from vivid_monai.data.phantom.scene import Scene

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
