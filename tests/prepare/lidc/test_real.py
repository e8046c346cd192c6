"""A real CT series with made readings, and the published tables of real readings."""

import csv
import json
import os
import re
import runpy
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.images.dicom import read_values
from vivid_monai.images.volume import AIR, read_series
from vivid_monai.prepare.lidc.nodules import Nodule, nodules_of
from vivid_monai.prepare.lidc.reads import RATINGS, read_xml
from vivid_monai.prepare.lidc.source import CropRule, cut
from vivid_monai.ums.label_space import load_label_space

from .making import Mark, disc, edge, write_xml

pytestmark = pytest.mark.real_data
STATE = load_label_space("lidc-malignancy").ratings["Malignancy"].state
PIXEL = 0.9765625  # mm, of the real series


@pytest.fixture
def series(real_data, tmp_path):
    """Eight slices of the real series (JPEG 2000 lossless, from above), with the identifiers they were robbed of."""
    for number, path in enumerate(sorted((real_data / "ct" / "dicom_series").iterdir())[:8]):
        ds = dcmread(path)
        ds.PatientID, ds.SeriesInstanceUID, ds.StudyInstanceUID = "P1", "1.2.3", "1.2"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
        ds.save_as(tmp_path / f"{7 - number}")
    return read_series([str(path) for path in tmp_path.iterdir()])


def test_compressed_slices_are_sorted_and_cut_to_the_pixel(series, real_data, tmp_path):
    assert [one.sop_uid for one in series.slices] == [f"1.2.3.{n}" for n in range(8, 0, -1)]
    assert (series.step, series.regular, series.spacing) == (2.0, True, (PIXEL, PIXEL))
    areas = {n: disc(300, 250, radius) for n, radius in ((4, 3), (5, 4), (6, 7), (7, 2))}
    rois = [(f"1.2.3.{n}", -766.5 - 2 * (n - 1), edge(pixels), True) for n, pixels in areas.items()]
    scan = read_xml(write_xml(tmp_path / "r.xml", "1.2.3", [[Mark("a", rois, 4)], [Mark("b", rois, 5)]]))
    (nodule,) = (n.measured(series) for n in nodules_of(scan))
    assert (nodule.sop_uid, nodule.x, nodule.y, nodule.slice_index) == ("1.2.3.6", 300, 250, 2)
    assert nodule.volume_mm3 == pytest.approx(sum(map(len, areas.values())) * PIXEL**2 * 2)
    assert nodule.x_mm == pytest.approx(-249.51171875 + 300 * PIXEL)

    rule = CropRule(crop_mm=31 * PIXEL, pixel_mm=PIXEL, slice_mm=2)
    values = np.asarray(cut(series, nodule.sop_uid, nodule.x, nodule.y, rule).dataobj)
    originals = sorted((real_data / "ct" / "dicom_series").iterdir())
    for k, number in enumerate((6, 5, 4)):  # from below: this series comes from above
        stored, _ = read_values(originals[number])
        assert np.array_equal(values[:, :, k].T, np.maximum(stored[235:266, 285:316], AIR))


def key_of(patient, name):
    return int(patient), str(int(name)) if name.strip().isdecimal() else name.strip()


def test_our_means_and_labels_of_real_readings_are_the_published_ones(real_data):
    """malignancy.csv names the readings of each nodule; it averages at most the first four of them."""
    readings = defaultdict(list)
    with (real_data / "lidc" / "nodule_chara_list.csv").open() as file:
        for patient, name, *ratings in csv.reader(file):
            if ratings:
                readings[key_of(patient[-4:], name)].append(ratings)
    compared, unknown, ambiguous, cells_off, labels_off = 0, [], 0, 0, 0
    with (real_data / "lidc" / "malignancy.csv").open() as file:
        for row in csv.reader(file):
            keys = [key_of(row[1], name) for name in row[17:21] if name.strip()]
            if missing := [key for key in keys if key not in readings]:
                unknown += missing
            elif any(len(readings[key]) > 1 for key in keys):
                ambiguous += 1
            else:
                nodule = _nodule([readings[key][0] for key in keys])
                off = [
                    abs(nodule.average(name) - float(c)) > 0.005 for name, c in zip(RATINGS, row[21:30], strict=True)
                ]
                compared, cells_off = compared + 1, cells_off + sum(off)
                labels_off += STATE(nodule.average("malignancy")) != STATE(float(row[29]))
    assert (compared, ambiguous, cells_off, labels_off) == (2616, 16, 0, 0)
    assert {patient for patient, _ in unknown} == {101, 974}


def _nodule(ratings):
    return Nodule(
        series_uid="1",
        study_uid="",
        patient_id=None,
        number=1,
        readings=tuple(f"{i}/a" for i in range(len(ratings))),
        ratings={name: tuple(map(int, cells)) for name, cells in zip(RATINGS, zip(*ratings, strict=True), strict=True)},
        sop_uid="1.1",
        x=0,
        y=0,
        z_mm=0,
        area_px=1,
        voxels=1,
    )


def test_the_page_makes_a_manifest_of_the_real_crops(real_data, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs" / "lidc.md").read_text()
    commands = re.findall(
        r"^    (python scripts/lidc_crops_mapping|vivid prepare table)(.*)$", page.replace("\\\n", ""), re.M
    )
    (_, arguments), (_, options) = commands
    (tmp_path / "shared").mkdir()
    os.symlink(real_data, tmp_path / "shared" / "data")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "argv", arguments.split())
    runpy.run_path(str(Path(__file__).parents[3] / "scripts" / "lidc_crops_mapping.py"), run_name="__main__")
    assert main(["prepare", "table", *options.split()]) == 0
    manifest = Manifest.load("data/lidc-crops/manifest.parquet")
    assert (len(manifest), len(set(manifest.patients()))) == (71, 31)
    assert np.bincount(manifest.states()[:, 0]).tolist() == [12, 12, 47]
    assert json.loads(Path("data/lidc-crops/mapping.json").read_text())["values"]["2.0"] == "absent"
    for split in ("train", "val", "test"):
        assert {0, 1} <= set(manifest.select(split).states()[:, 0].tolist())
