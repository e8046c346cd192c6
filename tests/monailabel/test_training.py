"""Training on the stored findings: the new weights answer at once, and the old ones stay."""

import json
import shutil
import time

import numpy as np
import pydicom
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.monailabel.conftest import make_images, said, words
from tests.monailabel.server import Refused, serve
from vivid_monai.deploy.model import BundleModel
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.monailabel


@pytest.fixture(scope="module")
def images(finished, tmp_path_factory):
    return make_images(finished, tmp_path_factory.mktemp("images") / "xrays", 60)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(label_python, own_bundle, images, work):
    with serve(label_python, own_bundle, images[0][0].parent, work) as client:
        yield client


@pytest.fixture(scope="module")
def before(server, images):
    """The answers of the bundle's own weights."""
    return {path.stem: said(server.infer(path.stem)) for path in images[0]}


@pytest.fixture(scope="module")
def told(server, before, images, finished):
    """What the first training says of itself; every image has findings."""
    for path, states in zip(*images, strict=True):
        server.store(path.stem, {"findings": words(finished.fields, states)})
    return server.train(max_epochs=3, learning_rate=0.001, val_split=0.3)


@pytest.fixture
def lists(told, work):
    return json.loads((work / "work" / "trained" / "0001" / "datalist.json").read_text())


def served_by(weights, own_bundle, path) -> np.ndarray:
    """Probabilities (F,) of an image by a file of weights, in this package."""
    model = BundleModel(own_bundle)
    config = json.loads((own_bundle / "configs" / "metadata.json").read_text())["vivid"]
    state = torch.load(weights, weights_only=True)
    network = Classifier(ViT(**config["config"]), len(state["head.bias"]), pool=config["pool"]).eval()
    network.load_state_dict(state)
    with torch.inference_mode():
        image = model.preprocess.transform()({"image": str(path)})["image"]
        return torch.sigmoid(network(image[None]))[0].numpy()


def test_refuses_to_train_on_too_little(server, before, images, work, finished):
    for path, states in zip(images[0][:1], images[1][:1], strict=True):
        server.store(path.stem, {"findings": words(finished.fields, states)})
    with pytest.raises(Refused, match=r"422: not trained: of 1 images with findings, \d are held out|no findings"):
        server.train()
    for options in ({"max_epochs": 0}, {"learning_rate": "fast"}, {"val_split": 1}):
        with pytest.raises(Refused, match=f"422: not trained: {next(iter(options))} is"):
            server.train(**options)
    assert not list((work / "work").rglob("model.pt"))


def test_says_what_it_was_trained_on(told, server, images, finished, lists, own_bundle):
    n = {name: len(one) for name, one in lists.items()}
    assert (told["training_images"], told["validation_images"]) == (n["training"], n["validation"])
    assert sum(n.values()) == len(images[0])
    assert min(n.values()) > 5
    labels = np.array([one["label"] for one in lists["training"]])
    for i, field in enumerate(finished.fields):
        assert told["labels"][field] == {"present": (labels[:, i] == 1).sum(), "absent": (labels[:, i] == 0).sum()}
    assert (told["weights"], told["started_from"]) == ("0001", "bundle")
    assert told["options"] == {"max_epochs": 3, "learning_rate": 0.001, "batch_size": 16, "val_split": 0.3}
    assert "bundle's own weights" in told["calibration"]
    assert server.get("/info/")["train_stats"][own_bundle.name]["0001"] == told


def test_trains_on_what_readers_said_by_patient(images, finished, lists):
    stored = {str(path): words(finished.fields, states) for path, states in zip(*images, strict=True)}
    known = {"present": 1, "absent": 0}
    codes = set()
    for one in lists["training"] + lists["validation"]:
        expected = [known.get(state, -1) for state in stored.pop(one["image"]).values()]
        assert one["label"] == expected
        codes |= set(expected)
    assert codes == {1, 0, -1}
    patients = {
        name: {pydicom.dcmread(one["image"]).PatientID for one in part if one["image"].endswith(".dcm")}
        for name, part in lists.items()
    }
    assert all(patients.values())
    assert not patients["training"] & patients["validation"]


def test_the_new_weights_answer_and_the_old_are_kept(told, server, images, before, own_bundle, bundle, work):
    new = work / "work" / "trained" / "0001" / "model.pt"
    for path in images[0][:6]:
        answer = server.infer(path.stem)
        assert answer["weights"] == "0001"
        assert answer["record"]["provenance"]["labeller_version"].endswith("+0001")
        np.testing.assert_allclose(said(answer), served_by(new, own_bundle, path), atol=1e-4)
        assert np.abs(said(answer) - before[path.stem]).max() > 0.01
    assert (own_bundle / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()
    np.testing.assert_allclose(
        before["made000"], served_by(own_bundle / "models" / "model.pt", own_bundle, images[0][0]), atol=1e-4
    )


def test_what_is_assessed_stays_as_it_was(told, server, images, tmp_path):
    from PIL import Image

    assert all(server.infer(path.stem)["status"] == "answered" for path in images[0])
    noise = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert server.infer_file(tmp_path / "noise.png")["status"] == "not assessed"


def test_tells_what_the_training_was_good_for(told, before, server, finished, lists):
    name = {"bundle": before, "0001": {stem: said(server.infer(stem)) for stem in before}}
    y = np.array([one["label"] for one in lists["validation"]])
    stems = [one["image"].rsplit("/")[-1].split(".")[0] for one in lists["validation"]]
    for weights, answers in name.items():
        p = np.array([answers[stem] for stem in stems])
        values = [
            roc_auc_score(y[known, i], p[known, i]) for i, known in enumerate((y >= 0).T) if {0, 1} <= set(y[known, i])
        ]
        assert told["validation_macro_auroc"][weights] == pytest.approx(np.mean(values), abs=1e-4)


def test_agreement_leaves_out_what_was_trained_on(told, server):
    score = server.score("agreement")
    assert (score["left_out_as_trained_on"], score["images"]) == (told["training_images"], told["validation_images"])
    assert score["weights"] == "0001"


def test_trains_in_the_background_and_goes_back(told, server, own_bundle, images, work):
    trained = work / "work" / "trained"
    first, answer = (trained / "0001" / "model.pt").read_bytes(), said(server.infer("made000"))
    server.post(f"/train/{own_bundle.name}", {"max_epochs": 1, "val_split": 0.3, "learning_rate": 0.01})
    end = time.monotonic() + 300
    while (status := server.get("/train/"))["status"] in ("SUBMITTED", "RUNNING"):
        assert time.monotonic() < end, status
        assert server.infer("made000")["weights"] in ("0001", "0002")
        time.sleep(1)
    assert status["status"] == "DONE", status
    second = server.infer("made000")
    assert second["weights"] == "0002"
    np.testing.assert_allclose(
        said(second), served_by(trained / "0002" / "model.pt", own_bundle, images[0][0]), atol=1e-4
    )
    assert (trained / "0001" / "model.pt").read_bytes() == first
    shutil.move(trained / "0002", work / "put-away")
    assert server.infer("made000")["weights"] == "0001"
    np.testing.assert_allclose(said(server.infer("made000")), answer, atol=1e-6)
    assert len(server.get("/datastore/", output="train")) == len(images[0])
