"""States of one data set in the words of another: what a transfer between label spaces rests on."""

import numpy as np
from numpy.typing import NDArray

from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.states import ABSENT, NULL, PRESENT


def shared_states(states: NDArray[np.integer], source: LabelSpace, target: LabelSpace) -> NDArray[np.int64]:
    """Return states (N, F of ``source``) as states int64 (N, F of ``target``), field by field through their concepts.

    A field of the target that the source has no concept for is null. The target's "no finding" is found thus:

    * the source has such a field too: its state, and absent where that is null but another field, other than those that
      may stand beside it, is present;
    * the source lists what it found and means the rest to be absent (it has a ``none_label``): present where every
      field is absent, absent where one is present, null otherwise;
    * else null.
    """
    out = np.full((len(states), len(target.fields)), NULL, dtype=np.int64)
    for ours, theirs in source.mapping_to(target).items():
        out[:, target.fields.index(theirs)] = states[:, source.fields.index(ours)]
    if target.no_finding is None:
        return out

    column = out[:, target.fields.index(target.no_finding)]
    beside = {source.no_finding, *source.no_finding_compatible}
    findings = states[:, [i for i, field in enumerate(source.fields) if field not in beside]]
    if source.no_finding is not None or source.none_label is not None:
        column[(column == NULL) & (findings == PRESENT).any(axis=1)] = ABSENT
    if source.no_finding is None and source.none_label is not None:
        column[(findings == ABSENT).all(axis=1)] = PRESENT
    return out


def shared_fields(source: LabelSpace, target: LabelSpace) -> set[str]:
    """The fields of the target that :func:`shared_states` can fill."""
    mapped = set(source.mapping_to(target).values())
    told = source.no_finding is not None or source.none_label is not None
    return mapped | ({target.no_finding} if told and target.no_finding else set())
