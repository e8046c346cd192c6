"""One image, one answer: by every way there is from a file to probabilities.

MONAI Label's answers are held against those of `vivid predict` in tests/monailabel.
"""

import csv
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.torchscript_utils import load_net_with_metadata
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from tests.deploy.alone import run_bundle
from tests.deploy.conftest import NAME
from tests.deploy.made_dicom import dicom
from tests.deploy.recipes import recipes
from vivid_monai.cli import main
from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import collate
from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.bundle import build_bundle
from vivid_monai.deploy.onnx import OnnxClassifier
from vivid_monai.engines.step import PrepareBatch
from vivid_monai.evaluation.encoders import load_encoder
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.images.augment import Augment, RandomAugmentation
from vivid_monai.images.preprocess import Preprocess

TOLERANCE = 1e-4
N = 4


KINDS = ("MONOCHROME1", "MONOCHROME2", "png")


@pytest.fixture(scope="module")
def images(finished, tmp_path_factory) -> list[Path]:
    """N test images, 48 x 64 pixels, as DICOM in both photometric interpretations, then as PNG; sorted by name."""
    folder = tmp_path_factory.mktemp("parity")
    names = finished.manifest.select("test").table["image"].to_pylist()
    for i, name in enumerate(names[:N]):
        with Image.open(finished.manifest.image_root / name) as image:
            pixels = np.asarray(image.resize((48, 64), Image.Resampling.BICUBIC))
        Image.fromarray(pixels).save(folder / f"png-{i}.png")
        for kind in KINDS[:2]:
            dicom(folder / f"{kind}-{i}.dcm", inverted=kind == "MONOCHROME1", seed=i, pixels=pixels)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def bundle(finished, tmp_path_factory) -> Path:
    """The bundle, built to answer anything."""
    anything = replace(finished, ood=copy(finished.ood))
    anything.ood.limit = 1e9
    return build_bundle(anything, tmp_path_factory.mktemp("bundle") / NAME, onnx="float32")


@pytest.fixture(scope="module")
def expected(finished, run, images, tmp_path_factory) -> np.ndarray:
    """Probabilities (3 N, F) by evaluation of the PNG, by the run's own weights."""
    pngs = images[2 * N :]
    rows = finished.manifest.table.slice(0, N).to_pylist()
    for row, path in zip(rows, pngs, strict=True):
        row |= {"image": path.name, "id": path.name, "split": "test"}
    table = finished.manifest.table.from_pylist(rows, schema=finished.manifest.table.schema)
    manifest = Manifest(table, label_space=finished.manifest.label_space.name, image_root=pngs[0].parent)
    encoder = load_encoder(str(run / "pretrained_vit.safetensors"))
    part = FeatureStore(tmp_path_factory.mktemp("cache")).features(encoder, manifest, "test", finished.fields)
    got = finished.probabilities(part.x)
    assert np.ptp(got, axis=0).min() > 0.01  # images make a difference
    return np.tile(got, (len(KINDS), 1))


def by_training(finished, images: list[Path], folder: Path) -> Tensor:
    still = Augment(rotate=0, translate=0, scale=0, brightness=0, contrast=0)
    rows = [{"image": path, "id": path.name} for path in images]
    augmentation = RandomAugmentation(finished.preprocess, still)
    data = ImageDataset(rows, finished.preprocess, augmentation=augmentation, cache=True)
    image = PrepareBatch(augmentation)(collate([data[i] for i in range(len(data))]))["image"]
    return finished.classifier(image)


def by_torchscript(bundle: Path, images: list[Path], folder: Path) -> Tensor:
    assert main(["export", str(bundle), "--to", "torchscript", "--out", str(folder / "a.ts")]) == 0
    network, metadata, _ = load_net_with_metadata(str(folder / "a.ts"))
    return network(tensors(Preprocess.from_dict(metadata["preprocess"]), images))


def by_onnx_runtime(bundle: Path, images: list[Path], folder: Path) -> Tensor:
    assert main(["export", str(bundle), "--to", "onnx", "--out", str(folder / "a.onnx")]) == 0
    classifier = OnnxClassifier(folder / "a.onnx")
    return torch.from_numpy(classifier(tensors(classifier.preprocess, images))[0])


def by_transformers(bundle: Path, images: list[Path], folder: Path) -> Tensor:
    exported = folder / "huggingface"
    assert main(["export", str(bundle), "--to", "huggingface", "--out", str(exported)]) == 0
    model, logits = AutoModelForImageClassification.from_pretrained(exported).eval(), []
    for path in images:
        space = {"processor": AutoImageProcessor.from_pretrained(exported)}
        png = path if path.suffix == ".png" else next(path.parent.glob("*.png"))
        code = recipes(exported, "Exact input without code", png=png)
        exec(code + (recipes(exported, "DICOM", dcm=path) if path.suffix == ".dcm" else ""), space)
        logits.append(model(**space["inputs"]).logits)
    return torch.cat(logits)


def tensors(preprocess: Preprocess, images: list[Path]) -> Tensor:
    transform = preprocess.transform()
    return torch.stack([torch.as_tensor(transform({"image": path})["image"]) for path in images])


@pytest.mark.numeric
@pytest.mark.parametrize("way", [by_training, by_torchscript, by_onnx_runtime, by_transformers])
@torch.inference_mode()
def test_libraries_answer_as_evaluation(way, finished, bundle, images, expected, tmp_path):
    logits = way(finished if way is by_training else bundle, images, tmp_path)
    np.testing.assert_allclose(torch.sigmoid(logits.double()), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("way", ["onnx", "torch", "bundle"])
def test_commands_answer_as_evaluation(way, finished, bundle, images, expected, tmp_path):
    folder, out = images[0].parent, tmp_path / "out"
    if way == "bundle":
        run_bundle(bundle, "inference.json", dataset_dir=folder, output_dir=out)
    else:
        assert main(["predict", str(folder), "--bundle", str(bundle), "--out", str(out), "--runtime", way]) == 0
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]).name for row in rows] == [path.name for path in images]
    answered = [i for i, one in enumerate(finished.calibrations) if not one.unanswered]
    got = [[float(row[finished.fields[i]]) for i in answered] for row in rows]
    np.testing.assert_allclose(got, expected[:, answered], rtol=0, atol=TOLERANCE)
