"""Simulated patients: who is imaged and how often, their diseases, and what the labels say about them.

Every index belongs to one patient, one study and one view. Disease comes from a few hidden causes (heart failure,
infection, intensive care, trauma, tumour), so that findings occur together as they do in wards. The label is not the
disease: mild findings are missed or hedged, most healthy organs are not mentioned (null), and a few labels are wrong.
Rates are of the order of those in CheXpert.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vivid_monai.ums.label_space import load_label_space

# Twelve consecutive indices hold five patients, in an order drawn per block: an index finds its patient at once.
_IMAGES_PER_PATIENT = (1, 1, 2, 3, 5)
_BLOCK = sum(_IMAGES_PER_PATIENT)

# Independent random streams of one seed.
BLOCK, PATIENT, STUDY, IMAGE, REPORT = range(5)


def stream(seed: int, *key: int) -> np.random.Generator:
    """The generator that belongs to (seed, key) alone."""
    return np.random.default_rng((seed, *key))


@dataclass(frozen=True, kw_only=True)
class Patient:
    """What stays the same over all images of one person; the four dispositions are standard normal."""

    number: int
    sex: str
    age: int
    inpatient: bool
    stature: float
    habitus: float
    heart: float
    lung: float
    tumour: float
    frailty: float
    anatomy: tuple[float, ...]


class Visit(NamedTuple):
    """Where an image belongs: `study` counts from 0 within the patient, `view` is "AP", "PA" or "lateral".

    `portable` belongs to the study: its frontal image is AP, taken at the bedside.
    """

    patient: Patient
    study: int
    view: str
    portable: bool


@lru_cache(maxsize=4096)
def _visits(seed: int, number: int, n_images: int) -> tuple[Visit, ...]:
    """The images of a patient, in order."""
    rng = stream(seed, PATIENT, number)
    inpatient = bool(rng.random() < 0.6)
    age = int(np.clip(rng.normal(64 if inpatient else 54, 17), 18, 96))
    traits = rng.standard_normal(4)
    patient = Patient(
        number=number,
        sex="F" if rng.random() < 0.46 else "M",
        age=age,
        inpatient=inpatient,
        stature=float(rng.standard_normal()),
        habitus=float(rng.standard_normal()),
        heart=float(traits[0] + 0.015 * (age - 60)),
        lung=float(traits[1]),
        tumour=float(traits[2] + 0.01 * (age - 60)),
        frailty=float(traits[3] + 0.01 * (age - 60)),
        anatomy=tuple(float(v) for v in rng.standard_normal(12)),
    )
    visits: list[Visit] = []
    study = 0
    while len(visits) < n_images:
        portable = bool(rng.random() < (0.85 if inpatient else 0.15))
        visits.append(Visit(patient, study, "AP" if portable else "PA", portable))
        if len(visits) < n_images and rng.random() < (0.1 if portable else 0.75):
            visits.append(Visit(patient, study, "lateral", portable))
        study += 1
    return tuple(visits)


def visit(seed: int, index: int) -> Visit:
    """Patient, study and view of image `index` of the phantom population `seed`."""
    block, place = divmod(index, _BLOCK)
    counts = stream(seed, BLOCK, block).permutation(_IMAGES_PER_PATIENT)
    ends = np.cumsum(counts)
    slot = int(np.searchsorted(ends, place, side="right"))
    visits = _visits(seed, block * len(_IMAGES_PER_PATIENT) + slot, int(counts[slot]))
    return visits[place - int(ends[slot] - counts[slot])]


LABEL_SPACE = "chexpert-12"
FIELDS = load_label_space(LABEL_SPACE).fields
PARENTS = load_label_space(LABEL_SPACE).parents
SIDES = ("right", "left")
ZONES = ("upper", "middle", "lower")
DEVICES = ("endotracheal tube", "enteric tube", "central venous catheter", "pacemaker", "port catheter", "chest tube")
_ZONE_ODDS = {
    "Lung Opacity": (0.25, 0.3, 0.45), "Lung Lesion": (0.4, 0.3, 0.3), "Consolidation": (0.25, 0.25, 0.5),
    "Pneumonia": (0.2, 0.3, 0.5), "Atelectasis": (0.0, 0.0, 1.0),
}  # fmt: skip

_BOTH_SIDES = {"Edema": 1.0, "Pleural Effusion": 0.4, "Atelectasis": 0.4, "Pneumonia": 0.2, "Lung Opacity": 0.1}

# How often a healthy organ is called absent, how often a diseased one is hedged, and how often a healthy one is.
_SAID_ABSENT = {
    "Enlarged Cardiomediastinum": 0.35, "Cardiomegaly": 0.40, "Lung Opacity": 0.30, "Lung Lesion": 0.30, "Edema": 0.45,
    "Consolidation": 0.50, "Pneumonia": 0.35, "Atelectasis": 0.25, "Pneumothorax": 0.60, "Pleural Effusion": 0.60,
    "Fracture": 0.35, "Support Devices": 0.35,
}  # fmt: skip
_HEDGED = {
    "Cardiomegaly": 0.08, "Lung Lesion": 0.08, "Edema": 0.12, "Consolidation": 0.16, "Pneumonia": 0.18,
    "Atelectasis": 0.22, "Pneumothorax": 0.06, "Pleural Effusion": 0.08, "Fracture": 0.06,
}  # fmt: skip
_HEDGED_HEALTHY = 0.02
_MISSED = 0.08
_WRONG = 0.015


@dataclass(frozen=True, kw_only=True)
class Disease:
    """One finding as it is: severity in (0, 1], the side(s) of the patient it sits on (empty: no side), the zone of the
    lung (one of `ZONES`, empty where it has none), and for Support Devices which ones (of `DEVICES`)."""

    severity: float
    sides: tuple[str, ...] = ()
    zone: str = ""
    devices: tuple[str, ...] = ()


States = dict[str, str | None]
"""Field → present, absent, uncertain or None."""


def study_truth(seed: int, visit: Visit) -> tuple[dict[str, Disease], States]:
    """Disease and labels of the study that `visit` belongs to; all its images share them."""
    rng = stream(seed, STUDY, visit.patient.number, visit.study)
    drawn = _draw(rng, visit)
    return drawn, _label(rng, drawn)


def _draw(rng: np.random.Generator, visit: Visit) -> dict[str, Disease]:
    p = visit.patient
    cause = 0.8 * np.array([p.heart, p.lung, p.frailty, p.tumour, 0.0]) + 0.6 * rng.standard_normal(5)
    failure, infection, care, tumour, trauma = cause
    ward = 1.0 if visit.portable or p.inpatient else 0.0
    logit = {
        "Cardiomegaly": -2.0 + 1.6 * failure + 0.4 * ward,
        "Enlarged Cardiomediastinum": -3.2 + 0.8 * tumour + 0.6 * care,
        "Edema": -2.6 + 1.8 * failure + 0.9 * ward,
        "Consolidation": -3.3 + 1.4 * infection + 0.5 * ward,
        "Pneumonia": -4.2 + 1.8 * infection,
        "Atelectasis": -2.3 + 0.9 * care + 0.9 * ward,
        "Lung Lesion": -3.9 + 1.6 * tumour - 0.3 * ward,
        "Pneumothorax": -3.3 + 0.9 * trauma + 0.6 * care + 0.5 * ward,
        "Pleural Effusion": -1.9 + 1.1 * failure + 0.6 * care + 0.5 * tumour + 0.7 * ward,
        "Fracture": -3.3 + 1.6 * trauma + 0.3 * p.frailty,
        "Support Devices": -1.9 + 1.2 * care + 1.9 * ward + 0.4 * failure,
        "Lung Opacity": -2.0 + 0.7 * infection + 0.3 * ward,
    }
    roll = rng.random(len(FIELDS))
    severities = 0.15 + 0.85 * rng.beta(1.6, 1.8, len(FIELDS))
    drawn = {}
    for i, name in enumerate(FIELDS):
        sides, place = _sides(rng, name), rng.random()
        zone = ""
        if name in _ZONE_ODDS:
            zone = ZONES[int(np.searchsorted(np.cumsum(_ZONE_ODDS[name])[:2], place, side="right"))]
        if roll[i] < 1 / (1 + np.exp(-logit[name])):
            drawn[name] = Disease(severity=float(severities[i]), sides=sides, zone=zone)
    chosen = _devices(rng, visit, "Pneumothorax" in drawn)
    if "Support Devices" in drawn:
        drawn["Support Devices"] = replace(drawn["Support Devices"], devices=chosen)
    return drawn


def _devices(rng: np.random.Generator, visit: Visit, pneumothorax: bool) -> tuple[str, ...]:
    """At least one device; tubes belong to the bedside, pacemakers and ports to the clinic as well."""
    bedside, clinic = (0.45, 0.45, 0.6, 0.15, 0.1, 0.5 if pneumothorax else 0.06), (0, 0, 0.1, 0.5, 0.4, 0.05)
    odds, roll = bedside if visit.portable else clinic, rng.random(len(DEVICES))
    chosen = tuple(d for d, r, p in zip(DEVICES, roll, odds, strict=True) if r < p)
    return chosen or (("central venous catheter",) if visit.portable else ("pacemaker",))


def _sides(rng: np.random.Generator, name: str) -> tuple[str, ...]:
    bilateral, first = rng.random() < _BOTH_SIDES.get(name, 0.0), SIDES[int(rng.random() < 0.47)]
    if name in ("Cardiomegaly", "Enlarged Cardiomediastinum", "Support Devices"):
        return ()
    return SIDES if bilateral else (first,)


def _label(rng: np.random.Generator, drawn: dict[str, Disease]) -> States:
    mention, wrong = rng.random(len(FIELDS)), rng.random(len(FIELDS))
    states: States = {}
    for i, name in enumerate(FIELDS):
        if (ill := drawn.get(name)) is None:
            if mention[i] < _SAID_ABSENT[name]:
                states[name] = "present" if wrong[i] < _WRONG else "absent"
            else:
                states[name] = "uncertain" if mention[i] > 1 - _HEDGED_HEALTHY else None
        else:
            # Mild disease is missed and hedged twice as often as the average, severe disease hardly ever.
            mild = 2 * (1 - ill.severity)
            if mention[i] < _MISSED * mild:
                states[name] = "absent" if wrong[i] < 0.3 else None
            else:
                states[name] = "uncertain" if mention[i] > 1 - _HEDGED.get(name, 0.0) * mild else "present"
    # Parents follow: a present child makes its parent present, an uncertain one forbids its absence.
    for child, parent in PARENTS.items():
        if states[child] == "present":
            states[parent] = "present"
    for child, parent in PARENTS.items():
        if states[child] == "uncertain" and states[parent] == "absent":
            states[parent] = "uncertain"
    return states
