"""The app answers as the bundle and `vivid predict` do, and refuses what cannot be read."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.deploy.alone import run_bundle
from tests.deploy.made_dicom import dicom
from tests.monailabel.conftest import make_images, probabilities, said
from tests.monailabel.server import Refused, serve
from vivid_monai.deploy.inputs import find_inputs
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.deploy.predict import predict
from vivid_monai.ums.verify import verify

pytestmark = pytest.mark.monailabel


@pytest.fixture(scope="module")
def images(finished, tmp_path_factory):
    return make_images(finished, tmp_path_factory.mktemp("images") / "xrays", 8)[0]


@pytest.fixture(scope="module")
def server(label_python, own_bundle, images, tmp_path_factory):
    folder = images[0].parent
    (folder / "broken.png").write_bytes(images[0].read_bytes()[:100])
    (folder / "report.dcm").write_bytes(b"no image at all")
    noise = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    dicom(folder / "ultrasound.dcm", Modality="US")
    os.mkfifo(folder / "pipe.png")
    (folder / "nothing.png").symlink_to("/nowhere/x.png")
    (folder / "._made000.png").write_bytes(b"\0")
    (folder / os.fsdecode(b"r\xf6ntgen.png")).write_bytes(images[0].read_bytes())
    with serve(label_python, own_bundle, folder, tmp_path_factory.mktemp("server")) as client:
        yield client


def test_tells_what_it_is(server, own_bundle):
    info = server.get("/info/")
    metadata = json.loads((own_bundle / "configs" / "metadata.json").read_text())
    fields = [rule["field"] for rule in metadata["answers"]["fields"]]
    assert info["name"] == metadata["name"]
    assert info["labels"] == fields
    model = info["models"][own_bundle.name]
    assert (model["type"], model["weights"]) == ("classification", "bundle")
    assert "bundle's own weights" in model["calibration"]
    assert info["datastore"]["total"] == 12  # and neither hidden files nor what is no file, or has no name to be sent


def test_answers_as_vivid_predict(server, own_bundle, images, tmp_path):
    answers = DecisionRules.of_bundle(own_bundle / "configs" / "metadata.json")
    for name, expected in probabilities(own_bundle, images, tmp_path / "out").items():
        answer = server.infer(name.split(".")[0])
        assert list(answer["findings"]) == answers.fields
        np.testing.assert_allclose(said(answer), expected, atol=1e-4, err_msg=name)
        states = {field: one["state"] for field, one in answer["findings"].items()}
        assert states == answers.states(expected)
        assert verify(answer["record"]) == []
        assert {field: one["state"] for field, one in answer["record"]["findings"].items()} == states
        assert answer["record"]["provenance"]["source"] == "model"
        assert answer["record"]["image"]["path"] == name
    assert np.ptp([said(server.infer(path.stem)) for path in images], axis=0).max() > 0.05  # images make a difference


def test_answers_as_the_bundle_itself(server, own_bundle, images, tmp_path):
    folder = tmp_path / "xrays"
    folder.mkdir()
    for path in images:
        shutil.copy(path, folder)
    copy = shutil.copytree(own_bundle, tmp_path / own_bundle.name)
    run_bundle(copy, "inference.json", dataset_dir=folder, output_dir=tmp_path / "out")
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == len(images)
    for record in records:
        own = server.infer(record["id"].rsplit("/")[-1].split(".")[0])["record"]["findings"]
        assert {field: one["state"] for field, one in own.items()} == {
            field: one["state"] for field, one in record["findings"].items()
        }
        for field, one in record["findings"].items():
            assert own[field].get("score") == pytest.approx(one.get("score"), abs=1e-4)


def test_png_and_both_photometric_interpretations_get_one_answer(server, images, tmp_path):
    with Image.open(images[0]) as image:
        pixels = np.asarray(image)
    answers = [said(server.infer_file(images[0]))]
    for inverted in (False, True):
        path = dicom(tmp_path / f"{inverted}.dcm", inverted=inverted, pixels=pixels)
        answers.append(said(server.infer_file(Path(path))))
    np.testing.assert_allclose(answers[1:], [answers[0]] * 2, atol=1e-4)


def test_an_image_unlike_the_training_images_is_not_assessed(server):
    answer = server.infer("noise")
    assert (answer["status"], answer["findings"], answer["record"]) == ("not assessed", {}, None)
    assert "unlike" in answer["reason"]


def test_refuses_by_tags_as_vivid_predict(server, own_bundle, images, tmp_path):
    answer = server.infer("ultrasound")
    assert (answer["status"], answer["findings"], answer["record"]) == ("not assessed", {}, None)
    path = images[0].parent / "ultrasound.dcm"
    assert [answer["reason"]] == [
        one.reason for one in predict(BundleModel(own_bundle), find_inputs([path]), tmp_path).entries
    ]


@pytest.mark.parametrize(("image", "code", "told"), [("broken", 422, "broken.png"), ("report", 422, "neither PNG")])
def test_refuses_what_cannot_be_read_and_goes_on(server, images, image, code, told):
    with pytest.raises(Refused) as refused:
        server.infer(image)
    assert refused.value.code == code
    assert told in refused.value.detail
    assert "\n" not in refused.value.detail
    assert "Traceback" not in refused.value.detail
    assert server.infer(images[0].stem)["findings"]


def test_an_image_that_is_not_there_is_not_found(server):
    with pytest.raises(Refused, match=r"404: there is no image 'nobody'"):
        server.infer("nobody")


def test_writes_nothing_into_the_bundle(server, own_bundle, bundle, images):
    server.infer(images[0].stem)

    def files(folder):
        return {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file() and one.suffix != ".pyc"}

    assert files(own_bundle) == files(bundle)


def test_new_files_are_seen_while_it_runs(server, images):
    shutil.copy(images[0], images[0].parent / "late.png")
    end = time.monotonic() + 60
    while "late" not in server.get("/datastore/", output="all")["objects"]:
        assert time.monotonic() < end
        time.sleep(0.5)
    np.testing.assert_allclose(said(server.infer("late")), said(server.infer(images[0].stem)), atol=1e-6)


def test_refuses_two_files_of_one_name(label_python, own_bundle, images, tmp_path):
    (tmp_path / "xrays").mkdir()
    for name in ("same.png", "same.PNG"):
        shutil.copy(images[0], tmp_path / "xrays" / name)
    with (
        pytest.raises(AssertionError, match="several files are called same but for their ending"),
        serve(label_python, own_bundle, tmp_path / "xrays", tmp_path),
    ):
        pass
