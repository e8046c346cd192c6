"""Bundles of data that are not the package's own: another label space, another part of the body."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.deploy.conftest import make_run
from tests.deploy.made_dicom import dicom
from vivid_monai.cli import main
from vivid_monai.data.columns import FINDING
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.calibration import FEATURES, SPLITS, load_calibrated
from vivid_monai.deploy.model import BundleModel
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.ums.verify import verify

SPACE = {
    "label_space_version": "1.0",
    "name": "my-hospital",
    "description": "made",
    "source": "made",
    "fields": [{"name": "Break"}, {"name": "Hairline Break", "parent": "Break"}, {"name": "Normal Hand"}],
    "no_finding": {"field": "Normal Hand"},
}


def of_hands(manifest: Manifest) -> Manifest:
    """The same images as hand radiographs with three fields of a label space of the user's own."""
    table, names = manifest.table, [FINDING + field for field in manifest.fields]
    broken, second = (np.array(table[name].to_pylist()) for name in names[:2])
    table = table.drop_columns(names)
    columns = {"Break": broken, "Hairline Break": broken & second, "Normal Hand": 1 - broken}
    for field, states in columns.items():
        table = table.append_column(FINDING + field, pa.array(states.astype(np.int8)))
    hand = pa.array(["hand"] * len(table))
    table = table.set_column(table.column_names.index("anatomy"), "anatomy", hand)
    return Manifest(table, label_space=SPACE, image_root=manifest.image_root)


@pytest.fixture(scope="module")
def hands(tmp_path_factory) -> Path:
    """The bundle of them."""
    run = make_run(tmp_path_factory.mktemp("hands"), n=240, change=of_hands)
    model = load_calibrated(run)
    folder = build_bundle(model, tmp_path_factory.mktemp("bundle") / "hand_vit_classification")
    shutil.copytree(model.manifest.image_root / "images", folder / "images")
    return folder


def test_predicts_with_the_users_own_label_space(hands, tmp_path, capsys):
    assert main(["predict", str(hands / "images"), "--bundle", str(hands), "--out", str(tmp_path / "out")]) == 0
    assert "answered" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    space = BundleModel(hands).label_space
    assert space.fields == ("Break", "Hairline Break", "Normal Hand")
    assert (space.parents, space.no_finding) == ({"Hairline Break": "Break"}, "Normal Hand")
    assert records
    assert {record["label_space"] for record in records} == {"my-hospital"}
    assert not [wrong for record in records for wrong in verify(record, space)]


def test_says_what_it_was_trained_on_and_takes_it(hands, tmp_path):
    metadata = json.loads((hands / "configs" / "metadata.json").read_text())
    assert metadata["name"].startswith("Hand X-ray findings")
    assert "chest" not in json.dumps(metadata).lower()
    assert "chest" not in (hands / "docs" / "README.md").read_text().lower()
    assert metadata["answers"]["anatomy"] == "hand"
    (tmp_path / "in").mkdir()
    for name, part in (("hand", "HAND"), ("chest", "CHEST")):
        dicom(tmp_path / "in" / f"{name}.dcm", BodyPartExamined=part, ViewPosition="RLO")
    main(["predict", str(tmp_path / "in"), "--bundle", str(hands), "--out", str(tmp_path / "out")])
    reasons = (tmp_path / "out" / "not_assessed.csv").read_text()
    assert "chest.dcm,not of the hand" in reasons
    assert "hand.dcm,not of" not in reasons


def test_features_that_the_run_kept_are_not_computed_again(run, finished, tmp_path, monkeypatch):
    kept = shutil.copytree(run, tmp_path / "run")
    encoder = load_encoder(str(kept / "pretrained_vit.safetensors"), pool="cls")
    store = FeatureStore(kept / FEATURES, batch_size=50)  # another batch size than `vivid bundle` has
    for split in SPLITS:
        store.features(encoder, finished.manifest, split, finished.fields)
    forward = type(encoder).forward

    def only_measured(self, images):
        assert len(images) == 1
        return forward(self, images)

    monkeypatch.setattr(type(encoder), "forward", only_measured)
    again = load_calibrated(kept)
    assert [one.field for one in again.calibrations] == [one.field for one in finished.calibrations]
    for one, other in zip(again.calibrations, finished.calibrations, strict=True):
        assert one.slope == pytest.approx(other.slope, rel=1e-3)  # features differ in their last digits
    with pytest.raises(AssertionError):
        load_calibrated(run)
