"""The skeleton of a frontal chest: ribs, clavicles, spine, shoulder blades."""

from dataclasses import dataclass

import numpy as np

from vivid_monai.data.phantom.canvas import Array, band, smoothstep
from vivid_monai.data.phantom.chest import RIB_SPACING, Chest
from vivid_monai.data.phantom.patients import Patient
from vivid_monai.data.phantom.scene import BrokenRib


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
