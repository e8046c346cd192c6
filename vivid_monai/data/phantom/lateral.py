"""The healthy chest from the side: sternum on the left of the image, spine on the right, both lungs overlaid."""

import numpy as np

from vivid_monai.data.phantom.canvas import Array, band, blob, ellipse, smoothstep, texture
from vivid_monai.data.phantom.chest import Height
from vivid_monai.data.phantom.patients import Patient
from vivid_monai.data.phantom.scene import MAX_BODY_SIZE, Pose, Scene, Shape

APEX, BASE = 0.12, 0.68
_HILUM = (0.5, 0.42)


def _front(y: Height) -> Height:
    """Inner side of the sternum at height y."""
    return 0.36 - 0.17 * np.sqrt(np.clip((y - 0.08) / 0.6, 0, 1))


def _back(y: Height) -> Height:
    """Inner side of the rear chest wall at height y."""
    return 0.66 + 0.16 * np.sqrt(np.clip((y - 0.08) / 0.5, 0, 1)) - 0.08 * np.clip((y - 0.6) / 0.3, 0, 1) ** 2


def _locate(side: str, across: float, down: float) -> tuple[float, float]:
    y = APEX + down * (BASE - APEX)
    front, back = float(_front(y)), float(_back(y))
    return front + across * (back - front), y


def lateral(rng: np.random.Generator, patient: Patient, shape: Shape, pose: Pose, size: int) -> Scene:
    """Draw the chest from the patient's left; `rng` decides what changes between two images of the same patient."""
    x, y = pose.grid(min(size, MAX_BODY_SIZE))
    traits = patient.anatomy
    front, back = _front(y), _back(y)
    behind = np.clip(x - 0.42, -0.3, 0.5)
    floor = BASE + 0.015 * traits[1] + behind * behind * np.where(behind > 0, np.float32(1.35), np.float32(0.9))
    raised = 0.5 * (shape.raised["right"] + shape.raised["left"])
    above = 0.5 * (smoothstep((floor - raised - y) * 50) + smoothstep((floor - raised + 0.02 - y) * 50))
    cage = smoothstep((x - front) * 40) * smoothstep((back - x) * 40)
    lung = cage * above * smoothstep((y - (APEX - 0.05)) * 9)

    half = (0.145 + 0.012 * traits[0]) * (0.35 + 0.65 * shape.heart)
    heart = ellipse(x, y, (0.25 + 0.85 * half, 0.585), (half, 0.125 * (0.5 + 0.5 * shape.heart)), 0.5, 0.5) * above
    vessels = ellipse(x, y, (0.43, 0.36), (0.085 * shape.mediastinum, 0.14), 0.1, 0.6)
    body = _soft_tissue(patient, x, y, front, back, above)
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
        down=(y - APEX) / np.maximum(floor - APEX, 0.1),
        hila={"right": _HILUM, "left": _HILUM},
        organs={"heart": heart, "mediastinum": np.maximum(heart, vessels * lung)},
        marking=_marking(rng, x, y) * lung,
        lines=np.zeros((size, size), np.float32),
        locate=_locate,
    )


def _soft_tissue(patient: Patient, x: Array, y: Array, front: Array, back: Array, above: Array) -> Array:
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


def _marking(rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Vessels that fan out from the one hilum in sight."""
    dx, dy = x - _HILUM[0], y - _HILUM[1]
    radius = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx) + 0.3 * texture(rng, x.shape[0], 12)
    ridge = np.maximum(np.cos(angle * 13 + rng.uniform(0, 6)), 0)
    return 0.07 * ridge * ridge * ridge * np.maximum(1 - 2 * radius, 0.1)
