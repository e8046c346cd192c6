"""How far two float32 evaluations of one function may differ: argued from the arithmetic, not from a machine."""

import numpy as np


def float32(*, depth: int, scale: float = 1.0) -> float:
    """Absolute tolerance for the output of a float32 network that is computed in two ways.

    Another order of summation, a fused kernel or another instruction set rounds differently. A transformer block has
    four matrix products in series (queries/keys/values, projection, two of the MLP); each of the two evaluations rounds
    after every one of them, by half an epsilon of the largest value. The sums themselves round at random: for a width
    of some hundred their error stays below another epsilon. That is 2 · 4 · 1 epsilon per block.

    Args:
        depth: blocks (or layers, counted as blocks) one after the other.
        scale: largest absolute value of the output.
    """
    return float(8 * np.finfo(np.float32).eps * depth * scale)


def close(*, depth: int, scale: float = 1.0) -> dict[str, float]:
    """The same for ``torch.testing.assert_close``: ``scale`` is of the values on the way, whose results may be small or
    sums; a large result may differ in proportion."""
    return {"rtol": float32(depth=depth), "atol": float32(depth=depth, scale=scale)}
