"""Nodules as rows of the manifest."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from vivid_monai.data.columns import FINDING
from vivid_monai.data.sources.duplicates import drop_each
from vivid_monai.data.sources.lidc.crop import CropRule
from vivid_monai.data.sources.lidc.nodules import Aggregate, Nodule
from vivid_monai.data.sources.rows import KEY, ROW, TABLE, Rows

SPACE, FIELD = "lidc-malignancy", "Malignancy"
NODULES = "nodules.csv"


def crop_path(nodule: Nodule) -> str:
    """Where a nodule's crop lies in the output folder."""
    return f"crops/{nodule.id}.nii"


def manifest_rows(
    nodules: Sequence[Nodule],
    states: Sequence[int],
    problems: Sequence[tuple[str, str] | None],
    listed: pa.Table,
    notes: Sequence[str],
    rule: CropRule,
    rating: Aggregate,
) -> Rows:
    """One row for each nodule; those with a problem (reason, detail) are dropped and listed.

    Args:
        listed: files and scans that were skipped, in SKIPPED_SCHEMA; they count as read, too.
    """
    n = len(nodules)
    columns: dict[str, list[str | None]] = {
        TABLE: [NODULES] * n,
        KEY: [nodule.id for nodule in nodules],
        "id": [nodule.id for nodule in nodules],
        "image": [crop_path(nodule) for nodule in nodules],
        "patient_id": [nodule.patient_id or "" for nodule in nodules],
        "study_id": [nodule.study_uid or None for nodule in nodules],
        "details": [_details(nodule, rating) for nodule in nodules],
    }
    words = {"split": None, "view": None, "sex": None, "modality": "CT", "anatomy": "lung", "dataset": "lidc-idri"}
    words |= {"labeller": "LIDC-IDRI readers", "source": "human", "labeller_version": None}
    whole = {"slice": 1, "slices": 3, "height": rule.pixels, "width": rule.pixels}
    table = pa.table(
        {name: pa.array(values, pa.string()) for name, values in columns.items()}
        | {name: pa.array([word] * n, pa.string()) for name, word in words.items()}
        | {name: pa.array([value] * n, pa.int32()) for name, value in whole.items()}
        | {ROW: pa.array(range(2, n + 2), pa.int64()), "age": pa.nulls(n, pa.float64())}
        | {FINDING + FIELD: pa.array(states, pa.int8())}
    )
    told = f"{listed.num_rows:,} of the rows read are no nodules but the files and scans that skipped.csv lists."
    rows = Rows(table=table, n_read=n + listed.num_rows, skipped=[listed], notes=[*notes, told])
    drop_each(rows, {row: problem for row, problem in enumerate(problems) if problem is not None})
    return rows


def _details(nodule: Nodule, aggregate: Aggregate) -> str | None:
    rating = nodule.malignancy(aggregate)
    found: list[dict[str, Any]] = []
    if rating is not None:
        found.append({"name": "rating", "value": round(rating, 3), "unit": "1"})
    if nodule.diameter_mm:
        found.append({"name": "diameter", "value": round(nodule.diameter_mm, 3), "unit": "mm"})
    return json.dumps({FIELD: {"measurements": found}}) if found else None
