"""The bundle's network: PyTorch's and MONAI's modules only, and the same function."""

import json

import pytest
import torch

from vivid_monai.deploy.network import from_network, network_layers, to_network
from vivid_monai.errors import VividError
from vivid_monai.networks.classifier import Classifier
from vivid_monai.networks.vit import ViT


def classifier(*, pool="cls", **options) -> Classifier:
    """A classifier none of whose parameters is what it was initialised with."""
    torch.manual_seed(0)
    one = Classifier(ViT(**{"img_size": (32, 48), "patch_size": 8, "preset": "tiny", **options}), 5, pool=pool)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return one.eval()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("options", [{}, {"in_channels": 3, "norm_eps": 1e-2}, {"preset": "micro", "drop_path": 0.5}])
def test_is_the_same_function_and_comes_back(pool, options):
    ours = classifier(pool=pool, **options)
    network = to_network(ours)
    x = torch.randn(3, ours.encoder.config["in_channels"], 32, 48)
    with torch.no_grad():
        logits = ours(x)
        assert logits.std() > 0.05
        torch.testing.assert_close(network(x), logits, rtol=0, atol=2e-6)
        torch.testing.assert_close(network[:-1](x), ours.features(x), rtol=0, atol=5e-6)
        back = from_network(network.state_dict(), config=ours.encoder.config, pool=pool)
        torch.testing.assert_close(back(x), logits, rtol=0, atol=1e-6)
    assert not back.training


def test_gradients_are_the_same_so_that_it_can_be_trained_on():
    ours = classifier()
    network = to_network(ours).train()
    x = torch.randn(2, 1, 32, 48)
    for one in (ours, network):
        one(x).square().sum().backward()
    theirs = network[4].layers[2].self_attn.in_proj_weight.grad
    torch.testing.assert_close(theirs, ours.encoder.blocks[2].attn.qkv.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        network[3].position_embeddings.grad[:, :1], ours.encoder.cls_token.grad, rtol=1e-4, atol=1e-5
    )


def test_scripts_to_any_batch_size():
    network = to_network(classifier())
    scripted = torch.jit.script(network)
    for n in (1, 4):
        x = torch.randn(n, 1, 32, 48)
        torch.testing.assert_close(scripted(x), network(x), rtol=0, atol=2e-6)


def test_is_plain_config_of_torch_and_monai():
    layers = network_layers(classifier().encoder.config, n_fields=5, pool="cls")
    assert json.loads(json.dumps(layers)) == layers
    assert {layer["_target_"].split(".")[0] for layer in layers} == {"torch", "monai"}


def test_other_poolings_and_other_weights_are_refused():
    with pytest.raises(VividError, match="pools by cls or mean"):
        to_network(classifier(pool="cls+mean"))
    ours = classifier()
    state = to_network(ours).state_dict()
    config = ours.encoder.config
    missing = {name: value for name, value in state.items() if name != "4.norm.bias"}
    for wrong, settings in (
        (missing, config),
        (state, {**config, "preset": "micro"}),
        ({}, config),
        ({"a.b": 1}, config),
    ):
        with pytest.raises(VividError, match="not those of this network"):
            from_network(wrong, config=settings, pool="cls")
