"""An encoder of an evaluation becomes a bundle with its probe: every way gives the probe's answers, calibrated."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, logit

from tests.deploy.alone import check_every_way
from tests.evaluation.encoders import saved_models
from tests.evaluation.small import data_set, encoder
from vivid_monai.cli import main
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.bundle import classification
from vivid_monai.deploy.calibration import load_calibrated
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import TokenEncoder, load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.probes import load_probe
from vivid_monai.evaluation.task import Task
from vivid_monai.evaluation.workflows import run_evaluation
from vivid_monai.networks.modules import save_module

QUICK = {"lrs": [3e-3], "weight_decays": [0.01], "epochs": 12}
OUT = "made_xray_classification"


def ours(folder: Path) -> str:
    one, path = encoder(1), folder / "ours.safetensors"
    save_module(one.network, path, kind="vit", preprocess=one.preprocess.to_dict())
    return str(path)


def transformers(name: str):
    def make(folder: Path) -> str:
        saved_models.saved(getattr(saved_models, name), folder / name)
        return f"transformers:{folder / name}"

    return make


def evaluated(
    folder: Path, specs, *, n: int = 90, space: str = "chexpert-12", pool=None, source=None, **options
) -> Path:
    """The folder of an evaluation, its data beside it."""
    path = folder / "data" / "manifest.parquet"
    splits = ("train", "train", "val", "test")
    manifest = Manifest.load(path) if path.is_file() else data_set(folder / "data", n=n, space=space, splits=splits)
    shared = {} if source is None else {"source": source, "label_space": "chexpert-12"}
    task = Task(name="made", manifest=manifest, fields=manifest.fields, **shared)
    run_evaluation(
        task, FeatureStore(None), specs, output_dir=folder / "run", pool=pool, n_examples=0, n_resamples=50, **options
    )
    (folder / "run" / "config.json").write_text(json.dumps({"pool": pool}))  # of `monai.bundle run`
    return folder / "run"


@pytest.mark.parametrize(
    ("make", "probe", "pool"),
    [
        (ours, "linear", "cls+mean"),
        (transformers("rad_dino"), "attentive", None),
        (transformers("siglip_vision"), "linear", None),  # its own pooled output
        (transformers("siglip_vision"), "attentive", "pooled"),  # its tokens, though it was loaded for the other
    ],
)
def test_every_way_gives_the_calibrated_answers_of_the_probe(tmp_path, make, probe, pool):
    spec = make(tmp_path)
    options = {"probe_options": QUICK} if probe == "attentive" else {}
    specs = {"other": "thumbnails:4", "mine": spec} if probe == "linear" else {"mine": spec}
    run = evaluated(tmp_path, specs, n=480, pool=pool, probe=probe, **options)
    finished = load_calibrated(run, encoder="mine")
    assert (finished.name, finished.made) == ("mine", "fitted on its frozen features")

    frozen = load_encoder(spec, pool=pool)
    frozen = TokenEncoder(frozen) if probe == "attentive" else frozen
    fitted, fields = load_probe(run / "probes" / "mine-0.safetensors", encoder=frozen.fingerprint())
    test = FeatureStore(None).features(frozen, finished.manifest, "test", fields)
    slope, intercept = (
        np.array([getattr(one, name) for one in finished.calibrations]) for name in ("slope", "intercept")
    )
    expected = expit(logit(fitted.probabilities(test.x)) * slope + intercept)
    # An evaluation keeps tokens in 16 bits.
    np.testing.assert_allclose(
        finished.probabilities(finished.test.x), expected, rtol=0, atol=1e-5 if probe == "linear" else 5e-3
    )
    assert len(set(slope)) > 6

    bundle = tmp_path / OUT
    assert main(["bundle", str(run), "--encoder", "mine", "--out", str(bundle)]) == 0
    description = json.loads((bundle / "configs" / "metadata.json").read_text())["description"]
    assert "linear head, fitted on its frozen features by VIVID-Med on made" in description
    assert str(tmp_path) not in "".join(one.read_text() for one in bundle.rglob("*.json"))
    check_every_way(finished, bundle, tmp_path)


def test_the_first_that_is_no_baseline_is_taken_and_a_seed_of_several(tmp_path):
    run = evaluated(
        tmp_path, {"mine": ours(tmp_path), "other": "thumbnails:4"}, n=240, baseline="untrained", seeds=(3, 4)
    )
    finished = load_calibrated(run)
    assert finished.name == "mine"
    untrained = load_calibrated(run, encoder="untrained")
    assert untrained.fingerprint == load_encoder(f"untrained:{tmp_path / 'ours.safetensors'}", seed=3).fingerprint()
    assert classification(finished).weights["head.weight"].shape == (12, 128)


@pytest.mark.parametrize(
    ("asked", "options", "line"),
    [
        ("mime", {}, "no encoder 'mime' in this evaluation; did you mean mine? It has mine, small"),
        ("small", {}, "'small' cannot be in a bundle: thumbnails are no network; name another encoder"),
        (None, {"probe": "knn"}, "'mine' cannot be in a bundle: a probe of nearest neighbours is its training images"),
        (None, {"slices": 3}, "reads several slices at a time, and a bundle reads one image"),
        (
            None,
            {"space": "organamnist-11", "n": 240, "min_present": 2},
            "its classes exclude each other, and a bundle answers findings",
        ),
        (None, {"source": True}, "learned on another data set (elsewhere): evaluate on that one, and bundle it"),
    ],
)
def test_what_it_cannot_take_is_one_line(tmp_path, asked, options, line):
    options = dict(options)
    if options.pop("source", False):
        options["source"] = data_set(tmp_path / "elsewhere", dataset="elsewhere", seed=1)
    slices = options.pop("slices", 1)
    run = evaluated(tmp_path, {"mine": ours(tmp_path), "small": "thumbnails:4"}, **options)
    if slices > 1:
        edit(run, lambda one: one["preprocess"].update(slices=slices))
    with pytest.raises(VividError) as told:
        load_calibrated(run, encoder=asked)
    assert line in str(told.value)
    assert str(run) in str(told.value)
    assert len(str(told.value)) <= 300


def edit(run: Path, change) -> None:
    results = json.loads((run / "results.json").read_text())
    change(results["encoders"]["mine"]["encoder"])
    (run / "results.json").write_text(json.dumps(results))


def test_volumes_and_another_encoder_are_refused(tmp_path, capsys):
    run = evaluated(tmp_path, {"mine": ours(tmp_path)})
    other = encoder(2)
    save_module(other.network, tmp_path / "ours.safetensors", kind="vit", preprocess=other.preprocess.to_dict())
    assert main(["bundle", str(run), "--out", str(tmp_path / OUT)]) == 2
    told = capsys.readouterr().err
    assert "ours.safetensors: is not the encoder that" in told
    assert "evaluated as 'mine'" in told
    assert not (tmp_path / OUT).exists()
    edit(run, lambda one: one["preprocess"].update(kind="volume"))
    with pytest.raises(VividError, match="it reads volumes, and a bundle reads images"):
        load_calibrated(run)


def test_a_training_run_ships_its_own(run):
    with pytest.raises(VividError, match="ships its own encoder, 'pretrained'; leave out --encoder untrained"):
        load_calibrated(run, encoder="untrained")
