"""Damaged files: bits turned, ends cut off, stretches overwritten."""

from collections.abc import Iterator

import numpy as np


def mutations(content: bytes, n: int, *, seed: int) -> Iterator[bytes]:
    """n damaged versions of a file; half of the bit flips fall into its first 2 kB, where the header is."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        data = np.frombuffer(content, np.uint8).copy()
        kind = i % 4
        if kind == 0:
            data = data[: rng.integers(0, len(data))]
        elif kind == 3:
            start = int(rng.integers(0, len(data)))
            data[start : start + int(rng.integers(1, 64))] = rng.integers(0, 256)
        else:
            reach = min(2048, len(data)) if kind == 1 else len(data)
            places = rng.integers(0, reach, rng.integers(1, 20))
            data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
        yield data.tobytes()
