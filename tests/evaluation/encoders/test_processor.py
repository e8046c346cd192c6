"""preprocessor_config.json of real models, as written over the years, and what cannot be expressed."""

from typing import Any

import pytest

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders.from_transformers import read_processor
from vivid_monai.images.preprocess import Preprocess

HALF = [0.5, 0.5, 0.5]
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": HALF,
    "image_std": HALF,
}
CLIP = {
    **VIT,
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "resample": 3,
}
CONVNEXT = {**VIT, "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875}


def read(values: dict[str, Any], **changes: Any) -> Preprocess:
    values = {key: value for key, value in {**values, **changes}.items() if value != "gone"}
    return read_processor(values, model_type="vit", channels=3)


def expected(**settings: Any) -> Preprocess:
    return Preprocess(**{"size": 224, "channels": 3, "mean": 0.5, "std": 0.5, **settings})


@pytest.mark.parametrize(
    ("values", "preprocess"),
    [
        (VIT, expected(resize="stretch")),
        (CLIP, expected(resize="crop", interpolation="bicubic")),
        ({**CLIP, "size": {"shortest_edge": 256}}, expected(resize="crop", resize_to=256, interpolation="bicubic")),
        (
            {**VIT, "size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
            expected(resize="stretch", resize_to=256),
        ),
        (CONVNEXT, expected(resize="crop", resize_to=256)),
        ({**CONVNEXT, "size": {"shortest_edge": 384}}, expected(size=384, resize="stretch")),
        ({**VIT, "rescale_factor": 1 / 127.5}, expected(resize="stretch", mean=0.25, std=0.25)),
        ({**VIT, "do_normalize": False}, expected(resize="stretch", mean=0, std=1)),
        ({**VIT, "do_rescale": False}, expected(resize="stretch", mean=0.5 / 255, std=0.5 / 255)),
        ({**VIT, "image_processor_type": "SiglipImageProcessorFast"}, expected(resize="stretch")),
    ],
)
def test_what_is_expressed(values: dict[str, Any], preprocess: Preprocess) -> None:
    assert read(values) == preprocess


def test_files_of_the_first_years() -> None:
    """One number for a size, no rescaling mentioned, a feature extractor; what is left out is the class's."""
    old = {
        "feature_extractor_type": "CLIPFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_std": HALF,
        "resample": 3,
        "size": 224,
    }
    assert read(old) == expected(resize="crop", interpolation="bicubic")
    nameless = {"size": 224, "image_mean": HALF, "image_std": HALF}
    assert read(nameless) == expected(resize="stretch")


def test_a_file_for_a_class_without_defaults_must_say_everything() -> None:
    dinov3 = {**VIT, "image_processor_type": "DINOv3ViTImageProcessorFast", "do_center_crop": None, "device": None}
    assert read(dinov3) == expected(resize="stretch")
    for key in ("do_resize", "size", "resample", "do_rescale", "do_normalize", "image_mean", "image_std"):
        with pytest.raises(VividError, match=f"preprocessor_config.json: {key} = None is missing"):
            read(dinov3, **{key: "gone"})


@pytest.mark.parametrize(
    ("values", "changes", "key"),
    [
        (VIT, {"image_processor_type": "DonutImageProcessor"}, "image_processor_type"),
        (VIT, {"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type"),
        (VIT, {"resample": 1}, "resample"),
        (VIT, {"do_resize": False}, "do_resize"),
        (VIT, {"do_pad": True}, "do_pad"),
        (VIT, {"do_thumbnail": True}, "do_thumbnail"),
        (VIT, {"size": {"height": 224, "width": 448}}, "size = .*only square"),
        (VIT, {"size": {"shortest_edge": 224, "longest_edge": 448}}, "size"),
        (VIT, {"size": {"shortest_edge": 224}}, "do_center_crop"),
        (CLIP, {"do_center_crop": False}, "do_center_crop"),
        (CLIP, {"crop_size": {"height": 224, "width": 200}}, "crop_size = .*only square"),
        (CLIP, {"crop_size": {"height": 256, "width": 256}}, "crop_size = 256 is larger"),
        (CONVNEXT, {"size": {"height": 224, "width": 224}}, "size"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(
    values: dict[str, Any], changes: dict[str, Any], key: str
) -> None:
    with pytest.raises(VividError, match=f"preprocessor_config.json: {key}"):
        read(values, **changes)


def test_statistics_for_other_channels_are_refused() -> None:
    with pytest.raises(VividError, match="mean must be 1 or 1 numbers"):
        read_processor(VIT, model_type="vit", channels=1)
