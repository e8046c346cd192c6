"""DICOM files whose tags speak for or against an answer, and what may override them."""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from tests.deploy.made_dicom import dicom
from tests.fuzz.damage import one_line
from tests.fuzz.images import SECRETS, model, whole
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.predict import predict
from vivid_monai.phantom.phantom import generate


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "as the code says"
    return item


SAYS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "modality": (
        [{"Modality": word} for word in ("CR", "DX", "DR", "X-RAY", "Radiographie", "OT", "")],
        [{"Modality": word} for word in ("CT", "MR", "US", "MG", "SC", "XA")],
    ),
    "body": (
        [
            *({"BodyPartExamined": word} for word in ("CHEST", "Thorax", "TÓRAX", "BRUST", "UNKNOWN", "")),
            {"AnatomicRegionSequence": [_code("51185008")]},
        ],
        [
            *({"BodyPartExamined": word} for word in ("KNEE", "ABDOMEN", "HAND", "SKULL")),
            {"AnatomicRegionSequence": [_code("72696002")]},
        ],
    ),
    "view": (
        [{}, *({"ViewPosition": word} for word in ("PA", "AP", "LL", "LATERAL", "LLD"))],
        [
            *({"ViewPosition": word} for word in ("LAO", "RPO", "OBL", "AP LORDOTIC")),
            {"ViewPosition": "PA", "ViewCodeSequence": [_code("399135007")]},
        ],
    ),
    "orientation": (
        [{}, {"PatientOrientation": ["L", "F"]}, {"FieldOfViewHorizontalFlip": "NO", "FieldOfViewRotation": "0"}],
        [
            *({"PatientOrientation": one} for one in (["R", "F"], ["F", "L"])),
            {"FieldOfViewRotation": "90"},
            {"FieldOfViewHorizontalFlip": "YES"},
        ],
    ),
    "quality": ([{}, {"QualityControlImage": "NO"}], [{"QualityControlImage": "YES"}, {"CalibrationImage": "YES"}]),
    "processing": (
        [{}, {"PresentationIntentType": "FOR PRESENTATION"}],
        [{"PresentationIntentType": "FOR PROCESSING"}],
    ),
}
"""Tag of `--accept` → what says nothing against an answer, and what forbids it; by docs/deploy.md."""


def check(choose: random.Random) -> str:
    """Predict from a radiograph with drawn tags, of which some are overridden."""
    against = set(choose.sample(sorted(SAYS), choose.choice([0, 0, 1, 1, 2, 3])))
    tags: dict[str, Any] = {}
    for tag, (fine, forbidding) in SAYS.items():
        tags |= choose.choice(forbidding if tag in against else fine)
    accept = choose.sample(sorted(SAYS), choose.choice([0, 0, 1, 2, 6]))
    with tempfile.TemporaryDirectory() as name:
        path = dicom(Path(name) / "a.dcm", pixels=generate(99, 0, 112).image, PatientID="XQ4711", **tags)
        (entry,) = predict(model(), find_inputs([path]), Path(name) / "out", accept=accept).entries
        if against - set(accept):
            assert (entry.status, entry.probabilities) == ("not assessed", []), (tags, accept, entry)
            one_line(entry.reason, beside=name, secrets=SECRETS)
            assert any(f"(--accept {tag})" in entry.reason for tag in against - set(accept)), entry.reason
            return "not assessed"
        assert entry.status == "answered", (tags, accept, entry)
        np.testing.assert_allclose(entry.probabilities, whole("whole.dcm"), atol=2e-5)
        assert set(entry.accepted.split(",")) - {""} == against, (entry.accepted, against)
        return f"answered{' by an override' if against else ''}"
