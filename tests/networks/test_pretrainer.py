"""The pretrainer as a whole, with a small teacher that follows the teachers' interface."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vivid_monai.errors import VividError
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.spd import SPD, Projector
from vivid_monai.networks.teacher.base import Teacher, TeacherOutput
from vivid_monai.networks.vit import ViT

FIELDS = ("edema", "fracture")


class FakeTeacher(Teacher):
    """A linear "language model" over the mean embedding, frozen or not; one token per field."""

    def __init__(self, *, frozen: bool = True, width: int = 24) -> None:
        super().__init__(FIELDS, width)
        self.lm = nn.Sequential(nn.Dropout(0.5), nn.Linear(width, 6)).requires_grad_(not frozen)
        self.seen: Tensor | None = None

    def forward(self, embeddings: Tensor, states: Tensor, asked: Tensor) -> TeacherOutput:
        self.seen = embeddings.detach()
        log_probs = self.lm(embeddings.square().mean(1)).unflatten(1, (2, 3)).log_softmax(-1)
        answered = asked & (states >= 0)
        nll = -log_probs.gather(2, states.clamp(min=0)[..., None])[..., 0] * answered
        return TeacherOutput(nll, answered.long(), log_probs.detach())

    def count(self, states: Tensor, asked: Tensor) -> Tensor:
        return (asked & (states >= 0)).sum(1)


def build(*, frozen: bool = True, seed: int = 0, groups: int = 4, pass_patches: bool = False) -> Pretrainer:
    torch.manual_seed(seed)
    vit = ViT(img_size=32, preset="micro")
    spd, projector = SPD(128, groups=groups), Projector(128, 24, dropout=0.0)
    return Pretrainer(vit, spd, projector, FakeTeacher(frozen=frozen), pass_patches=pass_patches)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    image = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    return image, torch.tensor([[0, 1], [2, -1], [1, 1]]), torch.tensor([[True, True], [True, True], [False, True]])


def loss_of(output: dict[str, Tensor]) -> Tensor:
    return output["nll"].sum() / output["count"].sum() + 0.01 * output["penalty"].mean()


@pytest.mark.parametrize("pass_patches", [False, True])
def test_the_teacher_reads_spd_first_and_then_all_tokens(pass_patches: bool) -> None:
    pretrainer = build(pass_patches=pass_patches).eval()
    image, states, asked = batch()
    output = pretrainer(image, states, asked)
    tokens = pretrainer.encoder(image)
    spd = pretrainer.spd(tokens)
    parts = [spd.embeddings, tokens] if pass_patches else [spd.embeddings]
    torch.testing.assert_close(pretrainer.teacher.seen, torch.cat([pretrainer.projector(part) for part in parts], 1))
    assert {name: tuple(value.shape) for name, value in output.items()} == {
        "nll": (3, 2),
        "count": (3, 2),
        "log_probs": (3, 2, 3),
        "penalty": (3,),
    }
    assert torch.equal(output["penalty"], spd.penalty)
    assert output["count"].sum(1).tolist() == pretrainer.count(states, asked).tolist() == [2, 1, 1]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("frozen", [True, False])
def test_the_gradient_reaches_everything_that_is_trained(frozen: bool, groups: int) -> None:
    pretrainer = build(frozen=frozen, groups=groups).eval()
    loss_of(pretrainer(*batch())).backward()
    without = {name for name, p in pretrainer.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == ({"teacher.lm.1.weight", "teacher.lm.1.bias"} if frozen else set())


def test_only_a_frozen_teacher_stays_in_evaluation_mode() -> None:
    pretrainer = build()
    for _ in range(2):
        assert pretrainer.encoder.training
        assert pretrainer.projector[2].training
        assert not any(part.training for part in pretrainer.teacher.lm.modules())
        pretrainer.eval().train()
    trained = build(frozen=False).train()
    assert trained.teacher.lm[0].training
    assert not any(module.training for module in trained.eval().modules())


def test_the_checkpoint_holds_what_is_trained_and_restores_it() -> None:
    frozen, trained = build(), build(frozen=False)
    teacher = {"teacher.lm.1.weight", "teacher.lm.1.bias"}
    assert frozen.state_dict().keys() - frozen.trainable_state_dict().keys() == teacher
    assert trained.trainable_state_dict().keys() == trained.state_dict().keys()
    for source, is_frozen in ((frozen, True), (trained, False)):
        other = build(frozen=is_frozen, seed=1)
        kept = other.teacher.lm[1].weight.clone()
        other.load_trainable_state_dict(source.trainable_state_dict())
        assert all(torch.equal(a, source.state_dict()[n]) for n, a in other.trainable_state_dict().items())
        assert torch.equal(other.teacher.lm[1].weight, kept) == is_frozen


def test_a_checkpoint_that_does_not_fit_is_refused_whole() -> None:
    pretrainer = build()
    before = {name: tensor.clone() for name, tensor in pretrainer.state_dict().items()}
    state = {name: tensor + 1 for name, tensor in before.items() if not name.startswith("teacher")}
    bad = [
        ({name: tensor for name, tensor in state.items() if name != "spd.queries"}, r"spd\.queries is missing"),
        (state | {"head.weight": torch.zeros(1)}, r"head\.weight is unknown"),
        (state | {"spd.queries": torch.zeros(2)}, r"spd\.queries has shape \(2,\), not \(4, 4, 2, 32\)"),
        (before, r"teacher\.lm\.1\.weight is unknown"),
    ]
    for given, message in bad:
        with pytest.raises(VividError, match=message):
            pretrainer.load_trainable_state_dict(given)
        assert all(torch.equal(tensor, before[name]) for name, tensor in pretrainer.state_dict().items())


def test_parts_of_different_widths_are_refused() -> None:
    vit = ViT(img_size=32, preset="micro")
    for spd, projector, name in (
        (SPD(64), Projector(128, 24), "spd.dim=64 must be 128"),
        (SPD(128), Projector(64, 24), "projector.dim=64 must be 128"),
        (SPD(128), Projector(128, 32), "projector.out_dim=32 must be 24"),
    ):
        with pytest.raises(VividError, match=name):
            Pretrainer(vit, spd, projector, FakeTeacher())


@pytest.mark.filterwarnings("ignore:Grad strides")  # with one group, of an axis of length 1
@pytest.mark.parametrize("groups", [1, 4])
def test_distributed_training_finds_no_unused_parameter(tmp_path: Path, groups: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build(groups=groups))
        for _ in range(2):  # the second forward is the one that complains
            loss_of(wrapped(*batch())).backward()
    finally:
        dist.destroy_process_group()
    plain = build(groups=groups)
    for _ in range(2):
        loss_of(plain(*batch())).backward()
    for ours, theirs in zip(wrapped.module.parameters(), plain.parameters(), strict=True):
        assert ours.grad is None if theirs.grad is None else torch.allclose(ours.grad, theirs.grad, atol=1e-6)
