"""Specs: what a string can name, and what is said where it names nothing."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import load_encoder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("untrained:nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("untrained:thumbnails:24", "'untrained:thumbnails:24': has no weights"),
        ("weights.pth", "'weights.pth' is no encoder: give a .safetensors file of this package"),
        ("", "'' is no encoder"),
        ("unknown:thing", "'unknown:thing' is no encoder: .* or one of transformers:NAME, timm:NAME, open_clip:NAME"),
        ("transformers:", "names no model: write transformers:FOLDER-OR-NAME"),
        ("thumbnails:", "names no model"),
        ("thumbnails:small", "'thumbnails:small': give the pixels of a side"),
        ("thumbnails:0", "1 to 256"),
        ("transformers:/no/such/folder", "/no/such/folder: no such folder"),
    ],
)
def test_what_names_no_encoder(spec: str, message: str) -> None:
    with pytest.raises(VividError, match=message):
        load_encoder(spec)


def test_thumbnails_are_the_pixels_of_a_small_copy(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    encoder = load_encoder("thumbnails:24", pool="mean")
    image = encoder.preprocess.transform()({"image": str(tmp_path / "wide.png")})["image"]
    features = encoder(image[None]).numpy()
    assert (features.shape, encoder.dim, encoder.describe()["n_parameters"]) == ((1, 576), 576, 0)
    small = pixels.reshape(12, 4, 24, 4).mean((1, 3)) / 255
    copy = features.reshape(24, 24)[6:18] / 4 + 0.5  # the whole image, and black above and below it
    assert np.corrcoef(copy.ravel(), small.ravel())[0, 1] > 0.9
    assert load_encoder("thumbnails:12").fingerprint() != encoder.fingerprint()


def test_an_unknown_pooling(vit_file: str) -> None:
    with pytest.raises(VividError, match="pool='max' must be one of"):
        load_encoder(vit_file, pool="max")


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(VividError, match="is no encoder"):
        load_encoder(str(tmp_path))
    with pytest.raises(VividError, match=r"not a folder with a config\.json"):
        load_encoder(f"transformers:{tmp_path}")


def test_the_folder_of_a_run_names_its_encoder(vit_file: str, tmp_path: Path) -> None:
    shutil.copy(vit_file, tmp_path / "pretrained_vit.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for prefix in ("", "untrained:"):
        one, other = (load_encoder(f"{prefix}{path}") for path in (tmp_path, vit_file))
        assert one.fingerprint() == other.fingerprint()
    (tmp_path / "pretrained_vit.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(VividError, match="a pointer of Git LFS"):
        load_encoder(str(tmp_path))
    (tmp_path / "pretrained_vit.safetensors").rename(tmp_path / "initial_vit.safetensors")
    with pytest.raises(VividError, match=r"this run has not ended, so it has no pretrained_vit.safetensors; resume it"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize(
    ("library", "package"),
    [("timm", "timm"), ("open_clip", "open_clip_torch"), ("torchxrayvision", "torchxrayvision")],
)
def test_a_library_that_is_not_installed(library: str, package: str) -> None:
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    with pytest.raises(VividError, match=f"{library} is not installed: pip install {package}$"):
        load_encoder(f"{library}:some-model")
