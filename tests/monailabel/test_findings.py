"""Readers' findings are stored as records, and the model is held against them."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.monailabel.conftest import make_images, said, words
from tests.monailabel.server import Refused, serve
from vivid_monai.ums.record import Record
from vivid_monai.ums.verify import verify

pytestmark = pytest.mark.monailabel


@pytest.fixture(scope="module")
def images(finished, tmp_path_factory):
    return make_images(finished, tmp_path_factory.mktemp("images") / "xrays", 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def module_server(label_python, own_bundle, images, folder):
    with serve(label_python, own_bundle, images[0][0].parent, folder) as client:
        yield client


@pytest.fixture
def labels(images):
    return images[0][0].parent / "labels"


@pytest.fixture
def server(module_server, labels):
    """The server, with nothing stored."""
    shutil.rmtree(labels, ignore_errors=True)
    return module_server


def entropy(answer: dict) -> float:
    p = np.array([one["probability"] for one in answer["findings"].values() if one["state"] is not None])
    assert len(p) > 0
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean())


def test_findings_become_a_record(server, labels):
    findings = {"Edema": "present", "Lung Opacity": "uncertain", "Fracture": "absent", "Pneumonia": None}
    answer = server.store("made000", {"findings": findings, "reader": "Dr. Ä"})
    stored = json.loads((labels / "final" / "made000.json").read_text(encoding="utf-8"))
    assert answer["record"] == stored
    assert verify(stored) == []
    record = Record.from_dict(stored)
    assert {field: finding.state for field, finding in record.findings.items()} == findings
    assert (record.provenance.source, record.provenance.reader) == ("human", "Dr. Ä")
    assert (record.image.path, record.label_space) == ("made000.png", "chexpert-12")
    assert server.get("/datastore/label", label="made000", tag="final") == stored
    assert server.get("/datastore/")["completed"] == 1


def test_without_a_reader_none_is_named(server):
    assert "reader" not in server.store("made001", {"findings": {"Edema": "absent"}})["record"]["provenance"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ({"findings": {"Oedema": "present"}}, "'Oedema' is no field"),
        ({"findings": {"Edema": "perhaps"}}, "Edema: 'perhaps' is no state"),
        ({"findings": {"Edema": 1}}, "Edema: 1 is no state"),
        ({"findings": {"Edema": ["present"]}}, "is no state"),
        ({"findings": {"Edema": "present", "Lung Opacity": "absent"}}, "Edema is present and Lung Opacity"),
        ({"findings": {}}, "findings are missing"),
        ({"findings": {"Edema": "present"}, "reader": ""}, "reader must be a name"),
        ({"findings": {"Edema": "present"}, "score": 1}, "not 'score'"),
        ([], "not a JSON object"),
        (b'{"findings": ', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"findings": {"Edema": "present", "Edema": "absent"}}', "Edema: said twice"),
    ],
)
def test_refuses_what_cannot_be_stored(server, labels, what, told):
    with pytest.raises(Refused) as refused:
        server.store("made000", what)
    assert refused.value.code == 422
    assert told in refused.value.detail
    assert "\n" not in refused.value.detail
    assert not list(labels.rglob("*.json"))


def test_findings_belong_to_an_image_that_is_there_and_to_one_tag(server, labels):
    with pytest.raises(Refused, match="404"):
        server.store("made999", {"findings": {"Edema": "present"}})
    with pytest.raises(Refused, match="422: not stored: findings have the tag final"):
        server.store("made000", {"findings": {"Edema": "present"}}, tag="../../elsewhere")
    assert not list(labels.rglob("*.json"))
    with pytest.raises(Refused, match="404"):
        server.get("/datastore/label", label="../../datastore_v2", tag="final")


def test_findings_that_are_replaced_are_kept(server, labels):
    for state in ("present", "absent", "uncertain"):
        server.store("made000", {"findings": {"Edema": state}})
    kept = sorted((labels / "replaced").glob("made000-*.json"))
    states = [json.loads(path.read_text())["findings"]["Edema"]["state"] for path in kept]
    assert states == ["present", "absent"]


def test_offers_the_image_it_is_least_sure_of(server, images):
    names = [path.stem for path in images[0]]
    order = sorted(names, key=lambda name: -entropy(server.infer(name)))
    assert len({round(entropy(server.infer(name)), 4) for name in names}) == len(names)
    for i, name in enumerate(order):
        offered = server.next()
        assert (offered["id"], offered["of_images"]) == (name, len(names) - i)
        assert offered["uncertainty"] == pytest.approx(entropy(server.infer(name)), abs=1e-4)
        server.store(name, {"findings": {"Edema": "absent"}})
    assert server.next() == {}


def test_scores_the_model_by_the_stored_findings(server, finished, images):
    paths, states = images
    stored = [words(finished.fields, one) for one in states]
    for path, findings in zip(paths, stored, strict=True):
        server.store(path.stem, {"findings": findings})
    score = server.score("agreement")
    answers = [server.infer(path.stem) for path in paths]
    p, values = np.array([said(answer) for answer in answers]), []
    for i, field in enumerate(finished.fields):
        told = score["fields"][field]
        known = [j for j in range(len(paths)) if stored[j][field] in ("present", "absent")]
        y = np.array([stored[j][field] == "present" for j in known])
        assert (told["present"], told["absent"]) == (y.sum(), len(y) - y.sum())
        assert (told["auroc"] is None) == (y.all() or not y.any())
        if told["auroc"] is not None:
            values.append(roc_auc_score(y, p[known, i]))
            assert told["auroc"] == pytest.approx(values[-1], abs=1e-6)
        own = [answer["findings"][field]["state"] for answer in answers]
        if own[0] is not None:
            assert told["compared"] == len(own)
            assert told["same_state"] == pytest.approx(
                np.mean([a == b[field] for a, b in zip(own, stored, strict=True)])
            )
    assert len(values) > 3
    assert score["macro_auroc"] == pytest.approx(np.mean(values), abs=1e-6)
    assert (score["images"], score["weights"], score["not_answered"]) == (len(paths), "bundle", {})


def test_tells_how_unsure_it_is_of_each_image(server, images):
    told = server.score("uncertainty")
    assert set(told["images"]) == {path.stem for path in images[0]}
    for name, value in told["images"].items():
        assert value == pytest.approx(entropy(server.infer(name)), abs=1e-4)


def test_findings_are_there_after_a_restart(server, label_python, own_bundle, images, tmp_path):
    server.store("made003", {"findings": {"Edema": "present"}})
    with serve(label_python, own_bundle, images[0][0].parent, tmp_path) as second:
        assert second.get("/datastore/")["completed"] == 1
        assert second.get("/datastore/label", label="made003", tag="final")["findings"] == {
            "Edema": {"state": "present"}
        }
