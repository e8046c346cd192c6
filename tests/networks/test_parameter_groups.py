"""Every trained parameter in exactly one group, at its rate, decayed or not."""

import pytest
import torch

from vivid_monai.errors import VividError
from vivid_monai.networks.parameter_groups import parameter_groups
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.spd import SPD, Projector
from vivid_monai.networks.teacher.none import StateClassifier
from vivid_monai.networks.vit import ViT

RATES = {"lr_vit": 2e-5, "lr_projector": 1e-4, "weight_decay": 0.01}


@pytest.fixture
def pretrainer() -> Pretrainer:
    teacher = StateClassifier(("edema", "fracture"), 24)
    return Pretrainer(ViT(img_size=32, preset="micro"), SPD(128), Projector(128, 24), teacher)


def names_of(group: dict, pretrainer: Pretrainer) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in pretrainer.named_parameters() if id(parameter) in ids}


def test_rates_and_decay_go_where_they_belong(pretrainer: Pretrainer) -> None:
    groups = parameter_groups(pretrainer, **RATES)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("vit", 2e-5, 0.01),
        ("vit, no decay", 2e-5, 0.0),
        ("projector", 1e-4, 0.01),
        ("projector, no decay", 1e-4, 0.0),
    ]
    vit, vit_plain, rest, rest_plain = (names_of(group, pretrainer) for group in groups)
    assert vit | vit_plain | rest | rest_plain == {name for name, _ in pretrainer.named_parameters()}
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
    torch.optim.AdamW(groups)  # takes them as they are


def test_frozen_parameters_are_left_out(pretrainer: Pretrainer) -> None:
    pretrainer.teacher.requires_grad_(False)
    pretrainer.encoder.requires_grad_(False)
    groups = parameter_groups(pretrainer, **RATES)
    assert [group["name"] for group in groups] == ["projector", "projector, no decay"]
    assert all(name.startswith(("spd.", "projector.")) for group in groups for name in names_of(group, pretrainer))
    with pytest.raises(VividError, match="nothing to train"):
        parameter_groups(pretrainer.requires_grad_(False), **RATES)


@pytest.mark.parametrize("name", list(RATES))
def test_negative_rates_are_told(pretrainer: Pretrainer, name: str) -> None:
    with pytest.raises(VividError, match=f"{name}=-1"):
        parameter_groups(pretrainer, **RATES | {name: -1})
