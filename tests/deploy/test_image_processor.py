"""The image processor and the recipes in the exported README against our own preprocessing."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from tests.deploy.made_dicom import dicom
from tests.deploy.recipes import recipes
from tests.deploy.small import FIELDS, PREPROCESS, SIZE, make_classifier
from vivid_monai.deploy.export import export_huggingface
from vivid_monai.deploy.processing_vivid import VividImageProcessor
from vivid_monai.images.preprocess import Preprocess

pytestmark = pytest.mark.usefixtures("own_modules")


RULES = [
    {"resize": "pad"},
    {"resize": "pad", "mean": 0.4, "std": 0.2, "channels": 3, "interpolation": "bicubic"},
    {"resize": "crop", "resize_to": 40},
    {"resize": "stretch"},
    {"resize": "stretch", "resize_to": 40},
]
SHAPES = [(200, 143), (97, 301), (32, 32), (20, 27), (400, 30), (64, 48)]


def exported(tmp_path: Path, **rule) -> tuple[Preprocess, Path]:
    preprocess = Preprocess(size=SIZE, **rule)
    classifier = make_classifier(in_channels=preprocess.channels)
    return preprocess, export_huggingface(classifier, tmp_path / "folder", preprocess=preprocess, fields=FIELDS)


def png(path: Path, shape: tuple[int, int], *, seed: int = 0) -> Path:
    """Smooth shades with noise, up to black and white."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(seed).normal(0, 30, shape)
    shades = 128 + 110 * np.sin(x / 17) * np.cos(y / 23) + noise
    Image.fromarray(shades.clip(0, 255).astype(np.uint8)).save(path)
    return path


def ours(preprocess: Preprocess, path: Path) -> torch.Tensor:
    return torch.as_tensor(preprocess.transform()({"image": path})["image"])[None]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_processor_moves_single_pixels_by_one_grey_level(rule, tmp_path):
    preprocess, folder = exported(tmp_path, **rule)
    processor = AutoImageProcessor.from_pretrained(folder)
    for shape in SHAPES:
        path = png(tmp_path / "i.png", shape)
        got = processor(Image.open(path), return_tensors="pt")["pixel_values"]
        wanted = ours(preprocess, path)
        assert got.shape == wanted.shape
        levels = (got - wanted) * torch.tensor(preprocess.std)[:, None, None] * 255
        # What bicubic interpolation overshoots is cut off after the first direction already.
        assert levels.abs().max() < (1.01 if preprocess.interpolation == "bilinear" else 8)
        assert (levels.abs() > 0.01).float().mean() < 0.25


@pytest.mark.parametrize("rule", [*RULES, {"resize": "stretch", "resize_to": 41}], ids=str)
def test_the_folders_own_processor_is_exact_on_images_of_every_kind(rule, tmp_path):
    preprocess = Preprocess(size=SIZE, **rule)
    processor = VividImageProcessor(vivid=preprocess.to_dict())
    for shape in SHAPES:
        path = png(tmp_path / "i.png", shape)
        grey = Image.open(path)
        wide = np.asarray(grey).astype(np.uint16) * 257
        Image.fromarray(wide).save(tmp_path / "wide.png")
        for image in (
            grey,
            grey.convert("RGB"),
            np.asarray(grey),
            wide,
            Image.open(tmp_path / "wide.png"),
            wide / 65535,
        ):
            got = processor(image, return_tensors="pt")["pixel_values"]
            torch.testing.assert_close(got, ours(preprocess, path), rtol=0, atol=1e-5)
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    colours.save(tmp_path / "c.png")
    several = processor([colours, colours], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(several[1:], ours(preprocess, tmp_path / "c.png"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "image", [Image.new("LA", (9, 9)), Image.new("CMYK", (9, 9)), np.full((9, 9), 1.5), np.zeros(9)]
)
def test_what_is_no_grey_or_rgb_image_is_refused(image):
    with pytest.raises(ValueError, match=r"transparent|not supported|outside|no grey"):
        VividImageProcessor(vivid=Preprocess(size=SIZE).to_dict())(image)


@pytest.mark.parametrize("stem", [{}, {"stem": "conv", "preset": "nano"}], ids=str)
def test_the_pipeline_answers_grey_colour_and_16_bits_alike(stem, tmp_path):
    classifier = make_classifier(**stem)
    folder = export_huggingface(classifier, tmp_path / "folder", preprocess=PREPROCESS, fields=FIELDS)
    path = png(tmp_path / "i.png", (90, 70))
    image = Image.open(path)
    image.convert("RGB").save(tmp_path / "rgb.png")
    Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(tmp_path / "wide.png")
    with torch.inference_mode():
        expected = classifier(ours(PREPROCESS, path))[0].sigmoid().tolist()
    answer = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    for given in (
        str(path),
        image,
        str(tmp_path / "rgb.png"),
        str(tmp_path / "wide.png"),
        Image.open(tmp_path / "wide.png"),
    ):
        scores = {one["label"]: one["score"] for one in answer(given, top_k=None)}
        assert [scores[field] for field in FIELDS] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_recipe_of_the_readme_is_exact(rule, tmp_path):
    preprocess, folder = exported(tmp_path, **rule)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    classifier = make_classifier(in_channels=preprocess.channels)
    for shape in SHAPES:
        path = png(tmp_path / "i.png", shape)
        space = {"processor": AutoImageProcessor.from_pretrained(folder)}
        exec(recipes(folder, "Exact input without code", png=path), space)
        wanted = ours(preprocess, path)
        got = space["inputs"]["pixel_values"]
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(model(got).logits, classifier(wanted), rtol=0, atol=1e-4)


def test_the_first_lines_of_the_readme_run(tmp_path):
    _, folder = exported(tmp_path)
    text = (folder / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    space = {"folder": str(folder)}
    exec(code.replace('"image.png"', repr(str(png(tmp_path / "i.png", (90, 70))))), space)
    assert len(space["probabilities"]) == 5
    assert all(field in text for field in ("5 findings", '"interpolation": "bilinear"', "For research only"))


SIGNED = {"PixelRepresentation": 1, "RescaleSlope": "2", "RescaleIntercept": "-100"}


@pytest.mark.parametrize(
    ("tags", "rule"),
    [
        ({}, {}),
        ({"inverted": True}, {}),
        ({"VOILUTFunction": "SIGMOID"}, {}),
        ({"WindowCenter": None, "WindowWidth": None}, {}),
        ({"WindowCenter": None, "WindowWidth": None, "inverted": True, **SIGNED}, {}),
        ({"eight_bits": True}, {}),
        ({"eight_bits": True, **SIGNED}, {}),
        ({}, {"window": (1500.0, 1800.0)}),
        ({"inverted": True, **SIGNED}, {"window": (1500.0, 1800.0)}),
    ],
    ids=str,
)
def test_the_recipe_for_dicom_is_exact(tags, rule, tmp_path):
    preprocess, folder = exported(tmp_path, **rule)
    tags = dict(tags)
    if tags.pop("eight_bits", False):
        pixels = np.arange(50 * 70, dtype=np.uint16).reshape(50, 70) % 200
        tags |= {
            "BitsStored": 8,
            "HighBit": 7,
            "PixelData": pixels.tobytes(),
            "WindowCenter": None,
            "WindowWidth": None,
        }
    path = Path(dicom(tmp_path / "i.dcm", **tags))
    assert_exact(preprocess, folder, path, png(tmp_path / "i.png", (50, 70)))


@pytest.mark.parametrize("tags", [{"PixelPaddingValue": 0}, {"VOILUTSequence": []}], ids=str)
def test_what_the_recipe_does_not_know_it_refuses(tags, tmp_path):
    _, folder = exported(tmp_path)
    path = Path(dicom(tmp_path / "i.dcm", **tags))
    code = recipes(folder, "DICOM", dcm=path)
    with pytest.raises(ValueError, match=r"vivid_monai\.images\.read\.read_image"):
        exec(code, {"processor": None, "scale": None})


@pytest.mark.real_data
def test_the_recipes_are_exact_on_real_radiographs(real_data, tmp_path):
    preprocess, folder = exported(tmp_path)
    pngs = sorted((real_data / "nih_fullsize").rglob("*.png"))[:4]
    for path in sorted((real_data / "cr_dicom").glob("*.dcm")):
        assert_exact(preprocess, folder, path, pngs[0])
    for path in pngs:
        space = {"processor": AutoImageProcessor.from_pretrained(folder)}
        exec(recipes(folder, "Exact input without code", png=path), space)
        torch.testing.assert_close(space["inputs"]["pixel_values"], ours(preprocess, path), rtol=0, atol=1e-5)


def assert_exact(preprocess: Preprocess, folder: Path, path: Path, image: Path) -> None:
    space = {"processor": AutoImageProcessor.from_pretrained(folder)}
    exec(recipes(folder, "Exact input without code", png=image) + recipes(folder, "DICOM", dcm=path), space)
    wanted = ours(preprocess, path)
    assert wanted.std() > 0.1
    torch.testing.assert_close(space["inputs"]["pixel_values"], wanted, rtol=0, atol=1e-5)
