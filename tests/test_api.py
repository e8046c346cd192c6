"""The functions of `vivid_monai`: what they give is what the commands give."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import numpy as np
import pytest

import vivid_monai
from tests.bundle import conftest as small
from tests.bundle.test_finetuning import KNOBS, make_start
from tests.test_docs import blocks
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.results import Results
from vivid_monai.images.read import ImageError
from vivid_monai.prepare.phantoms import prepare

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle" / "chest_phantom_vit_classification"
FEW = {"min_present": 1, "min_absent": 1, "n_resamples": 50}
phantoms, bundle, forks = small.phantoms, small.bundle, small.forks


@pytest.fixture(scope="module")
def manifest(phantoms) -> Manifest:
    return vivid_monai.Manifest.load(phantoms / "manifest.parquet")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return make_start(tmp_path_factory.mktemp("start"))


def images_of(manifest: Manifest) -> list[str]:
    return [item["image"] for item in manifest.items()]


def test_the_pages_examples_run(forks, start, tmp_path, monkeypatch, capsys):
    made = prepare(tmp_path / "data" / "mine", n=600, size=32)
    (tmp_path / "encoder.safetensors").symlink_to(start)
    (tmp_path / "bundle").symlink_to(ROOT / "bundle")
    (tmp_path / "images").mkdir()
    for name, image in zip("ab", images_of(Manifest.load(made)), strict=False):
        (tmp_path / "images" / f"{name}.png").symlink_to(image)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for example in blocks("docs/python.md"):
        exec(compile(example, "docs/python.md", "exec"), names)
    told = capsys.readouterr().out
    assert told.count("test AUROC (95 % CI)") == 2
    assert "thumbnails" in told
    assert [Path(entry.image.path).name for entry in names["predictions"].entries] == ["a.png", "b.png"]
    assert len(names["x"]) == len(names["states"]) == len(names["train"])
    assert names["more"].shape == (2, names["x"].shape[1])
    assert set(names["rows"].columns) >= {"metric", "field", "encoder", "value", "low", "high"}
    assert set(names["model"].fields) == set(names["results"].fields)
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()


def test_the_package_alone_needs_no_pytorch():
    code = (
        "import sys, vivid_monai; assert 'finetune' in dir(vivid_monai); print(*{'torch', 'monai'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        vivid_monai.trane  # noqa: B018


def test_predictions_are_those_of_the_command(manifest, tmp_path, monkeypatch):
    kept = tmp_path / "temporary"
    kept.mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    images = [*images_of(manifest)[:5], str(tmp_path / "broken.png")]
    monkeypatch.setattr("tempfile.tempdir", str(kept))
    told = vivid_monai.predict(images, BUNDLE, batch_size=4)
    assert not any(kept.iterdir())
    assert main(["predict", *images, "--bundle", str(BUNDLE), "--out", str(tmp_path / "out"), "--batch-size", "4"]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(one.image.path, one.status) for one in told.entries] == [(row["image"], row["status"]) for row in rows]
    lines = (tmp_path / "out" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert [record.to_dict() for record in told.records()] == [json.loads(line) for line in lines]
    assert 0 < len(lines) < len(images)
    again = vivid_monai.predict(images, BUNDLE, tmp_path / "out", batch_size=4)
    assert (again.resumed, again.entries) == (len(images), told.entries)
    (one,) = vivid_monai.predict(images[0], BUNDLE, runtime="torch").entries
    np.testing.assert_allclose(one.probabilities, told.entries[0].probabilities, atol=1e-4)


def test_features_are_those_that_probes_see(manifest, start, phantoms):
    encoder, test = load_encoder(start), manifest.select("test")
    seen = FeatureStore(None, batch_size=8).features(encoder, manifest, "test", manifest.fields)
    for images in (test, images_of(test), map(Path, images_of(test))):
        told = vivid_monai.features(list(images) if isinstance(images, map) else images, start, batch_size=8)
        assert told.dtype == np.float32
        np.testing.assert_array_equal(told, seen.x)
    assert vivid_monai.features(manifest, encoder).shape == (len(manifest), encoder.dim)
    twice = [images_of(test)[0]] * 2
    np.testing.assert_array_equal(*vivid_monai.features(twice, start))
    alone = vivid_monai.load(start).features(twice[0])
    np.testing.assert_allclose(vivid_monai.features(twice[0], start)[0], alone, atol=1e-6)
    assert vivid_monai.features(test, start, pool="mean").shape == (len(test), encoder.network.embed_dim)
    with pytest.raises(VividError, match="has its pool"):
        vivid_monai.features(test, encoder, pool="mean")
    with pytest.raises(VividError, match="there is no image"):
        vivid_monai.features([], start)
    with pytest.raises(ImageError, match=r"card\.png.*leave it out"):
        vivid_monai.features([*images_of(test)[:3], phantoms / "card.png"], start)


def test_an_evaluation_is_that_of_the_workflow(manifest, start, phantoms, tmp_path):
    config = [str(ROOT / "configs" / name) for name in ("evaluate.json", "eval/table.json")]
    places = {
        "dataset_dir": str(phantoms),
        "output_dir": str(tmp_path / "command"),
        "cache_dir": str(tmp_path / "cache"),
    }
    monai.bundle.run(
        run_id="evaluating", config_file=config, logging_file=False, encoder=start, seeds=[0, 1], **places, **FEW
    )
    told = Results.load(tmp_path / "command" / "results.json")
    for data, where in ((manifest, None), (phantoms, tmp_path / "own"), ([phantoms / "manifest.parquet"], None)):
        results = vivid_monai.evaluate(Path(start), data, where, seeds=[0, 1], **FEW)
        assert results.rows == told.rows
        assert results.test == told.test
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "command", "own"]
    assert (tmp_path / "own" / "report.html").is_file()
    assert str(results).startswith("test AUROC (95 % CI)")
    assert repr(results) == str(results)
    fields, named = manifest.fields_with(1, "val", min_absent=1)[:2], {"a": start, "pixels": "thumbnails:8"}
    some = vivid_monai.evaluate(named, manifest, fields=fields, baseline="none", **FEW)
    assert (some.fields, list(some.encoders)) == (fields, ["a", "pixels"])
    with pytest.raises(VividError, match=r"evaluate has no option 'n_resample'; did you mean n_resamples\?"):
        vivid_monai.evaluate(start, manifest, n_resample=3)
    with pytest.raises(VividError, match="own"):
        vivid_monai.evaluate(start, manifest, tmp_path / "own")


def test_a_fine_tuning_is_that_of_the_workflow(bundle, forks, manifest, start, phantoms, tmp_path, monkeypatch):
    done = bundle("finetune.json", start=start, output_dir=tmp_path / "command", **KNOBS)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)  # where no configs are: they are the package's
    knobs = {**small.SMALL, **KNOBS}
    results = vivid_monai.finetune(start, manifest, tmp_path / "own", **knobs)
    told = Results.load(tmp_path / "command" / "results.json")
    assert results.rows == told.rows
    assert set(results.encoders) == {"fine-tuned", "frozen", "untrained"}
    assert vivid_monai.load("own").fields == tuple(results.fields)
    n = len(forks)
    assert vivid_monai.finetune(start, manifest, "own", **knobs).rows == told.rows
    assert len(forks) == n, "what is done is not done again"
    with pytest.raises(VividError, match="is another manifest"):
        vivid_monai.finetune(start, manifest.select("train"), "own", **knobs)
    with pytest.raises(VividError, match="max_epochs was 2 and is now 3"):
        vivid_monai.finetune(start, manifest, "own", **{**knobs, "max_epochs": 3})
    with pytest.raises(VividError, match="command"):
        vivid_monai.finetune(start, phantoms, "command", **knobs)
    assert (tmp_path / "command" / "model.pt").is_file()


def test_an_interrupted_fine_tuning_goes_on(forks, start, phantoms, tmp_path, monkeypatch):
    """A save that is there is gone on from, and one that cannot be is told of."""
    knobs = {**small.SMALL, **KNOBS, "max_epochs": 1, "warmup_steps": 1}
    whole = vivid_monai.finetune(start, phantoms, tmp_path / "own", **knobs)
    os.remove(tmp_path / "own" / "results.json")
    lines = len((tmp_path / "own" / "log.txt").read_text().splitlines())
    assert vivid_monai.finetune(start, phantoms, tmp_path / "own", **knobs).rows == whole.rows
    log = "\n".join((tmp_path / "own" / "log.txt").read_text().splitlines()[lines:])
    assert "resum" in log.lower()


def test_a_wrong_knob_costs_nothing(forks, start, phantoms, tmp_path):
    with pytest.raises(VividError, match=r"finetune has no option 'max_epoch'; did you mean max_epochs\?"):
        vivid_monai.finetune(start, phantoms, tmp_path / "own", max_epoch=1)
    assert not forks
    assert not (tmp_path / "own").exists()
    for wrong, words in (
        ({"drop_path": 2}, "drop_path is 2; it takes a number from 0 to 1"),
        ({"head": "deep"}, "head='deep'"),
    ):
        with pytest.raises(VividError, match=words) as caught:
            vivid_monai.finetune(start, phantoms, tmp_path / "own", **wrong)
        assert len(str(caught.value)) <= 300
    knobs = {**small.SMALL, **KNOBS, "max_epochs": 1, "warmup_steps": 1, "name": "007"}
    assert vivid_monai.finetune(start, phantoms, tmp_path / "own", **knobs).task == "007"
