"""Checks of where a finding is: its boxes inside the image, and its sides against each other and the view."""

from collections.abc import Iterator
from typing import Any

from vivid_monai.ums.findings import items, number
from vivid_monai.ums.label_space import LabelSpace, side_in
from vivid_monai.ums.schema import Violation, pointer

LATERALITIES = ("left", "right", "bilateral", "midline")
LATERAL_VIEWS = ("lateral", "LL", "RL")
# Boxes computed in floats may end a rounding error beyond the edge, not a visible part of a pixel.
TOLERANCE = 1e-3


def image(info: dict[str, Any]) -> Iterator[Violation]:
    """Yield a slice number beyond the volume."""
    at, slices = number(info.get("slice")), number(info.get("slices"))
    if at is not None and slices is not None and at >= slices:
        message = f"slice {at:g} is not one of {slices:g} slices, counted from 0"
        yield Violation(pointer("image", "slice"), "box-slice", message)


def boxes(name: str, finding: dict[str, Any], info: dict[str, Any]) -> Iterator[Violation]:
    """Yield boxes of no area, outside the image (as far as its size is known), or on another slice."""
    for i, box in items(finding, "boxes"):
        where = ("findings", name, "boxes", i)
        for edge, side in (("x", "width"), ("y", "height")):
            start, extent, size = number(box.get(edge)), number(box.get(side)), number(info.get(side))
            if extent is not None and extent <= 0:
                yield Violation(pointer(*where, side), "box-area", f"{side} {extent:g} leaves the box without area")
            if start is not None and start < -TOLERANCE:
                message = f"the box starts at {edge} = {start:g}, outside the image"
                yield Violation(pointer(*where, edge), "box-outside", message)
            if start is None or size is None:
                continue
            end = start + max(extent or 0, 0)
            if end > size + TOLERANCE:
                message = f"the box ends at {edge} = {end:g}, the image at {size:g}"
                yield Violation(pointer(*where, side), "box-outside", message)
        yield from _slice(number(box.get("slice")), info, where)


def _slice(at: float | None, info: dict[str, Any], where: tuple[str | int, ...]) -> Iterator[Violation]:
    if at is None:
        return
    own, slices = number(info.get("slice")), number(info.get("slices"))
    if own is not None and at != own:
        message = f"the box is on slice {at:g}, the record about slice {own:g}"
        yield Violation(pointer(*where, "slice"), "box-slice", message)
    if slices is not None and at >= slices:
        message = f"slice {at:g} is not one of {slices:g} slices, counted from 0"
        yield Violation(pointer(*where, "slice"), "box-slice", message)


def sides(name: str, finding: dict[str, Any], space: LabelSpace | None, view: Any) -> Iterator[Violation]:
    """Yield sides that contradict each other: laterality, location, the field's own side, and the view.

    A left or right in the words of the location must agree with the laterality, both with the side that the field's
    name or anatomy fixes, and on a lateral projection, which lays the sides over each other, there is no laterality.
    """
    fixed = space.sides.get(name) if space is not None else side_in(name)
    laterality = finding.get("laterality")
    location = finding.get("location")
    told = side_in(location) if isinstance(location, str) else None
    if laterality in LATERALITIES:
        where = pointer("findings", name, "laterality")
        if fixed is not None and laterality != fixed:
            yield Violation(where, "laterality", f"{name!r} is {fixed}, so its laterality cannot be {laterality}")
        if told is not None and laterality != told:
            message = f"the location {location!r} is {told}, the laterality {laterality}"
            yield Violation(where, "laterality", message)
        if view in LATERAL_VIEWS and laterality != "midline":
            message = f"a {view} view lays both sides over each other, so it shows no laterality {laterality}"
            yield Violation(where, "laterality", message)
    if fixed in ("left", "right") and told not in (None, fixed):
        message = f"the location {location!r} is {told}, but {name!r} is {fixed}"
        yield Violation(pointer("findings", name, "location"), "laterality", message)
