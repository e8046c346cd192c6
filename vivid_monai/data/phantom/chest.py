"""The measures of a chest seen from the front."""

from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from vivid_monai.data.phantom.patients import Patient
from vivid_monai.data.phantom.scene import Shape

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
