"""Outlines as sets of pixels."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from vivid_monai.data.sources.lidc.reads import Contour, Reading

Region = dict[str, np.ndarray]
"""SOP instance UID → pixels of the nodule there, int64 codes, sorted, as `decode` reads them."""

_ROW = 1 << 32


def enclosed(points: np.ndarray) -> np.ndarray:
    """The pixels inside an edge map, int64 codes, sorted.

    LIDC's edge map is the outermost ring of pixels just outside the nodule, so its own pixels (and those on the
    straight lines between them) are not inside. An outline so small that nothing is left stands for its own pixels.

    Args:
        points: int (P, 2), x and y.
    """
    corner = points.min(axis=0)
    width, height = (points.max(axis=0) - corner + 1).tolist()
    outline = [(x, y) for x, y in (points - corner).tolist()]
    image = Image.new("1", (width, height))
    draw = ImageDraw.Draw(image)
    if len(outline) > 2:
        draw.polygon(outline, fill=1, outline=1)
    ring = Image.new("1", (width, height))
    ImageDraw.Draw(ring).line([*outline, outline[0]], fill=1)
    ImageDraw.Draw(ring).point(outline, fill=1)
    inside = np.array(image) & ~np.array(ring)
    y, x = np.nonzero(inside if inside.any() else np.array(ring))
    return np.sort((y + corner[1]) * _ROW + x + corner[0])


def region(contours: Iterable[Contour]) -> Region:
    """What a reading's outlines enclose, without its holes; slices where nothing is left are not in it."""
    filled: Region = {}
    for contour in sorted(contours, key=lambda c: not c.inclusion):  # holes last
        pixels, there = enclosed(contour.points), filled.get(contour.sop_uid, np.empty(0, np.int64))
        filled[contour.sop_uid] = (np.union1d if contour.inclusion else np.setdiff1d)(there, pixels)
    return {uid: pixels for uid, pixels in filled.items() if len(pixels)}


def decode(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y, int64, of pixel codes."""
    return pixels % _ROW, pixels // _ROW


def overlap(first: Region, second: Region) -> float:
    """Intersection over union of the pixels of all slices, in [0, 1]."""
    shared = sum(len(np.intersect1d(first[uid], second[uid], assume_unique=True)) for uid in first.keys() & second)
    return shared / (size(first) + size(second) - shared) if shared else 0.0


def size(pixels: Region) -> int:
    """Pixels on all slices."""
    return sum(map(len, pixels.values()))


def regions(readings: Iterable[Reading]) -> list[Region]:
    """The region of each reading."""
    return [region(reading.contours) for reading in readings]
