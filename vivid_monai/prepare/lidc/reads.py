"""Parse the readers' XML: outlines by slice, and their ratings."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

RATINGS = {"subtlety": 5, "internalStructure": 4, "calcification": 6, "sphericity": 5, "margin": 5}
RATINGS |= dict.fromkeys(("lobulation", "spiculation", "texture", "malignancy"), 5)
"""The nine characteristics → the highest category; the lowest is 1."""

_LARGEST = 4096  # pixels; LIDC's slices have 512


class ReadsError(ValueError):
    """A file that gives no readings of a CT scan; ``reason`` is the code that skipped.csv lists it under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Contour(NamedTuple):
    """One outline on one slice, which is at imageZposition ``z``, mm.

    ``inclusion``: the inside belongs to the nodule (else it is a hole in it). ``points``: int64 (P, 2), column x and
    row y of the edge map, pixels from 0.
    """

    sop_uid: str
    z: float
    inclusion: bool
    points: np.ndarray


class Reading(NamedTuple):
    """One reader's mark of one nodule of at least 3 mm.

    ``key``: "reader/noduleID", unique in its scan ("#2" is added where a reader uses an identifier twice). The reader
    is the number of the session in the file, from 1; LIDC's readers are anonymous. ``ratings``: characteristic →
    category; ``None`` where it is missing or off its scale.
    """

    key: str
    ratings: dict[str, int | None]
    contours: tuple[Contour, ...]


class ScanReads(NamedTuple):
    """All readings of one scan. ``small``: marks without ratings (nodules under 3 mm); ``non_nodules``: other marks."""

    series_uid: str
    study_uid: str
    readings: tuple[Reading, ...]
    small: int
    non_nodules: int

    def content(self) -> tuple:
        """What two files have to share to say the same."""
        marks = (
            (r.key, *r.ratings.values(), *((c.sop_uid, c.points.tobytes()) for c in r.contours)) for r in self.readings
        )
        return (self.series_uid, *marks)


def read_xml(path: Path) -> ScanReads:
    """Parse one file of the readers (namespace http://www.nih.gov, root LidcReadMessage).

    A mark without any rating is a nodule under 3 mm: counted, not read. Coordinates are taken as 0-based pixels.

    Raises ReadsError: not XML, another kind of XML, a reading of a chest X-ray, no series, an outline that is none.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError, UnicodeError, ValueError) as error:
        raise ReadsError("malformed-xml", f"not well-formed XML: {error}") from error
    for element in root.iter():  # LIDC's namespace differs between its parts; names do not clash
        element.tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else "comment"
    if root.tag == "IdriReadMessage" or root.find("CXRreadingSession") is not None:
        raise ReadsError("cxr-read", "readings of a chest X-ray, not of a CT scan")
    if root.tag != "LidcReadMessage":
        raise ReadsError("not-lidc-xml", f"its root is {root.tag}, not LidcReadMessage")
    header = root.find("ResponseHeader")
    series = "" if header is None else _text(header, "SeriesInstanceUid") or _text(header, "CTSeriesInstanceUid")
    if header is None or not series:
        raise ReadsError("no-series", "ResponseHeader names no SeriesInstanceUid")

    readings: list[Reading] = []
    small = 0
    for reader, session in enumerate(root.findall("readingSession"), start=1):
        used: Counter[str] = Counter()
        for mark in session.findall("unblindedReadNodule"):
            ratings = _ratings(mark)
            if not any(ratings.values()):
                small += 1
                continue
            name = _text(mark, "noduleID").replace("|", " ")
            used[name] += 1
            key = f"{reader}/{name}" + (f"#{used[name]}" if used[name] > 1 else "")
            contours = tuple(_contour(roi, key) for roi in mark.findall("roi"))
            if not any(contour.inclusion for contour in contours):
                raise ReadsError("malformed-xml", f"reading {key} has ratings but no outline")
            readings.append(Reading(key, ratings, contours))
    others = len(root.findall("readingSession/nonNodule"))
    return ScanReads(series, _text(header, "StudyInstanceUID"), tuple(readings), small, others)


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or "").strip()


def _ratings(mark: ElementTree.Element) -> dict[str, int | None]:
    given = mark.find("characteristics")
    values: dict[str, int | None] = {}
    for name, highest in RATINGS.items():
        text = "" if given is None else _text(given, name)
        values[name] = int(text) if text.isdecimal() and 1 <= int(text) <= highest else None
    return values


def _contour(roi: ElementTree.Element, key: str) -> Contour:
    sop_uid, inclusion = _text(roi, "imageSOP_UID"), _text(roi, "inclusion").upper()
    try:
        z = float(_text(roi, "imageZposition"))
        points = [(int(_text(edge, "xCoord")), int(_text(edge, "yCoord"))) for edge in roi.findall("edgeMap")]
    except ValueError as error:
        raise ReadsError("malformed-xml", f"reading {key}: an outline with {error}") from error
    if not sop_uid or not points or inclusion not in ("TRUE", "FALSE") or not np.isfinite(z):
        raise ReadsError("malformed-xml", f"reading {key}: an outline without slice, points, z or inclusion")
    if not all(0 <= value < _LARGEST for point in points for value in point):
        raise ReadsError("malformed-xml", f"reading {key}: a point outside 0 … {_LARGEST - 1} pixels")
    return Contour(sop_uid, z, inclusion == "TRUE", np.array(points, dtype=np.int64))
