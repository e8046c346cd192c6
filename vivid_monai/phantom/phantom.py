"""Generate one phantom: image, record, masks and boxes of its findings, report."""

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from operator import index as as_integer

import numpy as np
from scipy import ndimage

from vivid_monai.errors import VividError
from vivid_monai.phantom.anatomy import frontal, lateral
from vivid_monai.phantom.canvas import Array
from vivid_monai.phantom.findings import draw_cables, draw_findings, shape_of
from vivid_monai.phantom.patients import (
    FIELDS,
    IMAGE,
    LABEL_SPACE,
    REPORT,
    Disease,
    States,
    Visit,
    stream,
    study_truth,
    visit,
)
from vivid_monai.phantom.scene import Pose, expose
from vivid_monai.ums.record import Box, Finding, ImageInfo, Provenance, Record


@lru_cache
def sentences() -> dict[str, dict[str, list[str]]]:
    """Field → "present", "absent", "uncertain" and "keywords" → texts."""
    return json.loads(files(__package__).joinpath("sentences.json").read_text(encoding="utf-8"))


def degree(severity: float) -> str:
    """The schema's word for a severity in (0, 1]."""
    return "mild" if severity < 0.45 else "moderate" if severity < 0.75 else "severe"


def laterality(sides: tuple[str, ...]) -> str | None:
    """ "left", "right" or "bilateral"; None where a finding has no side."""
    return None if not sides else "bilateral" if len(sides) == 2 else sides[0]


def write_report(rng: np.random.Generator, frontal: str, states: States, drawn: dict[str, Disease]) -> str:
    """Findings in a random order, then an impression that repeats what is present or uncertain.

    `frontal` is the study's frontal view; `states` holds every field. A finding that is called present without being
    drawn (a wrong label) is described without a place.
    """
    mentioned = [name for name in FIELDS if states[name] is not None]
    lines, impression = [], []
    for i in rng.permutation(len(mentioned)):
        name = mentioned[i]
        choices = sentences()[name][str(states[name])]
        sentence = _fill(choices[int(rng.integers(len(choices)))], drawn.get(name))
        lines.append(sentence)
        if states[name] != "absent":
            impression.append(sentence)
    head = "Portable frontal view." if frontal == "AP" else "Frontal view."
    told = " ".join(impression) or "No acute abnormality among the findings described."
    return f"FINDINGS: {' '.join([head, *lines])}\nIMPRESSION: {told}"


def _fill(sentence: str, ill: Disease | None) -> str:
    ill = ill or Disease(severity=0.3)
    side = laterality(ill.sides)
    one_side = side if len(ill.sides) == 1 else None
    place = " ".join(word for word in ("the", one_side, ill.zone, "lung" if one_side else "lungs") if word)
    devices = [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in ill.devices] or ["a support device"]
    listed = " and ".join([", ".join(devices[:-1]), devices[-1]] if len(devices) > 1 else devices)
    word = degree(ill.severity)
    words = {"place": place, "side": side or "small", "degree": word, "devices": listed}
    text = sentence.format(**words, Degree=word.capitalize(), Devices=listed.capitalize())
    return text.replace("There is a mild bilateral", "There is mild bilateral")


# Raise it with every change of a picture, a label or a report: it is the dataset version of every record.
VERSION = "2"
MIN_SIZE, MAX_SIZE = 32, 4096
_ONE_BOX = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Support Devices")
_SHAPES = ("Cardiomegaly", "Enlarged Cardiomediastinum")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is known of an image without drawing it.

    `drawn`: the disease that the images of its study show. `states`: what their labels say. `report` of the study.
    """

    visit: Visit
    drawn: dict[str, Disease]
    states: States
    report: str


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """An image of a chest that never was.

    `image` uint8 (H, W), bright = dense; `record` its UMS record; `masks` bool (H, W) and `boxes` (pixels) of every
    finding that can be seen, whether or not the labels know of it; `drawn` the truth behind the labels; `report` the
    study's report.
    """

    image: Array
    record: Record
    boxes: dict[str, tuple[Box, ...]]
    masks: dict[str, Array]
    drawn: dict[str, Disease]
    report: str


def generate(seed: int, index: int, size: int = 224) -> Phantom:
    """Phantom `index` of the population `seed`, `size` pixels square: always the same, whatever was generated before.

    Another size shows the same body with the same disease and labels, and other noise. Twelve consecutive indices hold
    five patients with 1, 1, 2, 3 and 5 images; the images of a study share its labels and its report.

    Raises VividError: seed or index negative or not an integer, size outside 32 … 4096.
    """
    size = require_integer("size", size, MIN_SIZE, MAX_SIZE)
    study = read_study(seed, index)
    image, masks = _picture(stream(seed, IMAGE, index), study, size)
    boxes = {name: _boxes(mask, whole=name in _ONE_BOX) for name, mask in masks.items()}
    record = _record(seed, index, size, study, boxes)
    return Phantom(image=image, record=record, boxes=boxes, masks=masks, drawn=study.drawn, report=study.report)


def read_study(seed: int, index: int) -> Study:
    """What is known of phantom `index` without drawing it: `generate` draws exactly this.

    Raises VividError: seed or index negative or not an integer.
    """
    seed, index = require_integer("seed", seed), require_integer("index", index)
    place = visit(seed, index)
    drawn, states = study_truth(seed, place)
    words = stream(seed, REPORT, place.patient.number, place.study)
    report = write_report(words, "AP" if place.portable else "PA", states, drawn)
    return Study(visit=place, drawn=drawn, states=states, report=report)


def require_integer(name: str, value: int, low: int = 0, high: int | None = None) -> int:
    """`value` as an int; VividError where it is none, or not within low … high."""
    try:
        number = as_integer(value)
    except TypeError:
        raise VividError(f"phantom {name} must be an integer, got {value!r}") from None
    if number < low or (high is not None and number > high):
        raise VividError(f"phantom {name} must be {f'{low} to {high}' if high else f'at least {low}'}, got {number}")
    return number


def _picture(rng: np.random.Generator, study: Study, size: int) -> tuple[Array, dict[str, Array]]:
    place, drawn = study.visit, study.drawn
    careful = 0.6 if place.view == "PA" else 1.0
    pose = Pose(
        angle=float(rng.normal(0, 0.035 * careful)),
        shift=(float(rng.normal(0, 0.02 * careful)), float(rng.normal(0.025, 0.02))),
        zoom=float(rng.uniform(1.04, 1.24)),
    )
    shape = shape_of(rng, drawn)
    if place.view == "lateral":
        scene = lateral(rng, place.patient, shape, pose, size)
    else:
        scene = frontal(rng, place.patient, shape, pose, size, portable=place.portable)
    if place.portable and rng.random() < 0.5:
        draw_cables(rng, scene)
    masks = draw_findings(rng, scene, drawn, shape)
    return expose(rng, scene, place.portable), masks


def _boxes(mask: Array, whole: bool) -> tuple[Box, ...]:
    """One box around everything, or one around every part of more than a crumb, largest first."""
    parts, count = (mask.astype(np.int8), 1) if whole else ndimage.label(mask)
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    places = ndimage.find_objects(parts)
    kept = [i for i in np.argsort(-areas, kind="stable") if areas[i] * 20 >= areas.max()]
    return tuple(
        Box(x=columns.start, y=rows.start, width=columns.stop - columns.start, height=rows.stop - rows.start)
        for rows, columns in (places[i] for i in kept)
    )


def _record(seed: int, index: int, size: int, study: Study, boxes: dict[str, tuple[Box, ...]]) -> Record:
    place = study.visit
    patient = f"phantom{seed}-{place.patient.number:06d}"
    findings = {}
    for name, state in study.states.items():
        ill = study.drawn.get(name)
        if state != "present" or ill is None:
            findings[name] = Finding(state)
            continue
        side = laterality(ill.sides) if place.view != "lateral" else None
        findings[name] = Finding(
            state,
            severity=degree(ill.severity) if name != "Support Devices" else None,
            location=f"{ill.zone} zone" if ill.zone else None,
            laterality="midline" if name in _SHAPES else side,
            boxes=boxes.get(name, ()),
        )
    return Record(
        id=f"phantom{seed}-{index:07d}",
        patient_id=patient,
        study_id=f"{patient}-{place.study}",
        image=ImageInfo(f"images/{index // 1000:04d}/{index:07d}.png", height=size, width=size),
        modality="DX",
        anatomy="chest",
        view=place.view,
        findings=findings,
        provenance=Provenance("phantom", "vivid-monai phantom", VERSION, "simulation"),
        report=study.report,
        label_space=LABEL_SPACE,
        sex=place.patient.sex,
        age=float(place.patient.age),
    )
