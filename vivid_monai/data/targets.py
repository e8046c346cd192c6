"""Targets: what an item has beside its image, each a function of the row and of a random generator.

A target is called with a row of :meth:`~vivid_monai.data.manifest.Manifest.items` and a NumPy generator, and returns
what it adds to the item. It may say which keys of a row it needs (``needs``; ask the manifest for those columns),
check all rows at once (``check``), and that it is about sides (``sided``), so that images must not be mirrored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vivid_monai.data.items import Items
from vivid_monai.errors import VividError
from vivid_monai.images.geometry import move_boxes, resample
from vivid_monai.images.preprocess import BasePreprocess

Row = dict[str, Any]

RARE_FIELDS = ("Fracture", "Pneumonia", "Lung Lesion", "Cardiomegaly", "Enlarged Cardiomediastinum")
"""The fields that the paper (arXiv 2603.09109) asks more often than chance would."""


class FieldSampler:
    """Asks a few answerable fields of an image, with a preference for rare ones.

    The number of fields is drawn evenly from `n`. With probability `p_rare` one of them is drawn from the answerable
    rare fields; the others come from all answerable fields left. Where fewer are answerable, all of them are asked.

    Args:
        fields: names of the columns of `states`, in order.
        n: fewest and most fields to ask, either "all"; where the fewest are, so are the most.
        rare: names among `fields`.
        p_rare: probability in [0, 1].

    Raises:
        VividError: an impossible range or probability, or a rare field that is not among `fields`.
    """

    def __init__(
        self,
        fields: Sequence[str],
        *,
        n: tuple[int | str, int | str] = (4, 6),
        rare: Sequence[str] = RARE_FIELDS,
        p_rare: float = 0.6,
    ) -> None:
        counts = [len(fields) if one == "all" else one for one in n]
        if len(n) == 2 and n[0] == "all":
            counts[1] = counts[0]
        whole = [one for one in counts if isinstance(one, int)]
        if not len(n) == len(whole) == 2 or not 1 <= whole[0] <= whole[1]:
            raise VividError(
                f"field sampling: n must be (fewest, most), numbers with 1 <= fewest <= most or all, not {tuple(n)}"
            )
        if not 0 <= p_rare <= 1:
            raise VividError(f"field sampling: p_rare must be between 0 and 1, not {p_rare!r}")
        if unknown := [name for name in rare if name not in fields]:
            raise VividError(f"field sampling: rare fields {unknown} are not among the fields {list(fields)}; set rare")
        self.fields = tuple(fields)
        self.n = (whole[0], whole[1])
        self.p_rare = p_rare
        self._rare = np.array([name in rare for name in fields])

    def __call__(self, states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """States of one image, int (F,), negative = not answerable → which fields are asked, bool (F,)."""
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


class StatesTarget:
    """Gives ``"states"``, int64 (F,), codes of :mod:`vivid_monai.ums.states`, and which of them are asked, bool (F,).

    Args:
        questions: chooses the fields that are ``"asked"``; None: all answerable ones.
    """

    needs = ("states",)

    def __init__(self, questions: FieldSampler | None = None) -> None:
        self.questions = questions

    def check(self, data: Sequence[Row]) -> None:
        width = len(self.questions.fields if self.questions else data[0].get("states", ()))
        for index, row in enumerate(data[:1] if isinstance(data, Items) else data):  # of a manifest, all are alike
            if "states" not in row:
                raise VividError(f"StatesTarget: item {index} lacks ['states']")
            if len(row["states"]) != width:
                raise VividError(
                    f"StatesTarget: item {index} ({row['id']}) has {len(row['states'])} states, not {width}"
                )

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        states = np.asarray(row["states"], np.int64)
        asked = self.questions(states, rng) if self.questions else states >= 0
        return {"states": torch.tensor(states), "asked": torch.tensor(asked)}


class BoxesTarget:
    """Gives the boxes of `fields` on the network's grid: ``"boxes"``, float32 (n, 2 S), not cut at the grid's edges.

    Also ``"box_fields"``, int64 (n,), places in `fields`, and ``"matrix"``, float64 (S + 1, S + 1), from the pixels of
    the image to the grid. Of a slice of a volume, boxes on other slices are left out.
    """

    needs = ("boxes",)

    def __init__(self, fields: Sequence[str], preprocess: BasePreprocess) -> None:
        self.fields, self.preprocess = tuple(fields), preprocess

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        matrix = self.preprocess.row_matrix(row)
        axes = len(matrix) - 1
        index = row.get("slice")
        here = [
            box
            for box in row.get("boxes") or ()
            if box["field"] in self.fields and (index is None or box.get("slice") in (None, index))
        ]
        corners = [_corners(box, axes, row) for box in here]
        return {
            "boxes": move_boxes(matrix, torch.tensor(corners, dtype=torch.float32).reshape(-1, 2 * axes)),
            "box_fields": torch.tensor([self.fields.index(box["field"]) for box in here], dtype=torch.int64),
            "matrix": torch.from_numpy(matrix),
        }


class MaskTarget:
    """Gives the mask on the network's grid, by the nearest pixel: ``"mask"``, uint8 (1, *spatial), 0 outside the file.

    None for a row without a path of one in `key`. Also ``"matrix"`` as :class:`BoxesTarget`. A PNG has the shape of its
    image; a NIfTI mask of a volume is placed by its own affine matrix.
    """

    def __init__(self, preprocess: BasePreprocess, *, key: str = "mask") -> None:
        self.preprocess, self.key, self.needs = preprocess, key, (key,)

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, torch.Tensor | None]:
        matrix = torch.from_numpy(self.preprocess.row_matrix(row))
        if row.get(self.key) is None:
            return {"mask": None, "matrix": matrix}
        mask, to_image = self.preprocess.read_mask(row[self.key], row)
        grid = self.preprocess.shape[1:]
        return {"mask": resample(torch.from_numpy(mask)[None], matrix.numpy() @ to_image, grid), "matrix": matrix}


class ReportTarget:
    """The text of the report: ``"report"``, str, None for a row without one."""

    needs = ("report",)
    sided = True

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, str | None]:
        return {"report": row.get("report")}


def _corners(box: dict[str, Any], axes: int, row: Row) -> list[float]:
    """Low and high corner along the axes of the image as it is read: rows before columns in 2-D, x, y, z in 3-D."""
    sides = [(box["y"], box["height"]), (box["x"], box["width"])]
    if axes == 3:
        # A box on a slice of a volume is as deep as the slice.
        deep = (box["z"], box["depth"]) if box.get("z") is not None else (box.get("slice"), 1)
        if deep[0] is None:
            raise VividError(f"{row['image']}: a box of {box['field']!r} has neither z and depth nor a slice")
        sides = [(box["x"], box["width"]), (box["y"], box["height"]), deep]
    return [low for low, _ in sides] + [low + extent for low, extent in sides]
