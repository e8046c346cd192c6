"""`vivid_monai.load`: a bundle, a run and an encoder file, used from Python."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vivid_monai
from vivid_monai.deploy.model import BundleModel
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.probes import load_probe
from vivid_monai.images.read import ImageError
from vivid_monai.phantom import generate

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chest(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "chest.png"
    Image.fromarray(generate(seed=0, index=7, size=160).image).save(path)
    return path


def test_the_readmes_example_runs(chest, monkeypatch, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "chest.png").symlink_to(chest)
    (tmp_path / "bundle").symlink_to(ROOT / "bundle")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "README.md", "exec"), names)
    assert list(names["probabilities"]) == list(names["model"].fields)
    assert names["features"].dtype == np.float32
    assert names["features"].ndim == 1


def test_a_bundle_gives_its_calibrated_probabilities(bundle_folder, chest):
    model, bundle = vivid_monai.load(bundle_folder), BundleModel(bundle_folder, runtime="torch")
    image = bundle.preprocess.transform()({"image": str(chest)})["image"]
    expected, _ = bundle(torch.as_tensor(image)[None])
    rules = bundle.metadata["answers"]["fields"]
    told = model(chest)
    assert list(told) == [rule["field"] for rule in rules]
    assert any(p is not None for p in told.values())
    for rule, p in zip(rules, expected[0], strict=True):
        assert told[rule["field"]] is None if rule["unanswered"] else told[rule["field"]] == pytest.approx(p, abs=1e-6)
    features = bundle.classifier.features(torch.as_tensor(image)[None])
    assert np.array_equal(model.features(chest), features.detach()[0].numpy())


def test_a_run_gives_the_probabilities_of_its_probe(run, chest):
    model, encoder = vivid_monai.load(run), vivid_monai.load(run / "pretrained_vit.safetensors")
    assert np.array_equal(model.features(chest), encoder.features(chest))
    fingerprint = load_encoder(str(run / "pretrained_vit.safetensors")).fingerprint()
    probe, fields = load_probe(run / "probes" / "pretrained-0.safetensors", encoder=fingerprint)
    expected = probe.probabilities(model.features(chest)[None])[0]
    told = model(chest)
    assert tuple(told) == model.fields == tuple(fields)
    assert [p for p in told.values() if p is not None] == [
        p for i, p in enumerate(expected) if i not in probe.untrained
    ]


def test_an_encoder_alone_says_that_it_has_no_head(run, chest):
    encoder = vivid_monai.load(run / "pretrained_vit.safetensors")
    assert encoder.fields == ()
    with pytest.raises(VividError, match="no head"):
        encoder(chest)


def test_what_cannot_be_used_is_one_line(run, tmp_path):
    with pytest.raises(VividError, match="neither a bundle, nor the folder of a run"):
        vivid_monai.load(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match=r"broken\.png"):
        vivid_monai.load(run).features(tmp_path / "broken.png")
