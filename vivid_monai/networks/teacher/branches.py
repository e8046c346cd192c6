"""Several short texts continuing one context, side by side in one sequence, blind to each other.

Every branch sees the context and its own earlier tokens, and starts at the position right after the context, so the
order of the branches does not matter: each is computed as if it stood there alone.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from vivid_monai.errors import VividError
from vivid_monai.networks.teacher.frozen_lm import FrozenLM, KeysValues, additive

Ids = Sequence[int]


class Query(NamedTuple):
    """A position whose logits are wanted: token `offset` of branch `branch` of row `row`."""

    row: int
    branch: int
    offset: int


def check_padding_side(padding_side: str) -> str:
    """Return "left" or "right"; anything else is a VividError."""
    if padding_side not in ("left", "right"):
        raise VividError(f"padding_side must be left or right, got {padding_side!r}")
    return padding_side


def branch_logits(
    lm: FrozenLM,
    context: Tensor,
    branches: Sequence[Sequence[Ids]],
    queries: Sequence[Query],
    *,
    past: KeysValues | None = None,
    padding_side: str = "right",
    words: Tensor | None = None,
) -> Tensor:
    """Logits float32 (len(queries), vocabulary) of branches after a context.

    Args:
        lm: the language model.
        context: (B, C, embed_dim) embeddings, C ≥ 1, read causally.
        branches: per row its branches' token ids; rows may differ in number and length.
        queries: where logits are wanted.
        past: keys and values of a text before the context, shared by all rows.
        padding_side: where shorter rows are filled; no effect on any result.
        words: int64 (W,): only these tokens' logits, (len(queries), W).

    Raises:
        VividError: where the sequence is too long for the model.
    """
    batch, length = context.shape[:2]
    before = past[0][0].shape[2] if past else 0
    widths = [sum(map(len, row)) for row in branches]
    width = max(widths)
    longest = max((len(ids) for row in branches for ids in row), default=0)
    lm.check_length(before + length + longest, masked=before + length + width)

    # Columns of the branches' part: token id, branch number (context 0, padding −1), offset within the branch.
    filled = torch.tensor([0, -1, 0]).repeat(batch, width, 1)
    starts: list[list[int]] = []
    for row, (texts, used) in enumerate(zip(branches, widths, strict=True)):
        column = width - used if padding_side == "left" else 0
        cells = [(token, number, at) for number, ids in enumerate(texts, 1) for at, token in enumerate(ids)]
        if cells:
            filled[row, column : column + used] = torch.tensor(cells)
        starts.append(list(accumulate(map(len, texts), initial=column)))
    ids, number, offset = filled.to(context.device).unbind(-1)

    segment = torch.cat([number.new_zeros(batch, length), number], 1)
    position = torch.cat([torch.arange(length, device=context.device).expand(batch, -1), length + offset], 1) + before
    earlier = torch.ones(length + width, length + width, dtype=torch.bool, device=context.device).tril()
    # Padding sees the context, so that no row of the mask is empty, and is seen by nothing but padding.
    allowed = earlier & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    allowed = torch.cat([allowed.new_ones(batch, length + width, before), allowed], 2)

    rows = torch.tensor([query.row for query in queries], dtype=torch.int64, device=context.device)
    columns = [length + starts[query.row][query.branch] + query.offset for query in queries]
    return lm.logits(
        torch.cat([context, lm.embed(ids)], 1),
        additive(allowed[:, None], lm.dtype),
        position,
        (rows, torch.tensor(columns, dtype=torch.int64, device=context.device)),
        past,
        words=words,
    )
