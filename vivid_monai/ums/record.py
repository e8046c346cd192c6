"""A UMS record: the findings of one image with their states, boxes and measurements, and their provenance."""

import json
from dataclasses import dataclass, fields
from typing import Any, Self

from vivid_monai.errors import VividError
from vivid_monai.ums.schema import UMS_VERSION, parse_json, schema_violations


def _compact(item: Any) -> dict[str, Any]:
    """A dataclass as a dict without the optional parts it does not have (``None`` and empty tuples)."""
    return {f.name: v for f in fields(item) if (v := getattr(item, f.name)) is not None and v != ()}


@dataclass(frozen=True, slots=True)
class Box:
    """A box in pixels of the original image: x to the right, y down, from the outer corner of pixel (0, 0).

    In a volume it lies on one slice (``slice``, from 0) or spans several (``z`` and ``depth`` in slices, from the outer
    face of the first); all three are ``None`` in a plane image.
    """

    x: float
    y: float
    width: float
    height: float
    slice: int | None = None
    z: float | None = None
    depth: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measured number. Names, their units and ranges: ``ums/schemas/measurements.json``."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one field.

    ``state`` is "present", "absent", "uncertain", or ``None`` for unanswerable. ``severity`` is "trace", "mild",
    "moderate" or "severe"; ``location`` free words; ``laterality`` "left", "right", "bilateral" or "midline", always
    the patient's side; ``score`` the labeller's probability of presence in [0, 1].
    """

    state: str | None
    severity: str | None = None
    location: str | None = None
    laterality: str | None = None
    score: float | None = None
    boxes: tuple[Box, ...] = ()
    measurements: tuple[Measurement, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as a JSON object; optional parts are there only where they are known."""
        out = {"state": self.state, **_compact(self)}
        return out | {part: [_compact(item) for item in out[part]] for part in ("boxes", "measurements") if part in out}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a finding from an object that follows the schema (``Record.from_dict`` has checked it)."""
        boxes = tuple(Box(**box) for box in data.get("boxes", ()))
        measurements = tuple(Measurement(**item) for item in data.get("measurements", ()))
        return cls(**{**data, "boxes": boxes, "measurements": measurements})


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the states come from.

    ``labeller`` is the program, group or rule that made them. ``source``: "report" (extracted from one), "human" (a
    reader of the image), "model" (a prediction), "simulation" (the image was made from them). ``report_ref`` points at
    the report (a path or identifier), ``reader`` at the human.
    """

    dataset: str
    labeller: str
    labeller_version: str | None
    source: str
    report_ref: str | None = None
    reader: str | None = None


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """The image: its path as the data set gives it, its original size in pixels, and for a volume the number of
    ``slices`` and the 0-based ``slice`` the record is about."""

    path: str
    height: int | None = None
    width: int | None = None
    slices: int | None = None
    slice: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One image in UMS form. A field missing from ``findings`` counts as ``null``, exactly like a null state.

    ``modality``, ``anatomy``, ``view`` and ``sex`` use the words of the schema ("DX", "chest", "PA", "F"); ``view`` is
    ``None`` where it is unknown; ``age`` is in years; ``report`` is the report's text; ``label_space`` is the name of
    the label space that the findings belong to.
    """

    id: str
    patient_id: str
    image: ImageInfo
    modality: str
    anatomy: str
    view: str | None
    findings: dict[str, Finding]
    provenance: Provenance
    study_id: str | None = None
    report: str | None = None
    label_space: str | None = None
    sex: str | None = None
    age: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a JSON object; ``from_dict`` gives an equal record back. Nothing is checked here.

        ``ums_version`` is the lowest that has all its parts, so that records without 3-D boxes read everywhere.
        """
        spatial = any(box.z is not None for finding in self.findings.values() for box in finding.boxes)
        return {
            "ums_version": UMS_VERSION if spatial else "1.0",
            **_compact(self),
            "image": _compact(self.image),
            "view": self.view,
            "findings": {name: finding.to_dict() for name, finding in self.findings.items()},
            "provenance": _compact(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a record; ``to_dict`` gives an equal object back. Raises VividError where it breaks the schema.

        Only the form is checked; contradictions between findings are the business of ``verify``.
        """
        if violations := schema_violations(data):
            first = violations[0]
            more = f" (and {len(violations) - 1} more: see `vivid verify`)" if len(violations) > 1 else ""
            raise VividError(f"not a UMS record: at {first.pointer or 'the top'}: {first.message}{more}")
        parts = {name: value for name, value in data.items() if name != "ums_version"}
        parts["image"] = ImageInfo(**data["image"])
        parts["findings"] = {name: Finding.from_dict(finding) for name, finding in data["findings"].items()}
        parts["provenance"] = Provenance(**{"labeller_version": None, **data["provenance"]})
        return cls(**parts)

    def to_json(self) -> str:
        """Return the record as one line of JSON. Raises VividError on what JSON cannot hold (NaN, an array)."""
        try:
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise VividError(f"record {self.id!r} holds what JSON cannot hold: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record from JSON text. Raises VividError on broken JSON, a key twice, or a broken schema."""
        return cls.from_dict(parse_json(text))
