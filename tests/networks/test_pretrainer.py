"""The pretrainer as a whole, with a small teacher that follows the teachers' interface."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.tolerance import close
from vivid_monai.errors import VividError
from vivid_monai.networks.objectives import FindingsBCE, StateObjective
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.projector import Projector
from vivid_monai.networks.spd import SPD
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput
from vivid_monai.networks.vit import ViT

pytestmark = pytest.mark.numeric

FIELDS = ("edema", "fracture")


class FakeTeacher(Teacher):
    """A linear "language model" over the mean embedding; one token per field."""

    def __init__(self, width: int = 24) -> None:
        super().__init__(FIELDS, width)
        self.lm = nn.Linear(width, 6)
        self.seen: Tensor | None = None

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.seen = embeddings.detach()
        log_probs = self.lm(embeddings.square().mean(1)).unflatten(1, (2, 3)).log_softmax(-1)
        answered = asked & (states >= 0)
        nll = -log_probs.gather(2, states.clamp(min=0)[..., None])[..., 0] * answered
        return TeacherOutput(nll, answered.long(), log_probs.detach())

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        return (asked & (states >= 0)).sum(1)


def build(*, seed: int = 0, groups: int = 4, pass_patches: bool = False) -> Pretrainer:
    torch.manual_seed(seed)
    vit = ViT(img_size=32, preset="micro")
    spd, projector = SPD(128, groups=groups), Projector(128, 24, dropout=0.0)
    states = StateObjective(spd, projector, FakeTeacher(), pass_patches=pass_patches)
    return Pretrainer(vit, {"states": states})


def batch() -> dict[str, Tensor]:
    return {
        "image": torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)),
        "states": torch.tensor([[0, 1], [2, -1], [1, 1]]),
        "asked": torch.tensor([[True, True], [True, True], [False, True]]),
    }


def loss_of(network: nn.Module) -> Tensor:
    pretrainer = getattr(network, "module", network)
    return pretrainer.loss(network(batch()), pretrainer.counts(batch()))


@pytest.mark.parametrize("pass_patches", [False, True])
def test_the_teacher_reads_spd_first_and_then_all_tokens(pass_patches: bool) -> None:
    pretrainer = build(pass_patches=pass_patches).eval()
    states = pretrainer.objectives["states"]
    output = pretrainer(batch())
    tokens = pretrainer.encoder(batch()["image"])
    spd = states.spd(tokens)
    parts = [spd.embeddings, tokens] if pass_patches else [spd.embeddings]
    torch.testing.assert_close(states.teacher.seen, torch.cat([states.projector(part) for part in parts], 1))
    assert {name: tuple(value.shape) for name, value in output.items()} == {"nll": (), "penalty": ()}
    assert torch.equal(output["penalty"], spd.penalty.sum())
    assert {name: int(count) for name, count in pretrainer.counts(batch()).items()} == {"nll": 4, "penalty": 3}
    answers = pretrainer.predict(batch())["states"]
    assert answers["log_probs"].shape == (3, 2, 3)
    assert torch.equal(answers["states"], batch()["states"])


@pytest.mark.parametrize("groups", [1, 4])
def test_the_gradient_reaches_everything(groups: int) -> None:
    pretrainer = build(groups=groups).eval()
    loss_of(pretrainer).backward()
    assert all(p.grad is not None and p.grad.any() for p in pretrainer.parameters())


def test_a_checkpoint_that_does_not_fit_is_refused_whole() -> None:
    pretrainer = build()
    before = {name: tensor.clone() for name, tensor in pretrainer.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items()}
    bad = [
        (
            {name: tensor for name, tensor in state.items() if name != "objectives.states.spd.queries"},
            r"states\.spd\.queries is missing",
        ),
        (state | {"head.weight": torch.zeros(1)}, r"head\.weight is unknown"),
        (
            state | {"objectives.states.spd.queries": torch.zeros(2)},
            r"states\.spd\.queries has shape \(2,\), not \(4, 4, 2, 32\)",
        ),
    ]
    for given, message in bad:
        with pytest.raises(VividError, match=message):
            pretrainer.load_state_dict(given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in pretrainer.state_dict().items())


def test_a_checkpoint_of_version_0_1_is_loaded_whose_objective_was_the_pretrainer_itself() -> None:
    trained, other = build(), build(seed=1)
    state = {name.removeprefix("objectives.states."): tensor for name, tensor in trained.state_dict().items()}
    assert {"spd.queries", "projector.0.weight", "teacher.lm.bias", "encoder.cls_token"} <= state.keys()
    other.load_state_dict(state)
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_an_spd_that_two_objectives_read_is_stored_once() -> None:
    def both(seed: int) -> Pretrainer:
        states = build(seed=seed).objectives["states"]
        bce = FindingsBCE(["edema"], 128, pool="spd", spd=states.spd)
        return Pretrainer(ViT(img_size=32, preset="micro"), {"states": states, "bce": bce})

    torch.manual_seed(1)
    trained, other = both(0), both(1)
    names = [name for name in trained.state_dict() if ".spd." in name]
    assert names == [f"objectives.states.spd.{name}" for name in SPD(8).state_dict()]
    other.load_state_dict(trained.state_dict())
    spd = other.objectives["states"].spd
    assert other.objectives["bce"].spd is spd
    assert torch.equal(spd.queries, trained.objectives["states"].spd.queries)


def test_parts_of_different_widths_are_refused() -> None:
    for spd, projector, name in (
        (SPD(64), Projector(64, 24), "'states' reads tokens of width 64, which must be 128"),
        (SPD(128), Projector(64, 24), "projector.dim=64 must be 128"),
        (SPD(128), Projector(128, 32), "projector.out_dim=32 must be 24"),
    ):
        with pytest.raises(VividError, match=name):
            Pretrainer(ViT(img_size=32, preset="micro"), {"states": StateObjective(spd, projector, FakeTeacher())})
    with pytest.raises(VividError, match="needs an objective"):
        Pretrainer(ViT(img_size=32, preset="micro"), {})


@pytest.mark.filterwarnings("ignore:Grad strides")  # with one group, of an axis of length 1
@pytest.mark.parametrize("groups", [1, 4])
def test_distributed_training_finds_no_unused_parameter(tmp_path: Path, groups: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build(groups=groups))
        for _ in range(2):  # the second forward is the one that complains
            loss_of(wrapped).backward()
    finally:
        dist.destroy_process_group()
    plain = build(groups=groups)
    for _ in range(2):
        loss_of(plain).backward()
    for ours, theirs in zip(wrapped.module.parameters(), plain.parameters(), strict=True):
        assert ours.grad is None if theirs.grad is None else torch.allclose(ours.grad, theirs.grad, **close(depth=1))
