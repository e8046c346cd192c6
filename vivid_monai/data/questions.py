"""Which fields of an image are asked in training."""

from collections.abc import Sequence

import numpy as np

from vivid_monai.errors import VividError

RARE_FIELDS = ("Fracture", "Pneumonia", "Lung Lesion", "Cardiomegaly", "Enlarged Cardiomediastinum")
"""The fields that the paper (arXiv 2603.09109) asks more often than chance would."""


class FieldSampler:
    """Asks a few answerable fields of an image, with a preference for rare ones.

    The number of fields is drawn evenly from `n`. With probability `p_rare` one of them is drawn from the answerable
    rare fields; the others come from all answerable fields left. Where fewer are answerable than would be asked, all
    of them are asked; an unanswerable field never is.

    Args:
        fields: names of the columns of `states`, in order.
        n: fewest and most fields to ask.
        rare: names among `fields`.
        p_rare: probability in [0, 1].

    Raises:
        VividError: an impossible range or probability, or a rare field that is not among `fields`.
    """

    def __init__(
        self,
        fields: Sequence[str],
        *,
        n: tuple[int, int] = (4, 6),
        rare: Sequence[str] = RARE_FIELDS,
        p_rare: float = 0.6,
    ) -> None:
        if len(n) != 2 or not 1 <= n[0] <= n[1]:
            raise VividError(f"field sampling: n must be (fewest, most) with 1 <= fewest <= most, not {tuple(n)}")
        if not 0 <= p_rare <= 1:
            raise VividError(f"field sampling: p_rare must be between 0 and 1, not {p_rare!r}")
        if unknown := [name for name in rare if name not in fields]:
            raise VividError(f"field sampling: rare fields {unknown} are not among the fields {list(fields)}; set rare")
        self.fields = tuple(fields)
        self.n = (int(n[0]), int(n[1]))
        self.p_rare = p_rare
        self._rare = np.array([name in rare for name in fields])

    def __call__(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw the fields of one image.

        Args:
            states: int (F,), negative = not answerable.
            rng: the only source of randomness.

        Returns:
            bool (F,), True where the field is asked.
        """
        answerable = states >= 0
        count = int(rng.integers(self.n[0], self.n[1], endpoint=True))
        want_rare = rng.random() < self.p_rare
        if answerable.sum() <= count:
            return answerable
        asked = np.zeros(len(self.fields), bool)
        rare = np.flatnonzero(answerable & self._rare)
        if want_rare and len(rare):
            asked[rng.choice(rare)] = True
        others = np.flatnonzero(answerable & ~asked)
        asked[rng.choice(others, count - int(asked.sum()), replace=False)] = True
        return asked
