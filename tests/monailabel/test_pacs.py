"""The app on a PACS: radiographs are found, fetched as they are, answered, and their findings kept here."""

import json
import shutil
import time

import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.deploy.made_dicom import dicom
from tests.monailabel.conftest import make_images, probabilities, said
from tests.monailabel.orthanc import missing, orthanc
from tests.monailabel.server import Refused, serve
from vivid_monai.deploy.model import BundleModel
from vivid_monai.images.read import read_image
from vivid_monai.ums.verify import verify

pytestmark = pytest.mark.monailabel


@pytest.fixture(scope="module")
def pacs(label_python, tmp_path_factory):
    if told := missing():
        pytest.skip(told)
    with orthanc(label_python, tmp_path_factory.mktemp("orthanc")) as one:
        yield one


@pytest.fixture(scope="module")
def sent(pacs, finished, tmp_path_factory):
    """SOP Instance UID → file in the PACS: DX and CR, MONOCHROME2 and 1; and a CT, which is no radiograph."""
    folder = tmp_path_factory.mktemp("sent")
    paths = [path for path in make_images(finished, folder, 12)[0] if path.suffix == ".dcm"]
    dicom(folder / "ct.dcm", seed=99, Modality="CT")
    for i, path in enumerate(paths):
        ds = pydicom.dcmread(path)
        ds.Modality = ("DX", "CR")[i // 2 % 2]
        ds.save_as(path)
    pacs.store(*paths, folder / "ct.dcm")
    assert pacs.changes()["CountInstances"] == len(paths) + 1
    return {str(pydicom.dcmread(path).SOPInstanceUID): path for path in paths}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(label_python, own_bundle, pacs, sent, work):
    with serve(label_python, own_bundle, pacs.dicomweb, work) as client:
        yield client


def test_lists_radiographs_and_nothing_else(server, sent):
    assert server.get("/datastore/", output="all")["images"] == sorted(sent)
    assert server.get("/datastore/") == {"total": len(sent), "completed": 0, "label_tags": {}}


def test_answers_as_for_the_file_that_was_sent(server, sent, own_bundle, tmp_path):
    expected = probabilities(own_bundle, list(sent.values()), tmp_path / "out")
    kinds = set()
    for uid, path in sent.items():
        answer = server.infer(uid)
        np.testing.assert_allclose(said(answer), expected[path.name], atol=1e-4)
        assert answer["record"]["image"]["path"] == f"{uid}.dcm"
        ds = pydicom.dcmread(path)
        kinds.add((ds.Modality, ds.PhotometricInterpretation))
    assert len(kinds) == 4


def test_an_image_that_the_pacs_has_not_is_not_found(server):
    for image in ("1.2.3.4", "../../../etc/hostname", "*"):
        with pytest.raises(Refused, match="404: there is no image"):
            server.infer(image)


def test_keeps_findings_here_and_writes_nothing_to_the_pacs(server, pacs, sent, work):
    before, uid = pacs.changes(), server.next()["id"]
    assert uid in sent
    record = server.store(uid, {"findings": {"Edema": "present"}, "reader": "Dr. A"})["record"]
    assert verify(record) == []
    assert json.loads((work / "work" / "pacs" / "labels" / "final" / f"{uid}.json").read_text()) == record
    assert server.next()["id"] != uid
    assert server.get("/datastore/")["completed"] == 1
    assert pacs.changes() == before


def test_new_images_are_seen_at_once(server, pacs, sent, finished, tmp_path):
    extra = [path for path in make_images(finished, tmp_path / "more", 16)[0][12:] if path.suffix == ".dcm"]
    pacs.store(*extra)
    uids = {str(pydicom.dcmread(path).SOPInstanceUID) for path in extra}
    assert set(server.get("/datastore/", output="all")["images"]) == set(sent) | uids


def test_a_filter_of_ones_own(label_python, own_bundle, pacs, sent, tmp_path, monkeypatch):
    only = next(uid for uid, path in sent.items() if pydicom.dcmread(path).Modality == "CR")
    patient = str(pydicom.dcmread(sent[only]).PatientID)
    wanted = [uid for uid, path in sent.items() if pydicom.dcmread(path).PatientID == patient]
    wanted = sorted(uid for uid in wanted if pydicom.dcmread(sent[uid]).Modality == "CR")
    search = json.dumps({"Modality": ["CR", "MG"], "PatientID": patient})
    settings = {"MONAI_LABEL_DICOMWEB_SEARCH_FILTER": search}
    with serve(label_python, own_bundle, pacs.dicomweb, tmp_path, settings=settings) as client:
        assert client.get("/datastore/", output="all")["images"] == wanted


def test_a_pacs_that_is_gone_is_told_in_one_line(label_python, own_bundle, finished, tmp_path):
    if told := missing():
        pytest.skip(told)
    path = next(one for one in make_images(finished, tmp_path / "xrays", 3)[0] if one.suffix == ".dcm")
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    for name in ("orthanc", "server"):
        (tmp_path / name).mkdir()
    with orthanc(label_python, tmp_path / "orthanc") as gone:
        gone.store(path)
        with serve(label_python, own_bundle, gone.dicomweb, tmp_path / "server") as client:
            client.infer(uid)
            gone.process.terminate()
            gone.process.wait(30)
            start = time.monotonic()
            with pytest.raises(Refused, match=r"502: http://127.0.0.1:\d+/dicom-web does not answer"):
                client.next()
            with pytest.raises(Refused, match="502"):
                client.infer("1.2.3")
            assert time.monotonic() - start < 15
            assert said(client.infer(uid)).shape == (len(finished.fields),)  # fetched before, and answered still


@pytest.mark.real_data
def test_real_radiographs_through_a_real_pacs(label_python, bundle, real_data, tmp_path):
    if told := missing():
        pytest.skip(told)
    sources = sorted((real_data / "cr_dicom").glob("*.dcm"))
    assert sources
    paths = []
    for i, source in enumerate(sources):  # both have the identity of one image
        ds = pydicom.dcmread(source)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SOPInstanceUID}.{i}"
        paths.append(tmp_path / source.name)
        ds.save_as(paths[-1])
    pngs, answers = sorted((real_data / "nih").rglob("*.png"))[:4], []
    for i, source in enumerate(pngs):
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("L"))
        tags = {"PatientID": f"made-{i}", "PatientName": "Made"}
        paths.append(dicom(tmp_path / f"{source.stem}.dcm", seed=1000 + i, inverted=i % 2 == 1, pixels=pixels, **tags))
    model = BundleModel(bundle)
    anything = shutil.copytree(bundle, tmp_path / bundle.name)  # the small model has seen nothing like them
    model.ood.limit = 1e9
    model.ood.save(anything / "models" / "assessment.safetensors")
    for name in ("orthanc", "server"):
        (tmp_path / name).mkdir()
    with orthanc(label_python, tmp_path / "orthanc") as pacs:
        pacs.store(*paths)
        with serve(label_python, anything, pacs.dicomweb, tmp_path / "server") as client:
            for path in paths:
                uid = str(pydicom.dcmread(path).SOPInstanceUID)
                answer = said(client.infer(uid))
                fetched = tmp_path / "server" / "work" / "pacs" / f"{uid}.dcm"
                np.testing.assert_array_equal(read_image(fetched), read_image(path))
                expected = model(model.preprocess.transform()({"image": str(path)})["image"][None])[0][0]
                np.testing.assert_allclose(answer, expected, atol=1e-4)
                answers.append(answer)
            for source, answer in zip(pngs, answers[len(sources) :], strict=True):
                np.testing.assert_allclose(said(client.infer_file(source)), answer, atol=1e-4)
    assert np.ptp(answers, axis=0).max() > 0.02
