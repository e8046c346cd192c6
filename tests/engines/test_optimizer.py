"""The optimiser: which parameter is trained at which rate, Muon's step, and that a run goes on as if never stopped."""

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.tolerance import close
from vivid_monai.engines.optimizer import Muon, blocks, build_optimizer, layers, orthogonal, parameter_groups
from vivid_monai.engines.step import warmup_cosine
from vivid_monai.errors import VividError
from vivid_monai.networks.densenet import DenseNet
from vivid_monai.networks.objectives import FindingsBCE, StateObjective
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.projector import Projector
from vivid_monai.networks.resnet import ResNet
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.teacher import StateClassifier
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.numeric

RATES = {"lr_vit": 2e-5, "lr_projector": 1e-4, "weight_decay": 0.01}


@pytest.fixture
def pretrainer() -> Pretrainer:
    states = StateObjective(SPD(128), Projector(128, 24), StateClassifier(("edema", "fracture"), 24))
    return Pretrainer(ViT(img_size=32, preset="micro"), {"states": states})


def names_of(group: dict, pretrainer: Pretrainer) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    named = pretrainer.named_parameters()
    return {name.removeprefix("objectives.states.") for name, parameter in named if id(parameter) in ids}


def test_rates_and_decay_go_where_they_belong(pretrainer: Pretrainer) -> None:
    groups = parameter_groups(pretrainer, **RATES)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("vit", 2e-5, 0.01),
        ("vit, no decay", 2e-5, 0.0),
        ("projector", 1e-4, 0.01),
        ("projector, no decay", 1e-4, 0.0),
    ]
    vit, vit_plain, rest, rest_plain = (names_of(group, pretrainer) for group in groups)
    assert vit | vit_plain | rest | rest_plain == {
        name.removeprefix("objectives.states.") for name, _ in pretrainer.named_parameters()
    }
    assert sum(len(group["params"]) for group in groups) == len(list(pretrainer.parameters()))
    assert all(name.startswith("encoder.") and name.endswith("weight") for name in vit)
    assert {"encoder.patch_embedding.patch_embeddings.weight", "encoder.blocks.5.mlp.linear2.weight"} <= vit
    assert {"encoder.cls_token", "encoder.patch_embedding.position_embeddings", "encoder.norm.weight"} <= vit_plain
    assert rest == {
        "spd.key_weight",
        "spd.value_weight",
        "spd.out_weight",
        "projector.0.weight",
        "projector.3.weight",
        "teacher.weight",
    }
    assert {"spd.queries", "spd.out_bias", "projector.4.weight", "teacher.query", "teacher.bias"} <= rest_plain


def test_frozen_parameters_are_left_out(pretrainer: Pretrainer) -> None:
    pretrainer.objectives["states"].teacher.requires_grad_(False)
    pretrainer.encoder.requires_grad_(False)
    groups = parameter_groups(pretrainer, **RATES)
    assert [group["name"] for group in groups] == ["projector", "projector, no decay"]
    assert all(name.startswith(("spd.", "projector.")) for group in groups for name in names_of(group, pretrainer))
    with pytest.raises(VividError, match="nothing to train"):
        parameter_groups(pretrainer.requires_grad_(False), **RATES)


@pytest.mark.parametrize("name", [*RATES, "lr_muon"])
def test_negative_rates_are_told(pretrainer: Pretrainer, name: str) -> None:
    with pytest.raises(VividError, match=f"{name}=-1"):
        parameter_groups(pretrainer, **RATES | {name: -1})


WAYS: dict[str, dict[str, Any]] = {
    "adamw": {"kind": "adamw"},
    "muon": {"kind": "muon", "lr_muon": 0.02},
    "muon, layers": {"kind": "muon", "lr_muon": 0.02, "layer_decay": 0.5},
}


@pytest.mark.parametrize("way", WAYS)
def test_every_parameter_is_trained_once_also_an_spd_that_two_objectives_read(pretrainer: Pretrainer, way: str) -> None:
    states = pretrainer.objectives["states"]
    bce = FindingsBCE(["edema"], 128, pool="spd", spd=states.spd)
    both = Pretrainer(pretrainer.encoder, {"states": states, "bce": bce})
    groups = build_optimizer(both, **WAYS[way], **RATES).param_groups
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(trained) == sorted(id(parameter) for parameter in both.parameters())


def test_muon_has_the_hidden_matrices_and_nothing_else(pretrainer: Pretrainer) -> None:
    groups = build_optimizer(pretrainer, "muon", **RATES).param_groups
    assert [(g["name"], g["lr"], g["weight_decay"], g["muon"]) for g in groups] == [
        ("vit", 2e-5, 0.01, False),
        ("vit, no decay", 2e-5, 0.0, False),
        ("vit, muon", 0.02, 0.01, True),
        ("projector", 1e-4, 0.01, False),
        ("projector, no decay", 1e-4, 0.0, False),
        ("projector, muon", 0.02, 0.01, True),
    ]
    vit, _, hidden, rest, _, read = (names_of(group, pretrainer) for group in groups)
    assert vit == {"encoder.patch_embedding.patch_embeddings.weight"}
    linear = ("attn.qkv", "attn.out_proj", "mlp.linear1", "mlp.linear2")
    assert hidden == {f"encoder.blocks.{i}.{name}.weight" for i in range(6) for name in linear}
    assert rest == {"teacher.weight"}
    assert read == {f"spd.{n}_weight" for n in ("key", "value", "out")} | {f"projector.{n}.weight" for n in (0, 3)}


@pytest.mark.parametrize("way", ["adamw", "muon, layers"])
def test_the_rate_of_a_layer_falls_towards_the_pixels(pretrainer: Pretrainer, way: str) -> None:
    groups = build_optimizer(pretrainer, **WAYS[way] | {"layer_decay": 0.5}, **RATES).param_groups
    rates: dict[bool, dict[int, float]] = {True: {}, False: {}}
    for group in groups:
        for name in names_of(group, pretrainer):
            if not name.startswith("encoder."):
                assert group["lr"] in (1e-4, 0.02)
                continue
            layer = 7 if "encoder.norm" in name else int(name.split(".")[2]) + 1 if ".blocks." in name else 0
            assert group["name"].startswith(f"vit, layer {layer}")
            assert rates[group.get("muon", False)].setdefault(layer, group["lr"]) == group["lr"]
    assert rates[False][7] == 2e-5
    assert list(rates[False]) == list(range(8))
    for one in rates.values():
        assert all(high == pytest.approx(2 * low) for low, high in pairwise(one.values()))
    assert (way == "adamw") == (not rates[True])
    assert way == "adamw" or rates[True][6] == 0.01


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "sgd"}, "optimizer='sgd' is unknown: choose adamw or muon"),
        ({"layer_decay": 0.0}, "layer_decay=0.0 must lie in"),
        ({"layer_decay": 1.5}, "layer_decay=1.5 must lie in"),
    ],
)
def test_wrong_settings_are_told(pretrainer: Pretrainer, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(VividError, match=message):
        build_optimizer(pretrainer, **RATES, **wrong)


def test_what_is_for_a_vit_is_refused_for_a_cnn() -> None:
    cnn = ResNet(img_size=32)
    network = Pretrainer(cnn, {"bce": FindingsBCE(["edema"], cnn.embed_dim, prefix=0)})
    with pytest.raises(VividError, match="ViT"):
        build_optimizer(network, **RATES, kind="muon")


ENCODERS: dict[str, tuple[Any, list[str]]] = {
    "vit": (lambda: ViT(img_size=32, preset="nano", stem="conv"), ["blocks.0", "blocks.1"]),
    "resnet50": (lambda: ResNet(img_size=32, depth=50, width=8), [f"stages.{i}" for i in range(4)]),
    "densenet": (lambda: DenseNet(img_size=32, growth=8), [f"features.denseblock{i}" for i in range(1, 5)]),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_blocks_of_any_backbone_are_found_and_its_rates_fall_towards_the_pixels(name: str) -> None:
    build, expected = ENCODERS[name]
    encoder = build()
    assert list(blocks(encoder)) == expected
    found = layers(encoder)
    assert found.keys() == {key for key, _ in encoder.named_parameters()}
    for i, block in enumerate(expected, start=1):
        assert {layer for key, layer in found.items() if key.startswith(f"{block}.")} == {i}
    assert found["norm.weight"] == len(expected) + 1
    assert min(found.values()) == 0
    if name == "densenet":
        assert (found["features.transition1.conv.weight"], found["features.norm5.weight"]) == (1, 5)
    network = Pretrainer(encoder, {"bce": FindingsBCE(["edema"], encoder.embed_dim, prefix=encoder.prefix)})
    for group in build_optimizer(network, **RATES, layer_decay=0.5).param_groups:
        for key in names_of(group, network) - {"objectives.bce.head.weight", "objectives.bce.head.bias"}:
            layer = found[key.removeprefix("encoder.")]
            assert group["lr"] == pytest.approx(2e-5 * 0.5 ** (len(expected) + 1 - layer))


def test_a_network_without_a_sequence_of_blocks_has_no_layer_decay() -> None:
    with pytest.raises(VividError, match="is no sequence of blocks"):
        layers(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))


@pytest.mark.parametrize("shape", [(16, 24), (24, 16), (16, 16)])
def test_an_update_keeps_the_singular_vectors_and_levels_the_values(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(torch.randn(5, *shape, dtype=torch.float64), full_matrices=False)
    values = torch.logspace(0, -2, 16, dtype=torch.float64)
    got = left.mT @ orthogonal(3 * left * values @ right) @ right.mT
    levelled = got.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(got, torch.diag_embed(levelled), rtol=0, atol=1e-10)
    assert levelled.min() > 0.6
    assert levelled.max() < 1.3


def matrices(*shape: int, n: int = 3) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape)) for _ in range(n)]


def steps(pairs: list[tuple[torch.optim.Optimizer, list[nn.Parameter]]], n: int = 3) -> None:
    """Steps with the same random gradients for all."""
    for _ in range(n):
        gradients = [torch.randn_like(parameter) for parameter in pairs[0][1]]
        for optimizer, parameters in pairs:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.reshape(parameter.shape).clone()
            optimizer.step()


def copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().clone()) for parameter in parameters]


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
def test_muon_is_that_of_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mine = matrices(*shape)
    theirs = copies(mine)
    own = Muon([{"params": mine, "muon": True}], lr=0.1, weight_decay=0.1)
    steps([(own, mine), (torch.optim.Muon(theirs, lr=0.1, weight_decay=0.1), theirs)])
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0.01)  # theirs rounds to bfloat16


def test_other_groups_are_adamws_bit_for_bit() -> None:
    torch.manual_seed(0)
    mine = [*matrices(4, 3), *matrices(5)]
    theirs = copies(mine)
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}
    steps([(Muon(mine, **settings), mine), (torch.optim.AdamW(theirs, **settings), theirs)])
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_a_stack_moves_as_its_matrices_by_themselves() -> None:
    torch.manual_seed(0)
    stacks = matrices(2, 3, 4, 8)
    alone = [nn.Parameter(one.detach().clone()) for stack in stacks for one in stack.flatten(0, 1)]
    own, other = (Muon([{"params": given, "muon": True}], lr=0.1) for given in (stacks, alone))
    for _ in range(3):
        for stack in stacks:
            stack.grad = torch.randn_like(stack)
        for parameter, gradient in zip(
            alone, [one for stack in stacks for one in stack.grad.flatten(0, 1)], strict=True
        ):
            parameter.grad = gradient.clone()
        own.step()
        other.step()
    together = torch.stack([one for stack in stacks for one in stack.flatten(0, 1)])
    torch.testing.assert_close(together, torch.stack(list(alone)), **close(depth=16))


def test_a_parameter_without_a_gradient_stays() -> None:
    first, second = matrices(4, 4, n=2)
    before = second.detach().clone()
    optimizer = Muon([{"params": [first, second], "muon": True}, {"params": matrices(3, n=1)}], lr=0.1)
    first.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(second, before)
    assert len(optimizer.state) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(way: str) -> None:
    def build() -> tuple[Pretrainer, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        states = StateObjective(SPD(32), Projector(32, 24), StateClassifier(("edema", "fracture"), 24))
        vit = ViT(img_size=32, preset=None, width=32, depth=2, heads=2)
        network = Pretrainer(vit, {"states": states})
        optimizer = build_optimizer(network, **WAYS[way], **RATES | {"lr_vit": 1e-3})
        return network, optimizer, warmup_cosine(optimizer, steps=6, warmup_steps=2)

    def train(network: Pretrainer, optimizer: Any, scheduler: Any, gradients: Iterator[list[Tensor]]) -> None:
        for given in gradients:
            for parameter, gradient in zip(network.parameters(), given, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
            scheduler.step()

    whole = build()
    gradients = [[torch.randn_like(parameter) for parameter in whole[0].parameters()] for _ in range(6)]
    train(*whole, iter(gradients))
    first, second = build(), build()
    train(*first, iter(gradients[:3]))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(*second, iter(gradients[3:]))
    moved = build()[0]
    for one, other, start in zip(*(part.parameters() for part in (whole[0], second[0], moved)), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, start)
