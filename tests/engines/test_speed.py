"""What a step computes, counted without a change to it, and the speed of a matrix product."""

import copy

import pytest
import torch

from tests.engines.test_step import make_batch, make_engine, make_normed, make_pretrainer
from vivid_monai.engines.speed import operations, product_rate
from vivid_monai.engines.step import PretrainStep
from vivid_monai.networks.vit import ViT


def steps_of(network, *, counted: bool, amp: bool = False):
    """Weights, buffers and random state after three steps with dropout, and what was counted."""
    torch.manual_seed(7)
    engine = make_engine(network, lr=0.1, amp=amp)
    step = PretrainStep()
    step._number = 0 if counted else 10
    for seed in range(3):
        step(engine, make_batch(seed=seed))
    return network.state_dict(), torch.get_rng_state(), getattr(engine.state, "flop_per_image", None)


@pytest.mark.parametrize("amp", [False, True])
def test_counting_changes_no_bit(amp):
    network = make_normed()
    network.objectives["states"].spd.dropout.p = 0.5
    network.encoder.blocks[0].attn.drop_weights.p = 0.2
    plain, random, nothing = steps_of(copy.deepcopy(network), counted=False, amp=amp)
    seen, again, flop = steps_of(copy.deepcopy(network), counted=True, amp=amp)
    assert nothing is None
    assert flop > 1e7
    assert torch.equal(random, again)
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    assert any(not torch.equal(plain[name], value) for name, value in network.state_dict().items())


def test_a_vit_is_counted_as_on_paper():
    vit, n = ViT(img_size=32, patch_size=8, preset="micro"), 3
    with operations() as counter:
        vit(torch.zeros(n, 1, 32, 32)).sum().backward()
    width, depth, tokens = vit.embed_dim, len(vit.blocks), 17
    linear = depth * 12 * width**2 * tokens
    embedding = 16 * 64 * width
    attention = depth * 2 * tokens**2 * width
    # Forward once and backward twice; of the fused attention backward two and a half times; pixels need no gradient.
    expected = 2 * n * (3 * linear + 2 * embedding + 3.5 * attention)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


def test_what_is_compiled_is_not_counted():
    network = make_pretrainer()
    network.encoder._compiled_call_impl = network.encoder._call_impl
    assert steps_of(network, counted=True)[2] is None


def test_a_product_is_measured_and_draws_nothing():
    before = torch.get_rng_state()
    assert 1e8 < product_rate("cpu", torch.float32, side=256) < 1e14
    assert torch.equal(before, torch.get_rng_state())
