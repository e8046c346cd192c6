"""Damaged files and requests: one line each, nothing from what cannot be read, and the server keeps serving."""

from pathlib import Path

import numpy as np
import pytest

from tests.deploy.mutate import mutations
from tests.monailabel.conftest import make_images, said
from tests.monailabel.server import Refused, serve

pytestmark = pytest.mark.monailabel

N = 50  # damaged files of each kind


@pytest.fixture(scope="module")
def images(finished, tmp_path_factory) -> dict[str, Path]:
    """A PNG, a JPEG and a DICOM file that are answered."""
    paths, _ = make_images(finished, tmp_path_factory.mktemp("images") / "xrays", 3)
    return {path.suffix: path for path in paths}


@pytest.fixture(scope="module")
def damaged(images, tmp_path_factory) -> list[Path]:
    """N damaged files of each; of every four the first is cut short."""
    folder, paths = tmp_path_factory.mktemp("damaged"), []
    for s, (suffix, source) in enumerate(images.items()):
        for i, content in enumerate(mutations(source.read_bytes(), N, seed=s)):
            paths.append(folder / f"{suffix[1:]}-{'cut' if i % 4 == 0 else 'turned'}-{i:03d}{suffix}")
            paths[-1].write_bytes(content)
    return paths


@pytest.fixture(scope="module")
def server(label_python, own_bundle, images, damaged, tmp_path_factory):
    with serve(label_python, own_bundle, damaged[0].parent, tmp_path_factory.mktemp("server")) as client:
        yield client


def harmless(refused: Refused) -> None:
    assert 400 <= refused.code < 500, refused
    assert "Traceback" not in str(refused.detail)
    assert "Doe" not in str(refused.detail)


def one_line(refused: Refused) -> None:
    harmless(refused)
    assert isinstance(refused.detail, str)
    assert 0 < len(refused.detail) <= 400
    assert "\n" not in refused.detail


@pytest.mark.parametrize("way", ["uploaded", "in the folder"])
def test_damaged_images_are_answered_or_refused_in_one_line(server, images, damaged, way):
    before = {suffix: said(server.infer_file(path)) for suffix, path in images.items()}
    refusals = 0
    for path in damaged:
        try:
            answer = server.infer_file(path) if way == "uploaded" else server.infer(path.stem)
        except Refused as refused:
            one_line(refused)
            refusals += 1
            continue
        assert "cut" not in path.stem, path
        if answer["status"] == "answered":
            assert all(0 <= one <= 1 for one in said(answer))
        else:
            assert (answer["status"], answer["findings"]) == ("not assessed", {})
    assert refusals > len(damaged) / 3
    for suffix, path in images.items():
        np.testing.assert_array_equal(said(server.infer_file(path)), before[suffix])


BODIES = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'"text"',
    b"null",
    b"[" * 100_000,
    b'{"max_epochs": "many"}',
    b'{"max_epochs": 1e999}',
    b'{"max_epochs": {}}',
    b'{"learning_rate": Infinity}',
    b'{"learning_rate": NaN}',
    b'{"batch_size": -1}',
    b'{"val_split": []}',
    b'{"max_epochs": "\\ud800"}',
    b'{"model": "another"}',
    b'{"model": []}',
    b'{"model": null}',
    b'{"method": {}, "strategy": {}}',
    b'{"client_id": "\\ud800"}',
    b'{"client_id": Infinity}',
    b'{"method": "another", "strategy": "another"}',
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_damaged_requests_are_refused_or_harmless(server, images, body):
    before = said(server.infer_file(images[".png"]))
    for path in (f"/train/{server.model}", "/activelearning/least_sure", "/scoring/uncertainty"):
        try:
            server._send("POST", path, {"run_sync": "true"}, (body, "application/json"))
        except Refused as refused:
            harmless(refused)
        else:
            assert "train" not in path, "there are no findings to train on"
    np.testing.assert_array_equal(said(server.infer_file(images[".png"])), before)


FINDINGS = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"findings": []}',
    b'{"findings": {"Edema": 1}}',
    b'{"findings": {"Edema": {}}}',
    b'{"findings": {"' + b"x" * 5000 + b'": "present"}}',
    b'{"findings": {"Edema": NaN}}',
    b'{"findings": {"Edema": "pres\\nent"}}',
    b'{"findings": {"\\ud800": "present"}}',
    b'{"findings": {"Edema": "\\ud800"}}',
    b'{"findings": {"Edema": "present"}, "reader": "\\ud800"}',
    b'{"findings": {"Edema": "present"}, "reader": 1}',
    b'{"findings": {"Edema": "present"}, "\\ud800": 1}',
    b'{"findings": {"Edema": "present", "Edema": "absent"}}',
    b'{"\\ud800": 1, "\\ud800": 2}',
]


@pytest.mark.parametrize("said_by_reader", FINDINGS, ids=range(len(FINDINGS)))
def test_damaged_findings_are_refused_in_one_line(server, said_by_reader):
    image = next(iter(server.get("/datastore/", output="all")["objects"]))
    with pytest.raises(Refused) as refused:
        server.store(image, said_by_reader)
    one_line(refused.value)
    assert server.get("/datastore/")["completed"] == 0


@pytest.mark.parametrize("comment", [b'"\\ud800"', b"NaN"])
def test_what_no_response_could_hold_is_not_stored_beside_findings(server, comment):
    image = next(iter(server.get("/datastore/", output="all")["objects"]))
    with pytest.raises(Refused) as refused:
        server.store(image, {"findings": {"Edema": "present"}}, params=b'{"comment": ' + comment + b"}")
    one_line(refused.value)
    assert server.get("/datastore/")["completed"] == 0
    assert image in server.get("/datastore/", output="all")["objects"]
