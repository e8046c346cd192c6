"""The classifier that ships: pooling, and the ways out of Python."""

from pathlib import Path

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.numeric


def build(pool: str = "cls") -> Classifier:
    torch.manual_seed(0)
    spd = SPD(128, groups=3, dropout=0.1)
    return Classifier(ViT(img_size=(32, 48), preset="micro", drop_path=0.1), 5, pool=pool, spd=spd).eval()


@pytest.mark.parametrize("pool", ["cls", "mean", "cls+mean"])
def test_pools_what_it_says(pool: str) -> None:
    network = build(pool)
    image = torch.rand(2, 1, 32, 48)
    tokens = network.encoder(image)
    parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].sum(1) / 6}
    expected = torch.cat([parts[part] for part in pool.split("+")], dim=1)
    torch.testing.assert_close(network.features(image), expected)
    torch.testing.assert_close(network(image), expected @ network.head.weight.T + network.head.bias)
    assert network(image).shape == (2, 5)


def test_reads_the_tokens_through_its_spd() -> None:
    network, image = build("spd"), torch.rand(2, 1, 32, 48)
    assert network.spd is not None
    embeddings = network.spd(network.encoder(image)).embeddings
    assert torch.equal(network.features(image), torch.cat(embeddings.unbind(1), dim=1))
    assert network.features(image).shape == (2, 3 * 2 * 128)
    assert any(name.startswith("spd.") for name in network.state_dict())
    assert not any(name.startswith("spd.") for name in build("cls").state_dict()), "what is not pooled by is no part"


@pytest.mark.parametrize("pool", ["cls", "cls+mean", "spd"])
def test_scripted_and_saved_it_gives_the_same_for_any_batch(pool: str, tmp_path: Path) -> None:
    network = build(pool)
    torch.jit.script(network).save(str(tmp_path / "model.ts"))
    scripted = torch.jit.load(str(tmp_path / "model.ts"))
    for batch in (1, 3):
        image = torch.rand(batch, 1, 32, 48)
        assert torch.equal(scripted(image), network(image))
    with pytest.raises(torch.jit.Error, match="does not fit a ViT"):
        scripted(torch.rand(1, 1, 48, 32))


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("pool", ["cls", "spd"])
def test_traced_for_onnx_it_gives_the_same_for_any_batch(pool: str) -> None:
    network = build(pool)
    traced = torch.jit.trace(network, torch.rand(2, 1, 32, 48))
    exported = torch.export.export(
        network, (torch.rand(2, 1, 32, 48),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    image = torch.rand(3, 1, 32, 48)
    torch.testing.assert_close(traced(image), network(image))
    torch.testing.assert_close(exported(image), network(image))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": "max"}, "cls, mean"),
        ({"num_classes": 0}, "num_classes"),
        ({"pool": "spd"}, "it has cls, mean, cls\\+mean$"),
        ({"pool": "spd", "spd": SPD(64)}, "reads tokens of width 64, the backbone gives 128"),
    ],
)
def test_bad_arguments_are_told(arguments: dict, message: str) -> None:
    with pytest.raises(VividError, match=message):
        Classifier(**{"encoder": ViT(img_size=32, preset="micro"), "num_classes": 2} | arguments)
