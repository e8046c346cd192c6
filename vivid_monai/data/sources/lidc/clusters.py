"""Which readings mark the same nodule."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components

from vivid_monai.data.sources.lidc.regions import Region, overlap

MAX_READINGS = 4
"""Four radiologists read each scan."""


def cluster(regions: Sequence[Region], *, limit: int = MAX_READINGS) -> list[list[int]]:
    """Group the readings of one scan into nodules.

    Two readings are linked where their regions share a pixel of a slice; linked readings, and those linked to them, are
    one nodule (single linkage). A group of more than ``limit`` is taken apart by leaving out its weakest link (least
    intersection over union of the pixels), then the next weakest, until each piece has at most ``limit`` readings.
    The rule needs neither pixel spacing nor who read, so that outlines alone fix a nodule's identity for good.

    Returns:
        groups of positions in ``regions``, each sorted, in the order of their first positions.
    """
    strength = np.zeros((len(regions), len(regions)))
    for i, first in enumerate(regions):
        for j in range(i):
            strength[i, j] = strength[j, i] = overlap(first, regions[j])
    done: list[list[int]] = []
    open_groups = [(np.arange(len(regions)), 0.0)]
    while open_groups:
        members, threshold = open_groups.pop()
        links = strength[np.ix_(members, members)]
        count, label = connected_components(links > threshold, directed=False)
        for piece in range(count):
            group = members[label == piece]
            if len(group) <= limit:
                done.append(group.tolist())
            else:
                inner = strength[np.ix_(group, group)]
                open_groups.append((group, inner[inner > threshold].min()))
    return sorted(done)
