"""A valid record to break."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

VALID = {
    "ums_version": "1.0",
    "id": "patient00001/study1/view1_frontal",
    "patient_id": "patient00001",
    "study_id": "study1",
    "label_space": "chexpert-14",
    "sex": "F",
    "age": 68,
    "report": "Small left effusion. ✓",
    "image": {"path": "train/patient00001/study1/view1_frontal.jpg", "height": 320, "width": 390},
    "modality": "DX",
    "anatomy": "chest",
    "view": "AP",
    "findings": {
        "No Finding": {"state": "absent"},
        "Enlarged Cardiomediastinum": {"state": "present"},
        "Cardiomegaly": {
            "state": "present",
            "severity": "mild",
            "laterality": "midline",
            "score": 0.75,
            "boxes": [{"x": 100, "y": 120.5, "width": 180, "height": 140}],
            "measurements": [{"name": "cardiothoracic_ratio", "value": 0.56, "unit": "1"}],
        },
        "Lung Opacity": {"state": "uncertain"},
        "Lung Lesion": {"state": None},
        "Edema": {"state": "uncertain", "score": 0.5},
        "Consolidation": {"state": None},
        "Pneumonia": {"state": "present"},
        "Atelectasis": {"state": "absent"},
        "Pneumothorax": {"state": "absent", "score": 0.01},
        "Pleural Effusion": {"state": "present", "location": "left costophrenic angle", "laterality": "left"},
        "Pleural Other": {"state": None},
        "Fracture": {"state": None},
        "Support Devices": {"state": "present"},
    },
    "provenance": {
        "dataset": "CheXpert",
        "labeller": "chexpert-labeler",
        "labeller_version": "1.0",
        "source": "report",
        "report_ref": "study1.txt",
    },
}


@pytest.fixture
def valid() -> dict[str, Any]:
    """The JSON object of a valid record of all 14 CheXpert fields."""
    return copy.deepcopy(VALID)


@pytest.fixture
def broken(valid: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A function that returns the valid record with the value at each path ("findings", "Edema", "state") replaced."""

    def build(changes: dict[tuple, Any]) -> dict[str, Any]:
        for path, value in changes.items():
            place: Any = valid
            for part in path[:-1]:
                place = place.setdefault(part, {}) if isinstance(place, dict) else place[part]
            place[path[-1]] = value
        return valid

    return build
