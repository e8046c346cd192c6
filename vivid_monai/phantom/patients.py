"""Who is imaged, and how often: every index belongs to one patient, one study and one view."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One image's place: `study` and `image` count from 0 within the patient, `view` is "AP", "PA" or "lateral".

    `portable` belongs to the study: its frontal image is AP, taken at the bedside.
    """

    patient: Patient
    study: int
    image: int
    view: str
    portable: bool


@lru_cache(maxsize=4096)
def _patient(seed: int, number: int, n_images: int) -> tuple[Patient, tuple[tuple[int, str, bool], ...]]:
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
    views: list[tuple[int, str, bool]] = []
    study = 0
    while len(views) < n_images:
        portable = bool(rng.random() < (0.85 if inpatient else 0.15))
        views.append((study, "AP" if portable else "PA", portable))
        if len(views) < n_images and rng.random() < (0.1 if portable else 0.75):
            views.append((study, "lateral", portable))
        study += 1
    return patient, tuple(views)


def visit(seed: int, index: int) -> Visit:
    """Patient, study and view of image `index` of the phantom population `seed`."""
    block, place = divmod(index, _BLOCK)
    counts = stream(seed, BLOCK, block).permutation(_IMAGES_PER_PATIENT)
    ends = np.cumsum(counts)
    slot = int(np.searchsorted(ends, place, side="right"))
    patient, views = _patient(seed, block * len(_IMAGES_PER_PATIENT) + slot, int(counts[slot]))
    image = place - int(ends[slot] - counts[slot])
    study, view, portable = views[image]
    return Visit(patient=patient, study=study, image=image, view=view, portable=portable)
