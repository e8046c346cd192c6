"""Structured Prediction Decomposition: groups of queries that read different parts of an image."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import VividError


class SPDOutput(NamedTuple):
    """What SPD makes of the tokens of B images, for G groups of M queries.

    Attributes:
        embeddings: (B, G * M, D), the queries of the first group first.
        penalty: float (B,) in [0, 1], see `orthogonality_penalty`.
        attention: (B, G, N), each group's attention over the tokens, averaged over heads and queries, before dropout;
            every row sums to 1.
    """

    embeddings: Tensor
    penalty: Tensor
    attention: Tensor


def orthogonality_penalty(attention: Tensor) -> Tensor:
    """Mean over the pairs of groups of |cos(a_i, a_j)| (VIVID-Med, arXiv:2603.09109).

    Args:
        attention: (B, G, N), one map over N tokens per group.

    Returns:
        (B,): 0 where all maps are disjoint, 1 where all are equal up to scale; 0 for a single group.
    """
    groups = attention.shape[1]
    if groups == 1:
        return attention.new_zeros(attention.shape[0])
    pairs = torch.triu_indices(groups, groups, offset=1, device=attention.device)
    return F.cosine_similarity(attention[:, pairs[0]], attention[:, pairs[1]], dim=-1).abs().mean(dim=1)


class SPD(nn.Module):
    """G groups of M learned queries, each group with its own multi-head cross-attention over a backbone's tokens.

    With the group's query q, token t and, per head h, the group's projections K_h and V_h:

        a_h = softmax(q_hᵀ K_h t / √d),   out = O concat_h(V_h Σ_t a_h t) + o.

    Two savings change no function: a learned query needs no projection of its own, and q_hᵀ K_h is formed once per
    step, so that no token is projected to keys or values (a twentieth of the multiplications of ViT-B saved). Biases of
    keys and values would cancel in the softmax or merge with o.

    Attributes: `dim` (D), `out_dim` (G * M * D: of `pool`), `config` (keyword arguments that build it again, JSON).

    Args:
        dim: width D of the tokens and of the embeddings; a multiple of `heads`.
        groups: G ≥ 1.
        queries: M ≥ 1 per group.
        heads: attention heads of a group.
        dropout: probability in [0, 1) of dropping an attention weight while training, after the penalty is taken.

    Raises:
        VividError: an argument is out of its range.
    """

    def __init__(self, dim: int, *, groups: int = 4, queries: int = 2, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        if min(dim, groups, queries, heads) < 1 or dim % heads:
            raise VividError(
                f"dim={dim}, groups={groups}, queries={queries} and heads={heads} must be positive, "
                "dim a multiple of heads"
            )
        if not 0 <= dropout < 1:
            raise VividError(f"dropout={dropout} must lie in [0, 1)")
        self.config = {"dim": dim, "groups": groups, "queries": queries, "heads": heads, "dropout": dropout}
        self.dim, self.out_dim = dim, groups * queries * dim
        self.head_dim = dim // heads
        self.queries = nn.Parameter(torch.empty(groups, heads, queries, self.head_dim))
        self.key_weight = nn.Parameter(torch.empty(groups, heads, self.head_dim, dim))
        self.value_weight = nn.Parameter(torch.empty(groups, heads, self.head_dim, dim))
        self.out_weight = nn.Parameter(torch.empty(groups, dim, dim))
        self.out_bias = nn.Parameter(torch.zeros(groups, 1, dim))
        self.dropout = nn.Dropout(dropout)
        # Normalised tokens then give logits of unit variance: the maps of the groups differ from the first step on,
        # and the penalty has a gradient, which it has not where all maps are flat.
        nn.init.normal_(self.queries)
        for weight in (self.key_weight, self.value_weight, self.out_weight):
            nn.init.normal_(weight, std=dim**-0.5)

    def forward(self, tokens: Tensor) -> SPDOutput:
        """Read the tokens (B, N, D) of B images."""
        embeddings, maps = self._read(tokens)
        return SPDOutput(embeddings, orthogonality_penalty(maps), maps)

    def pool(self, tokens: Tensor) -> Tensor:
        """The embeddings of tokens (B, N, D) side by side: features (B, G * M * D) of the pool "spd"."""
        return self._read(tokens)[0].flatten(1)

    def _read(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and maps. B images, G groups, H heads, M queries, N tokens, E = D / H."""
        probes = torch.einsum("ghme,ghed->ghmd", self.queries, self.key_weight) * self.head_dim**-0.5
        logits = torch.einsum("bnd,ghmd->bghmn", tokens, probes)
        # At least float32: rounded to bfloat16, the maps' cosines are off in the third digit.
        attention = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        maps = attention.mean(dim=(2, 3))
        read = torch.einsum("bghmn,bnd->bghmd", self.dropout(attention).to(tokens.dtype), tokens)
        heads = torch.einsum("bghmd,ghed->bgmhe", read, self.value_weight).flatten(-2)
        embeddings = torch.einsum("bgmd,gfd->bgmf", heads, self.out_weight) + self.out_bias
        return embeddings.flatten(1, 2), maps
