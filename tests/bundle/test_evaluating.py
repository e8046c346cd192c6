"""The evaluation workflow of the bundle, task by task."""

import json
import os

import monai.bundle
import nibabel
import numpy as np
import pyarrow as pa
import pytest

from tests.bundle.conftest import ROOT, SMALL
from tests.evaluation.encoders.saved_models import rad_dino, saved
from tests.evaluation.small import data_set, encoder
from tests.processes import run_module
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError, find_cause
from vivid_monai.evaluation.examples import Examples
from vivid_monai.evaluation.probes import load_probe
from vivid_monai.evaluation.results import Results, read_predictions
from vivid_monai.evaluation.workflows import default_encoder, named
from vivid_monai.networks.modules import save_module
from vivid_monai.networks.spd import SPD

FEW = {"min_present": 1, "min_absent": 1, "n_resamples": 50}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """An encoder of random weights with its SPD beside it, as a training run leaves them."""
    folder = tmp_path_factory.mktemp("run")
    one = encoder(5)
    save_module(one.network, folder / "pretrained_vit.safetensors", kind="vit", preprocess=one.preprocess.to_dict())
    save_module(SPD(dim=one.network.embed_dim, groups=3, queries=2), folder / "spd.safetensors", kind="spd")
    return folder / "pretrained_vit.safetensors"


@pytest.fixture
def evaluating(tmp_path, weights):
    """Function that runs the workflow of a task in this process; returns the folder of its results."""
    outs = []

    def run(task, **knobs):
        outs.append(out := tmp_path / ("out" if not outs else f"out{len(outs)}"))
        options = {"encoder": str(weights), "output_dir": str(out), "cache_dir": str(tmp_path / "features"), **FEW}
        config = [str(ROOT / "configs" / "evaluate.json"), str(ROOT / "configs" / "eval" / f"{task}.json")]
        monai.bundle.run(run_id="evaluating", config_file=config, logging_file=False, **{**options, **knobs})
        return out

    return run


def test_phantoms_as_a_user_runs_it_twice(tmp_path, weights, phantoms):
    config = [str(ROOT / "configs" / name) for name in ("evaluate.json", "eval/phantom.json")]
    knobs = {"encoder": weights, "phantom_images": SMALL["phantom_images"], "phantom_size": SMALL["image_size"]}
    knobs |= {"dataset_dir": phantoms, "bundle_root": tmp_path, **FEW}
    options = [part for key, value in knobs.items() for part in (f"--{key}", str(value))]
    command = ["run", "evaluating", "--config_file", str(config), *options]
    outputs = []
    for number in ("001", "002"):
        done = run_module("monai.bundle", command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append(done)
        folder = tmp_path / "runs" / "eval" / "phantom" / number
        for name in ("results.json", "metrics.csv", "predictions.csv", "report.html", "examples.npz", "config.json"):
            assert (folder / name).stat().st_size
        assert f"Next: open {folder.relative_to(tmp_path)}" in done.stdout.replace(str(tmp_path) + "/", "")
        assert "macro AUROC" in done.stdout
    assert outputs[0].stderr.count(", now in ") == 6  # three splits of two encoders
    assert outputs[1].stderr.count(", now in ") == 0
    first, second = (Results.load(tmp_path / f"runs/eval/phantom/{n}/results.json") for n in ("001", "002"))
    assert [row for row in first.rows if row.encoder == "encoder"] == [
        row for row in second.rows if row.encoder == "encoder"
    ]
    assert list(first.encoders) == ["encoder", "untrained"]
    assert first.run["command"].startswith("python -m monai.bundle run evaluating --config_file")


def test_transfer(evaluating, tmp_path):
    chexpert = data_set(tmp_path / "chexpert", space="chexpert-14", dataset="chexpert")
    nih = data_set(tmp_path / "nih", space="nih-14", dataset="nih", seed=1)
    out = evaluating("nih_transfer", source_dir=str(chexpert.image_root), dataset_dir=str(nih.image_root))
    results = Results.load(out / "results.json")
    assert results.fields[-1] == "No Finding"
    assert (results.run["data"]["dataset"], results.run["data"]["source"]) == ("nih", "chexpert")
    assert "No Finding" in results.excluded  # in this data set every image has a finding
    assert results.test["n_images"] == len(nih.select("test"))


def test_organs_are_a_choice_between_classes(evaluating, tmp_path, weights):
    organs = data_set(tmp_path / "organs", space="organamnist-11", dataset="organs", n=180)
    out = evaluating("organamnist", dataset_dir=str(organs.image_root))
    results = Results.load(out / "results.json")
    predictions = read_predictions(out / "predictions.csv")
    np.testing.assert_allclose(predictions.scores["encoder"].sum(-1), 1, atol=1e-6)
    truth, predicted = predictions.states.argmax(1), predictions.scores["encoder"][0].argmax(1)
    assert results.get("accuracy", "(all)", "encoder").value == np.mean(truth == predicted)
    probe, fields = load_probe(out / "probes" / "encoder-0.safetensors", encoder=encoder(5).fingerprint())
    assert probe.exclusive
    assert fields == organs.fields


def crops(folder):
    """CT crops of three slices as `vivid prepare lidc` leaves them: malignant ones are dense."""
    rng = np.random.default_rng(0)
    (folder / "crops").mkdir(parents=True)
    rows = []
    for i in range(60):
        state = i % 2 if i % 5 else 2
        volume = rng.normal(-700 + 500 * (state == 1), 100, (20, 20, 3)).astype(np.int16)
        nibabel.Nifti1Image(volume, np.eye(4)).to_filename(folder / "crops" / f"{i}.nii")
        row = {"id": f"n{i}", "image": f"crops/{i}.nii", "slice": 1, "slices": 3, "patient_id": f"p{i}"}
        row |= {"split": ("train", "train", "val", "test", "test", "test")[i % 6], "dataset": "lidc", "modality": "CT"}
        row |= {"anatomy": "chest", "labeller": "readers", "source": "human", "finding.Malignancy": state}
        rows.append(row)
    manifest = Manifest(pa.Table.from_pylist(rows), label_space="lidc-malignancy", image_root=folder)
    return manifest.save(folder / "manifest.parquet")


@pytest.mark.parametrize(("slices", "dim"), [(1, 128), (3, 384)])
def test_nodules_are_seen_through_the_window_in_one_slice_or_three(evaluating, tmp_path, slices, dim):
    manifest = crops(tmp_path / "lidc")
    out = evaluating("lidc_malignancy", manifest=str(manifest), slices=slices)
    results = Results.load(out / "results.json")
    told = results.encoders["encoder"]["encoder"]
    assert (told["dim"], told["preprocess"]["slices"], told["preprocess"]["window"]) == (dim, slices, [-600, 1500])
    assert results.test["n_uncertain"] == {"Malignancy": 6}
    assert results.get("auroc", "Malignancy", "encoder").value > 0.9
    examples = Examples.load(out / "examples.npz")
    assert examples.images.max() < 255, "the middle of the window is not white"


def test_several_runs_of_one_recipe_are_its_seeds(evaluating, tmp_path, weights):
    data = data_set(tmp_path / "data")
    other = tmp_path / "other.safetensors"
    save_module(encoder(1).network, other, kind="vit", preprocess=encoder().preprocess.to_dict())
    encoders = {"ours": [str(weights), str(other)], "single": str(weights)}
    knobs = {"manifest": str(data.image_root / "manifest.parquet"), "fields": data.fields[:4]}
    out = evaluating("table", encoder=encoders, baseline="none", **knobs)
    results = Results.load(out / "results.json")
    assert results.seeds == [0, 1]
    ours, single = (results.per_seed("auroc", "(macro)", name) for name in ("ours", "single"))
    assert ours[0] == single[0] == single[1]
    assert ours[1] != ours[0]
    assert [(one.encoder, one.minus) for one in results.differences] == [("ours", "single")] * 2


def test_the_baseline_of_another_librarys_encoder_is_its_own_network(evaluating, tmp_path):
    data = data_set(tmp_path / "data")
    saved(rad_dino, tmp_path / "theirs")
    spec = f"transformers:{tmp_path / 'theirs'}"
    out = evaluating("table", encoder=spec, manifest=str(data.image_root / "manifest.parquet"), fields=data.fields[:4])
    told = {name: one["encoder"] for name, one in Results.load(out / "results.json").encoders.items()}
    assert list(told) == ["encoder", "untrained"]
    assert told["untrained"]["source"] == f"untrained:{spec} (seed 0)"
    apart = {key for key in told["encoder"] if told["encoder"][key] != told["untrained"][key]}
    assert apart == {"source", "fingerprint"}


def test_seeds_change_what_they_should(evaluating, tmp_path):
    data = data_set(tmp_path / "data", n=180)
    knobs = {"manifest": str(data.image_root / "manifest.parquet"), "seeds": [0, 1], "baseline": "none"}
    knobs["fields"] = data.fields[:4]
    linear = read_predictions(evaluating("table", **knobs) / "predictions.csv").scores["encoder"]
    np.testing.assert_array_equal(linear[0], linear[1])
    fewer = read_predictions(evaluating("table", train_fraction=0.5, **knobs) / "predictions.csv")
    assert (fewer.scores["encoder"][0] != fewer.scores["encoder"][1]).any()
    assert fewer.ids.tolist() == data.select("test").table["id"].to_pylist()


def test_unreadable_images_of_every_split_are_left_out_and_listed(evaluating, tmp_path):
    data = data_set(tmp_path / "data")
    broken = [data.image_root / data.select(split).table["image"][0].as_py() for split in ("train", "val", "test")]
    whole = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(path.read_bytes()[:40])
    knobs = {"manifest": str(data.image_root / "manifest.parquet"), "fields": data.fields[:4]}
    out = evaluating("table", **knobs)
    results = Results.load(out / "results.json")
    assert results.test["n_images"] == len(data.select("test")) - 1
    assert {path for path, _ in results.skipped} == {str(path) for path in broken}
    assert all(str(path) in (out / "skipped.csv").read_text() for path in broken)
    assert "3 images could not be read" in " ".join(results.warnings)
    for path, content in zip(broken, whole, strict=True):
        path.write_bytes(content)
    (out / "report.html").unlink()  # as if it had been interrupted; otherwise the folder is refused
    evaluating("table", **knobs, output_dir=str(out))
    assert not Results.load(out / "results.json").skipped
    assert not (out / "skipped.csv").exists()


@pytest.mark.parametrize(
    ("specs", "told"),
    [
        ({}, "no encoder"),
        ({"a": []}, "no encoder"),
        ({"a@1": "x"}, "cannot name"),
        ({"untrained": "x"}, "is taken"),
        ("", "no encoder"),
    ],
)
def test_encoders_need_names_and_files(specs, told):
    with pytest.raises(VividError, match=told):
        named(specs)


def test_every_task_config_names_knobs_that_exist():
    known = set(json.loads((ROOT / "configs" / "evaluate.json").read_text()))
    tasks = sorted((ROOT / "configs" / "eval").glob("*.json"))
    assert {path.stem for path in tasks} == {
        *("chexpert_probe", "nih_probe", "nih_transfer", "lidc_malignancy", "organamnist", "phantom", "table")
    }
    for path in tasks:
        overlay = json.loads(path.read_text())
        assert overlay["task"] == path.stem
        new = set(overlay) - known
        text = path.read_text()
        assert all(f"@{name}" in text for name in new), f"{path.name}: {new} is used by nothing"


def test_the_folder_of_another_run_is_refused_before_anything_is_computed(evaluating, tmp_path):
    data_set(tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("of another")
    with pytest.raises(RuntimeError) as raised:
        evaluating("table", dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"))
    assert f"{tmp_path / 'out'} holds an evaluation already" in str(find_cause(raised.value))
    assert not (tmp_path / "features").exists()
    (tmp_path / "out" / "report.html").rename(tmp_path / "out" / "initial_vit.safetensors")
    with pytest.raises(RuntimeError) as raised:
        evaluating("table", dataset_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "out"))
    assert f"{tmp_path / 'out'} holds a run that has not saved yet" in str(find_cause(raised.value))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["initial_vit.safetensors"]
    assert not (tmp_path / "features").exists()


def test_the_default_encoder_is_the_published_one_else_that_of_the_newest_finished_run(tmp_path, caplog):
    with pytest.raises(VividError, match=r"no finished training in .*; train one, or name one with --encoder FILE"):
        default_encoder(tmp_path)
    for number, (name, ended) in enumerate({"old": 3, "new": 7, "unfinished": None, "smoke": 5}.items()):
        folder = tmp_path / "runs" / name / f"{number:03d}"
        folder.mkdir(parents=True)
        (folder / "pretrained_vit.safetensors").write_text("weights")
        if ended is not None:
            (folder / "results.json").write_text("{}")
            os.utime(folder / "results.json", (ended, ended))
    (tmp_path / "runs" / "eval" / "phantom").mkdir(parents=True)
    (tmp_path / "runs" / "eval" / "results.json").write_text("{}")
    newest = str(tmp_path / "runs" / "new" / "001" / "pretrained_vit.safetensors")
    assert default_encoder(tmp_path) == newest
    assert caplog.messages == [
        f"Evaluated is {newest}, of the newest finished run; another: --encoder FILE, or a run's folder"
    ]
    published = tmp_path / "models" / "pretrained_vit.safetensors"
    published.parent.mkdir()
    published.write_text("weights")
    assert default_encoder(tmp_path) == str(published)
    assert "the published one" in caplog.messages[1]
