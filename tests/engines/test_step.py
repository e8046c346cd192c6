"""The optimisation step: its loss is that of the whole batch, however the batch is cut up."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vivid_monai.engines.step import PretrainLoss, PretrainStep, ValidationStep, prepare_batch
from vivid_monai.errors import VividError
from vivid_monai.networks.pretrainer import Pretrainer
from vivid_monai.networks.spd import SPD, Projector
from vivid_monai.networks.teacher import build_teacher
from vivid_monai.networks.vit import ViT

FIELDS = ["a", "b", "c"]


def make_pretrainer(seed: int = 0, **teacher: Any) -> Pretrainer:
    torch.manual_seed(seed)
    encoder = ViT(img_size=32, patch_size=16, preset="micro")
    dim = encoder.embed_dim
    torch.manual_seed(seed)
    made = build_teacher(fields=FIELDS, **({"kind": "none", "embed_dim": 32} | teacher))
    return Pretrainer(encoder, SPD(dim), Projector(dim, out_dim=made.embed_dim, dropout=0.0), made)


def make_batch(n: int = 6, seed: int = 1) -> dict:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(-1, 3, (n, 3), generator=generator)
    states[0] = -1  # an image about which nothing can be asked
    asked = states >= 0
    image = torch.randn(n, 1, 32, 32, generator=generator)
    return {"image": image, "states": states, "asked": asked, "id": [str(i) for i in range(n)], "skipped": []}


def make_engine(network, *, loss=None, lr=0.0, amp=False):
    optimizer = torch.optim.SGD(network.parameters(), lr=lr)
    return SimpleNamespace(
        network=network,
        optimizer=optimizer,
        prepare_batch=prepare_batch,
        non_blocking=False,
        loss_function=loss or PretrainLoss(orthogonality=0.5),
        amp=amp,
        amp_kwargs={},
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )


def gradients(network) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def reference_loss(network, batch) -> torch.Tensor:
    output = network(batch["image"], batch["states"], batch["asked"])
    return output["nll"].sum() / output["count"].sum() + 0.5 * output["penalty"].mean()


def test_loss_and_gradient_are_the_batchs():
    network, batch = make_pretrainer(), make_batch()
    engine = make_engine(network)
    [output] = PretrainStep(clip_norm=None)(engine, batch)
    got = gradients(network)
    network.zero_grad(set_to_none=True)
    loss = reference_loss(network, batch)
    loss.backward()
    assert output["loss"] == pytest.approx(loss.item(), abs=1e-6)
    assert output["supervised"] == batch["asked"].sum().item()
    torch.testing.assert_close(got, gradients(network), atol=1e-7, rtol=1e-5)


def test_compiled_parts_say_what_plain_ones_say():
    teacher = {"kind": "lm", "layout": "short_slots"}
    plain, compiled, batch = make_pretrainer(**teacher), make_pretrainer(**teacher), make_batch()
    names = list(compiled.state_dict())
    compiled.compile()
    assert list(compiled.state_dict()) == names
    assert all(part._compiled_call_impl for part in (compiled.encoder, compiled.spd, compiled.projector))
    [expected] = PretrainStep(clip_norm=None)(make_engine(plain), batch)
    [got] = PretrainStep(clip_norm=None)(make_engine(compiled), batch)
    assert got == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(gradients(compiled), gradients(plain), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 5, 100])
def test_micro_batches_change_nothing(size):
    network, batch = make_pretrainer(), make_batch()
    [whole] = PretrainStep(clip_norm=None)(make_engine(network), batch)
    expected = gradients(network)
    [cut] = PretrainStep(clip_norm=None, micro_batch_size=size)(make_engine(network), batch)
    assert cut == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(gradients(network), expected, atol=1e-6, rtol=1e-4)


def test_a_batch_without_any_answerable_field_moves_only_by_the_penalty():
    network, batch = make_pretrainer(), make_batch()
    batch["states"][:], batch["asked"][:] = -1, False
    [output] = PretrainStep()(make_engine(network, loss=PretrainLoss(orthogonality=0.0)), batch)
    assert output["loss"] == 0
    assert not gradients(network).any()


def test_gradients_are_clipped_to_the_norm():
    network, batch = make_pretrainer(), make_batch()
    [output] = PretrainStep(clip_norm=1e-3)(make_engine(network), batch)
    assert output["grad_norm"] > 1e-3
    assert gradients(network).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_steps_lower_the_loss():
    network, batch = make_pretrainer(), make_batch()
    engine = make_engine(network, lr=0.1, loss=PretrainLoss(orthogonality=0.01))
    losses = [PretrainStep()(engine, batch)[0]["loss"] for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


def test_bf16_comes_close():
    network, batch = make_pretrainer(), make_batch()
    [exact] = PretrainStep()(make_engine(network), batch)
    [rough] = PretrainStep()(make_engine(network, amp=True), batch)
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert rough["loss"] != exact["loss"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_images():
    network, batch = make_pretrainer(), make_batch()
    batch["image"][2] = float("nan")
    with pytest.raises(VividError, match="became nan at step 1"):
        PretrainStep()(make_engine(network), batch)


def test_validation_answers_do_not_depend_on_the_truth():
    network, batch = make_pretrainer(), make_batch()
    first = ValidationStep()(make_engine(network), batch)
    batch["states"] = batch["states"].roll(1, 0)
    again = ValidationStep()(make_engine(network), batch)
    torch.testing.assert_close(first["log_probs"], again["log_probs"])
    assert torch.isfinite(first["log_probs"]).all(), "every field is asked, also where its truth is unknown"
    blank = network(torch.zeros_like(batch["image"][:1]), batch["states"][:1], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(first["blank"], blank["log_probs"])


@pytest.mark.parametrize("build", [lambda: PretrainLoss(orthogonality=-1), lambda: PretrainStep(micro_batch_size=0)])
def test_impossible_settings_are_refused(build):
    with pytest.raises(VividError):
        build()
