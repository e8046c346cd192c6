"""Our own file of a ViT: round trip, and everything that can be wrong with it."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vivid_monai.errors import VividError
from vivid_monai.networks.vit import ViT
from vivid_monai.networks.weights import load_vit, load_vit_weights, save_vit

PREPROCESS = {"size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}


@pytest.fixture
def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(img_size=(32, 48), preset="micro", drop_path=0.1, norm_eps=1e-12)


@pytest.fixture
def file(vit: ViT, tmp_path: Path) -> Path:
    path = tmp_path / "pretrained_vit.safetensors"
    save_vit(vit, path, preprocess=PREPROCESS, fields=["edema", "fracture"], extra={"seed": 3})
    return path


def rewrite(file: Path, **metadata: str | None) -> None:
    """The same tensors with other metadata."""
    with safe_open(file, framework="pt") as content:
        stored = content.metadata() | metadata
    save_file(load_file(file), file, metadata={name: value for name, value in stored.items() if value is not None})


def test_round_trip(vit: ViT, file: Path) -> None:
    again, metadata = load_vit(file)
    image = torch.rand(2, 1, 32, 48)
    assert torch.equal(again.eval()(image), vit.eval()(image))
    assert metadata == {
        "version": 1,
        "config": vit.config,
        "preprocess": PREPROCESS,
        "fields": ["edema", "fracture"],
        "extra": {"seed": 3},
    }
    assert again.config == vit.config
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_fields_and_extra_are_optional(vit: ViT, tmp_path: Path) -> None:
    save_vit(vit, tmp_path / "new" / "vit.safetensors", preprocess=PREPROCESS)
    metadata = load_vit(tmp_path / "new" / "vit.safetensors")[1]
    assert (metadata["fields"], metadata["extra"]) == (None, {})


def test_other_image_sizes_come_by_interpolation_and_the_same_size_exactly(vit: ViT, file: Path) -> None:
    same = load_vit_weights(ViT(img_size=(32, 48), preset="micro", norm_eps=1e-12), file.parent)
    assert all(torch.equal(same.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())
    larger = load_vit_weights(ViT(img_size=(64, 48), preset="micro", norm_eps=1e-12), file)
    differs = [n for n, t in vit.state_dict().items() if not torch.equal(larger.state_dict()[n], t)]
    differing_shape = [n for n in differs if larger.state_dict()[n].shape != vit.state_dict()[n].shape]
    assert differs == differing_shape == ["patch_embedding.position_embeddings"]
    columns = [v.patch_embedding.position_embeddings.detach().unflatten(1, v.grid).mean(1) for v in (vit, larger)]
    torch.testing.assert_close(columns[0], columns[1], atol=2e-3, rtol=0)  # rows were added, columns left alone


@pytest.mark.parametrize(
    ("other", "message"),
    [({"preset": "tiny"}, "preset='micro', the ViT has 'tiny'"), ({"norm_eps": 1e-6}, "norm_eps=1e-12")],
)
def test_another_architecture_is_refused(file: Path, other: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        load_vit_weights(ViT(**{"img_size": (32, 48), "preset": "micro", "norm_eps": 1e-12} | other), file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": None}, "not written by save_vit"),
        ({"version": "2"}, "version '2'"),
        ({"preprocess": None}, "metadata is broken"),
        ({"config": "{"}, "metadata is broken"),
        ({"config": "[]"}, "metadata is broken"),
        ({"config": '{"depth": 3}'}, "configuration is not one of a ViT"),
        ({"config": '{"preset": "tiny"}'}, "missing: blocks"),
        ({"config": '{"preset": "micro", "img_size": 64}'}, "do not fill a grid of 4 x 4"),
        ({"config": '{"preset": "micro", "img_size": [32, 48], "in_channels": 3}'}, r"wants \(128, 3, 16, 16\)"),
    ],
)
def test_a_file_that_is_not_ours_or_contradicts_itself(file: Path, metadata: dict, message: str) -> None:
    rewrite(file, **metadata)
    with pytest.raises(VividError, match=message) as caught:
        load_vit(file)
    assert str(file) in str(caught.value)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(VividError, match="no whole safetensors"):
        load_vit(file)


def test_what_cannot_be_saved_leaves_the_old_file(vit: ViT, file: Path) -> None:
    before = file.read_bytes()
    for arguments in ({"preprocess": {}}, {"preprocess": {"mean": torch.zeros(1)}}):
        with pytest.raises(VividError, match="preproc"):
            save_vit(vit, file, **arguments)
    with pytest.raises(VividError, match="Linear cannot be saved"):
        save_vit(torch.nn.Linear(2, 2), file, preprocess=PREPROCESS)  # type: ignore[arg-type]
    with pytest.raises(VividError, match="safetensors"):
        save_vit(vit, file.with_suffix(".pt"), preprocess=PREPROCESS)
    assert file.read_bytes() == before
    assert json.loads(safe_open(file, framework="pt").metadata()["config"]) == vit.config


def test_a_disk_without_room_is_told(vit: ViT, file: Path) -> None:
    """A limit on the size of files stands in for a full disk: both fail within the write."""
    before = file.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(VividError, match=r"cannot be written.*as it was before"):
            save_vit(vit, file, preprocess=PREPROCESS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]
