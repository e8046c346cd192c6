"""Fine-tuning from end to end, small: what it starts from, what it keeps, and that killing changes nothing."""

import csv
import shutil
import subprocess

import monai.bundle
import numpy as np
import pytest
import torch
import transformers as hf

import vivid_monai
from tests.bundle.conftest import ROOT, SMALL, bundle_command
from tests.bundle.test_errors import error_line
from tests.processes import kill_once, start_module
from vivid_monai.data.manifest import Manifest
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.probes import fit_probe
from vivid_monai.evaluation.results import Results, read_predictions
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES
from vivid_monai.networks.densenet import DenseNet
from vivid_monai.networks.modules import load_module, save_module
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.vit import ViT

KNOBS = {"min_positives": 1, "learning_rate": 1e-3, "head_learning_rate": 1e-3}


def make_start(folder, kind: str = "vit") -> str:
    """The file of an encoder of 32 x 32 pixels that are normalised in their own way."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = {
            "vit": lambda: ViT(img_size=32, patch_size=8, preset=None, width=32, depth=2, heads=2),
            "resnet": lambda: ResNet(img_size=32, depth=10, width=8),
            "densenet": lambda: DenseNet(img_size=32, growth=8),
        }[kind]()
    preprocess = Preprocess(size=32, channels=1, mean=0.4, std=0.2).to_dict()
    pool = "cls+mean" if kind == "vit" else "mean"
    save_module(network, folder / f"{kind}.safetensors", kind=kind, preprocess=preprocess, pool=pool)
    return str(folder / f"{kind}.safetensors")


def make_library_start(folder, kind: str) -> str:
    """The folder of a small model of transformers with random weights and its processor, for images of 32 pixels."""
    torch.manual_seed(3)
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 32}
    model = {
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**shape, image_size=32, patch_size=8)),
        "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**shape, image_size=32, patch_size=8)),
        "resnet": lambda: hf.ResNetModel(
            hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }[kind]()
    model.save_pretrained(folder / kind)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder / kind)
    return f"transformers:{folder / kind}"


def finetune(folder, phantoms, **knobs) -> Results:
    """Fine-tune in this process."""
    config = [str(ROOT / "configs" / name) for name in ("train.json", "finetune.json")]
    places = {"bundle_root": str(folder), "output_dir": str(folder / "run"), "dataset_dir": str(phantoms)}
    knobs = {**SMALL, **KNOBS, **places, **knobs}
    monai.bundle.run(run_id="finetuning", config_file=config, logging_file=False, **knobs)
    return Results.load(folder / "run" / "results.json")


def last_words(done: subprocess.CompletedProcess) -> str:
    return (done.stdout + done.stderr)[-3000:]


def scores_of(folder, name: str) -> np.ndarray:
    return read_predictions(folder / "run" / "predictions.csv").scores[name][0]


def images_of(phantoms) -> list:
    manifest = Manifest.load(phantoms / "manifest.parquet").select("test")
    return [phantoms / name for name in manifest.table["image"].to_pylist()]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, phantoms):
    """A fine-tuned ViT, whose folder holds the start encoder and the run."""
    folder = tmp_path_factory.mktemp("tuned")
    finetune(folder, phantoms, start=make_start(folder), drop_path=0.1)
    return folder


def test_a_run_is_what_every_command_takes(tuned, phantoms):
    run = tuned / "run"
    results = Results.load(run / "results.json")
    assert list(results.encoders) == ["fine-tuned", "frozen", "untrained"]
    assert {(row.encoder, row.minus) for row in results.differences} >= {("fine-tuned", "frozen")}
    assert (run / "report.html").is_file()
    assert not (tuned / "models").exists(), "only pretraining publishes there"
    model, encoder = vivid_monai.load(run), load_encoder(str(run))
    scores = scores_of(tuned, "fine-tuned")
    for image, row in list(zip(images_of(phantoms), scores, strict=True))[:4]:
        np.testing.assert_allclose(list(model(image).values()), row, atol=1e-5)
        np.testing.assert_array_equal(
            model.features(image), vivid_monai.load(run / "pretrained_vit.safetensors").features(image)
        )
    assert model.fields == tuple(results.fields)
    assert encoder.preprocess == load_encoder(make_start(tuned)).preprocess
    assert encoder.network.config["drop_path"] == 0.1
    state = torch.load(run / "model.pt", weights_only=True)
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(tensor, state[f"encoder.{name}"])


def test_the_weights_are_the_best_of_the_validations(tuned):
    saved = torch.load(max((tuned / "run" / "checkpoints").iterdir()), weights_only=True)["best_weights"]
    encoder = load_encoder(str(tuned / "run")).network
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, saved["weights"][f"encoder.{name}"])
    with (tuned / "run" / "curves.csv").open() as file:
        curve = {int(float(row["step"])): float(row["val/macro_auroc"]) for row in csv.DictReader(file)}
    assert list(curve) == [0, 4, 8]
    assert saved["value"] == max(curve.values())
    assert saved["step"] == max(curve, key=curve.get)


def test_frozen_is_the_linear_probe_of_the_start_encoder(tuned, phantoms):
    encoder, manifest = load_encoder(make_start(tuned)), Manifest.load(phantoms / "manifest.parquet")
    fields = Results.load(tuned / "run" / "results.json").fields
    store = FeatureStore(None, batch_size=32)
    train, val, test = (store.features(encoder, manifest, split, fields) for split in ("train", "val", "test"))
    expected = fit_probe(train, val).probabilities(test.x)
    np.testing.assert_allclose(scores_of(tuned, "frozen"), expected, atol=1e-5)
    start = load_module(tuned / "run" / "initial_vit.safetensors", BACKBONES).module
    for one, other in zip(start.parameters(), encoder.network.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("head", ["linear", "attentive"])
def test_it_starts_where_the_probe_ends(tmp_path, phantoms, head):
    still = {"learning_rate": 0.0, "head_learning_rate": 0.0, "max_epochs": 1, "warmup_steps": 1}
    results = finetune(tmp_path, phantoms, start=make_start(tmp_path), head=head, **still)
    probe = "attentive" if head == "attentive" else "frozen"
    assert list(results.encoders) == list(dict.fromkeys(["fine-tuned", probe, "frozen", "untrained"]))
    assert results.encoders["fine-tuned"]["probes"][0]["weights"].startswith("of step 0, ")
    np.testing.assert_allclose(scores_of(tmp_path, "fine-tuned"), scores_of(tmp_path, probe), atol=1e-5)
    assert np.ptp(scores_of(tmp_path, probe), axis=0).max() > 0.01
    with (tmp_path / "run" / "curves.csv").open() as file:
        values = [row["val/macro_auroc"] for row in csv.DictReader(file)]
    assert len(values) == 2
    assert len(set(values)) == 1


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("vit", {"trained": "lora:2", "ema": 0.5, "uncertain": "state"}),
        ("vit", {"trained": "head", "class_weights": True, "micro_batch_size": 3, "amp": True}),
        ("resnet", {"trained": "last:2", "head": "attentive", "uncertain": "state", "class_weights": True}),
        ("densenet", {"layer_decay": 0.5, "patience": 1}),
    ],
)
def test_any_backbone_is_trained_in_any_way(tmp_path, phantoms, kind, knobs):
    start = make_start(tmp_path, kind)
    results = finetune(tmp_path, phantoms, start=start, max_epochs=1, warmup_steps=1, **knobs)
    encoder = load_encoder(str(tmp_path / "run"))
    first = load_encoder(start).network.state_dict()
    assert encoder.network.state_dict().keys() == first.keys(), "no adapter is left"
    step = int(results.encoders["fine-tuned"]["probes"][0]["weights"].split()[2].rstrip(","))
    frozen = [torch.equal(first[name], tensor) for name, tensor in encoder.network.state_dict().items()]
    assert all(frozen) == (step == 0 or knobs.get("trained") == "head")
    np.testing.assert_allclose(
        list(vivid_monai.load(tmp_path / "run")(images_of(phantoms)[0]).values()),
        scores_of(tmp_path, "fine-tuned")[0],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("dinov2", {"trained": "lora:2"}),
        ("dinov2", {"head": "attentive", "trained": "last:1"}),
        ("resnet", {"layer_decay": 0.5}),
        ("resnet", {"head": "attentive"}),
        ("siglip", {}),
        ("siglip", {"head": "attentive"}),
    ],
)
def test_networks_of_other_libraries_are_fine_tuned(tmp_path, phantoms, kind, knobs):
    start = make_library_start(tmp_path, kind)
    results = finetune(tmp_path, phantoms, start=start, **knobs)
    assert {"fine-tuned", "frozen", "untrained"} <= results.encoders.keys()
    shutil.rmtree(tmp_path / kind)
    model, before = vivid_monai.load(tmp_path / "run"), torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    for image, row in list(zip(images_of(phantoms), scores_of(tmp_path, "fine-tuned"), strict=True))[:3]:
        np.testing.assert_allclose(list(model(image).values()), row, atol=1e-5)
    tuned = load_encoder(str(tmp_path / "run")).network.state_dict()
    assert all(torch.equal(tensor, before[f"encoder.{name}"]) for name, tensor in tuned.items())
    with (tmp_path / "run" / "curves.csv").open() as file:
        losses = [float(row["train/bce"]) for row in csv.DictReader(file) if row["train/bce"]]
    assert losses[-1] != losses[0]


def test_killed_and_resumed_equals_uninterrupted(bundle, tmp_path, phantoms):
    own = {**KNOBS, "start": make_start(tmp_path), "head": "attentive", "ema": 0.5, "patience": 3, "drop_path": 0.1}
    done = bundle("finetune.json", output_dir=tmp_path / "whole", **own)
    assert done.returncode == 0, last_words(done)
    knobs = {"dataset_dir": phantoms, "output_dir": tmp_path / "cut", "bundle_root": tmp_path, **own}
    command = bundle_command("finetune.json", **knobs)
    process = start_module(command[1], command[2:], cwd=tmp_path)
    kill_once(process, lambda: any((tmp_path / "cut" / "checkpoints").glob("step_[2-7].pt")))
    (tmp_path / "vit.safetensors").unlink()  # the run's folder has it
    done = bundle("finetune.json", output_dir=tmp_path / "cut", resume=True, **own)
    assert done.returncode == 0, last_words(done)
    for name in ("model.pt", "checkpoints/step_8.pt"):
        whole, cut = (torch.load(tmp_path / folder / name, weights_only=True) for folder in ("whole", "cut"))
        parts = [(whole, cut)] if name == "model.pt" else [(whole[key], cut[key]) for key in ("network", "average")]
        for one, other in parts:
            assert one.keys() == other.keys()
            for key, tensor in one.items():
                assert torch.equal(tensor, other[key]), key
    for name in ("curves.csv", "metrics.csv"):
        tables = [(tmp_path / folder / name).read_text() for folder in ("whole", "cut")]
        assert tables[0] == tables[1]
    line = error_line(bundle("finetune.json", output_dir=tmp_path / "cut", resume=True, **own, val_images=7))
    assert "validation was" in line


def test_two_processes_fine_tune_and_close_once(bundle, tmp_path):
    own = {**KNOBS, "start": make_start(tmp_path), "trained": "last:1", "ema": 0.5, "max_epochs": 1, "warmup_steps": 1}
    done = bundle("finetune.json", "multi_gpu_train.json", ranks=2, **own)
    assert done.returncode == 0, last_words(done)
    assert done.stdout.count("test AUROC") == 1
    assert done.stderr.count("the best weights are those of step") == 1
    assert vivid_monai.load(tmp_path / "run").fields


@pytest.mark.parametrize(
    ("kind", "knobs", "words"),
    [
        ("vit", {"image_size": 64}, "image_size=64 is not that of the start encoder"),
        ("vit", {"vit": "base"}, "vit='base' is not that of the start encoder"),
        ("vit", {"std": 0.3}, "std=0.3 is not that of the start encoder"),
        ("vit", {"trained": "some"}, "trained='some' must be all, head, last:N or lora:R"),
        ("vit", {"head": "deep"}, "head='deep' must be linear or attentive"),
        ("vit", {"uncertain": "present"}, "uncertain='present' must be ignored or state"),
        ("vit", {"start": "nowhere"}, "'nowhere' is no encoder"),
        ("vit", {"start": "thumbnails:32", "in_channels": 1}, "cannot be saved as an encoder"),
        ("resnet", {"drop_path": 0.1}, "resnet10 has no drop path"),
        ("resnet", {"pool": "cls"}, "pool='cls'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(tmp_path, phantoms, kind, knobs, words):
    from vivid_monai.errors import find_cause

    with pytest.raises(Exception) as caught:  # noqa: PT011
        finetune(tmp_path, phantoms, **{"start": make_start(tmp_path, kind), **knobs})
    message = str(find_cause(caught.value))
    assert words in message
    assert len(message) <= 300
    assert "\n" not in message
