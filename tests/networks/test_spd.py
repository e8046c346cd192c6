"""SPD: equal to per-group attention as textbooks write it; the penalty; what training does with it."""

from itertools import combinations

import pytest
import torch
from torch import nn

from tests.tolerance import close, float32
from vivid_monai.errors import VividError
from vivid_monai.networks.spd import SPD, orthogonality_penalty

pytestmark = pytest.mark.numeric


def penalty_reference(attention: torch.Tensor) -> torch.Tensor:
    """Image by image, pair by pair."""
    images = []
    for maps in attention.double():
        pairs = [(a @ b / a.norm() / b.norm()).abs() for a, b in combinations(maps, 2)]
        images.append(sum(pairs) / len(pairs))
    return torch.stack(images)


@pytest.fixture
def spd() -> SPD:
    torch.manual_seed(0)
    return SPD(16, groups=3, queries=2, heads=4).double().eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(5, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_equals_multi_head_attention_group_by_group(spd: SPD, tokens: torch.Tensor) -> None:
    nn.init.normal_(spd.out_bias)
    output = spd(tokens)
    for group in range(3):
        reference = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
        weights = [torch.eye(16).double(), spd.key_weight[group].flatten(0, 1), spd.value_weight[group].flatten(0, 1)]
        state = {
            "in_proj_weight": torch.cat(weights),
            "in_proj_bias": torch.zeros(48),
            "out_proj.weight": spd.out_weight[group],
            "out_proj.bias": spd.out_bias[group, 0],
        }
        reference.load_state_dict(state)
        queries = spd.queries[group].transpose(0, 1).flatten(1).expand(5, -1, -1)
        embeddings, attention = reference(queries, tokens, tokens, average_attn_weights=True)
        torch.testing.assert_close(output.embeddings[:, 2 * group : 2 * group + 2], embeddings)
        torch.testing.assert_close(output.attention[:, group], attention.mean(1))


def test_penalty_equals_the_reference_in_float64(spd: SPD, tokens: torch.Tensor) -> None:
    output = spd(tokens)
    assert output.penalty.shape == (5,)
    torch.testing.assert_close(output.penalty, penalty_reference(output.attention), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(output.attention.sum(-1), torch.ones(5, 3, dtype=torch.float64))


def test_penalty_is_0_for_disjoint_maps_and_1_for_equal_ones() -> None:
    disjoint = torch.eye(4, 12)[None]
    equal = torch.rand(1, 1, 12).expand(1, 4, 12) * torch.tensor([1.0, 2.0, 0.5, 3.0])[None, :, None]
    half = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
    signed = half * torch.tensor([1.0, -1.0, 1.0])[None, :, None]
    penalties = [orthogonality_penalty(maps).item() for maps in (disjoint, equal, half, signed)]
    assert penalties == pytest.approx([0, 1, 1 / 3, 1 / 3], abs=float32(depth=1))


def test_one_group_has_no_penalty(tokens: torch.Tensor) -> None:
    penalty = SPD(16, groups=1).double()(tokens).penalty
    assert penalty.tolist() == [0.0] * 5


def test_groups_differ_from_the_start() -> None:
    torch.manual_seed(0)
    tokens = nn.functional.layer_norm(torch.randn(8, 197, 64), (64,))
    output = SPD(64)(tokens)
    assert output.penalty.max() < 0.95
    assert output.embeddings.shape == (8, 8, 64)
    assert torch.cdist(output.embeddings[0], output.embeddings[0])[~torch.eye(8, dtype=torch.bool)].min() > 0.1


def test_dropout_changes_the_embeddings_but_never_the_penalty() -> None:
    torch.manual_seed(0)
    spd = SPD(16, groups=3, dropout=0.5)
    tokens = torch.randn(2, 11, 16)
    first, second, calm = spd(tokens), spd(tokens), spd.eval()(tokens)
    assert not torch.equal(first.embeddings, second.embeddings)
    assert torch.equal(first.penalty, second.penalty)
    assert torch.equal(first.penalty, calm.penalty)
    assert torch.equal(first.attention, calm.attention)


def test_nothing_of_a_forward_stays_on_the_module(spd: SPD, tokens: torch.Tensor) -> None:
    before = {name: set(vars(module)) for name, module in spd.named_modules()}
    spd(tokens)
    assert {name: set(vars(module)) for name, module in spd.named_modules()} == before
    assert list(spd.buffers()) == []


def test_compiled_gives_the_same(spd: SPD, tokens: torch.Tensor) -> None:
    compiled = torch.compile(spd, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(tokens), spd(tokens), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_penalty_keeps_its_precision_in_bfloat16() -> None:
    torch.manual_seed(0)
    spd, tokens = SPD(16), torch.randn(2, 11, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [spd(tokens)]
    outputs.append(spd.bfloat16()(tokens.bfloat16()))
    assert outputs[1].embeddings.dtype == torch.bfloat16
    for output in outputs:
        assert output.penalty.dtype == output.attention.dtype == torch.float32
        torch.testing.assert_close(output.penalty.double(), penalty_reference(output.attention), **close(depth=1))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_training_with_the_penalty_drives_the_maps_apart(weight: float) -> None:
    """A regression on the tokens, with and without λ; only λ > 0 lowers the pairwise cosine."""
    torch.manual_seed(0)
    spd, tokens = SPD(16), torch.randn(16, 11, 16)
    target = tokens.mean(1, keepdim=True)
    optimizer = torch.optim.Adam(spd.parameters(), lr=3e-3)
    before = spd(tokens).penalty.mean().item()
    for _ in range(60):
        output = spd(tokens)
        loss = (output.embeddings - target).square().mean() + weight * output.penalty.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = spd(tokens).penalty.mean().item()
    assert after < 0.8 * before if weight else after > before


@pytest.mark.parametrize("arguments", [{"dim": 10}, {"groups": 0}, {"queries": 0}, {"heads": 0}, {"dropout": 1.0}])
def test_bad_arguments_are_told(arguments: dict) -> None:
    with pytest.raises(VividError, match=f"{next(iter(arguments))}={next(iter(arguments.values()))}"):
        SPD(**{"dim": 16} | arguments)
