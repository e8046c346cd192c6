"""The fingerprint and the description of an encoder."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, VividEncoder, load_encoder
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.library import import_library
from vivid_monai.networks.vit import ViT

PREPROCESS = Preprocess(size=32)


def vit(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(**{"img_size": 32, "patch_size": 8, "preset": "micro", **changes})


def encoder(network: ViT | None = None, preprocess: Preprocess = PREPROCESS, **more: str) -> VividEncoder:
    return VividEncoder(network or vit(), preprocess, **more)


def with_one_bit_changed() -> ViT:
    network = vit()
    with torch.no_grad():
        bits = network.blocks[3].mlp.linear1.weight.view(torch.int32)
        bits[5, 7] ^= 1
    return network


@pytest.mark.parametrize(
    "other",
    [
        lambda: encoder(with_one_bit_changed()),
        lambda: encoder(vit(norm_eps=1e-12)),
        lambda: encoder(pool="mean"),
        lambda: encoder(preprocess=replace(PREPROCESS, resize="stretch")),
        lambda: encoder(preprocess=replace(PREPROCESS, window=(40.0, 400.0))),
        lambda: encoder(preprocess=replace(PREPROCESS, interpolation="bicubic")),
    ],
    ids=["weight", "setting", "pool", "resize rule", "window", "interpolation"],
)
def test_whatever_changes_features_changes_the_fingerprint(other: Callable[[], Encoder]) -> None:
    assert other().fingerprint() != encoder().fingerprint()


def test_nothing_else_does() -> None:
    first = encoder().fingerprint()
    assert encoder(source="elsewhere").fingerprint() == first
    assert encoder(vit(drop_path=0.3)).fingerprint() == first  # acts in training only
    torch.manual_seed(99)
    used = encoder()
    used(torch.rand(2, 1, 32, 32))
    assert used.fingerprint() == first
    assert len(first) == 64


class Bare(Encoder):
    kind, architecture = "bare", "bare"

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2]


def test_name_shape_and_type_of_a_tensor_count() -> None:
    """The same bytes under another name, in another shape or as another type are another network."""
    zeros = torch.zeros(2, 4)
    tensors = [{"a": zeros}, {"b": zeros}, {"a": zeros.reshape(4, 2)}, {"a": zeros.view(torch.int32)}]
    prints = set()
    for named in tensors:
        network = nn.Module()
        for name, tensor in named.items():
            network.register_buffer(name, tensor)
        prints.add(Bare(network, PREPROCESS, pool="pooled", source="", settings={}).fingerprint())
    assert len(prints) == len(tensors)


def test_the_description_is_small_json(vit_file: str) -> None:
    loaded = load_encoder(vit_file, pool="cls+mean")
    described = json.loads(json.dumps(loaded.describe()))
    assert described == {
        "kind": "vivid",
        "source": vit_file,
        "architecture": "vit-micro/8",
        "pool": "cls+mean",
        "dim": 256,
        "n_parameters": sum(p.numel() for p in vit().parameters()),
        "preprocess": PREPROCESS.to_dict(),
        "fingerprint": loaded.fingerprint(),
    }
    assert len(json.dumps(described)) < 1000


def test_an_encoder_is_frozen() -> None:
    frozen = encoder(vit(drop_path=0.5))
    assert not frozen.training
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_preprocessing_for_another_network_is_refused() -> None:
    with pytest.raises(VividError, match=r"here: the network \(vit-micro/8\) does not take .* 1 x 48 x 48"):
        encoder(preprocess=replace(PREPROCESS, size=48, resize_to=48), source="here")
    with pytest.raises(VividError, match="3 x 32 x 32"):
        encoder(preprocess=Preprocess(size=32, channels=3))


def test_a_library_that_is_not_there_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VividError, match="no_such_library is not installed: pip install its-package"):
        import_library("no_such_library", "its-package")
    monkeypatch.setitem(__import__("sys").modules, "broken_library", None)
    with pytest.raises(VividError, match="broken_library"):
        import_library("broken_library", "its-package")
