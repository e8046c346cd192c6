"""Harder conditions of a prepared data set: what is learned from gets worse, what is tested on stays as it is."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import state_columns
from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import SplitRule, encode
from vivid_monai.errors import VividError
from vivid_monai.prepare.card import describe
from vivid_monai.ums.states import ABSENT, NULL, PRESENT

GENERATOR = "vivid-monai conditions"
TELLING = ("boxes", "mask", "details", "report", "report_ref")
"""Columns that would tell the state of before."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """How training and validation labels get harder; test rows stay. Each draw is independent of the other settings.

    Args:
        labels: share of the training patients that are kept, in (0, 1]; a smaller one keeps some of the same patients.
        rare: field → share of its present patients that are kept in training and validation, in (0, 1].
        shuffle: the states of a training image become those of another patient's.
        noise: probability that present becomes absent, or absent present, drawn for each study and field, in [0, 0.5].
        missing: probability that a state becomes null, drawn likewise, in [0, 1).
        assume_absent: every null becomes absent, those of ``missing`` included: what answerability is there to avoid.
        hide: fields that no training image answers; validation keeps them.
        name: of the data set from now on; a union (:mod:`vivid_monai.data.union`) needs two.
        seed: of all draws.

    Raises:
        VividError: a share or probability out of range.
    """

    labels: float = 1.0
    rare: Mapping[str, float] = field(default_factory=dict)
    shuffle: bool = False
    noise: float = 0.0
    missing: float = 0.0
    assume_absent: bool = False
    hide: tuple[str, ...] = ()
    name: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, share in {"labels": self.labels, **self.rare}.items():
            if not 0 < share <= 1:
                raise VividError(f"{what} {share:g}: the share that is kept lies above 0 and is at most 1")
        if not 0 <= self.noise <= 0.5:
            raise VividError(f"noise {self.noise:g}: from 0 to 0.5, where labels say nothing any more")
        if not 0 <= self.missing < 1:
            raise VividError(f"missing {self.missing:g}: at least 0 and below 1")
        if self.seed < 0:
            raise VividError(f"seed {self.seed}: at least 0")


def harder(manifest: Manifest, conditions: Conditions) -> Manifest:
    """The manifest under harder conditions; the same images, where they are.

    Rows whose states change lose boxes, mask, details and report. ``sources`` gets the settings.

    Raises:
        VividError: a field that is none, nothing to learn or no validation image left, a patient with over half of the
            images that are to be shuffled.
    """
    resolve = manifest.label_space.resolve
    conditions = replace(
        conditions,
        rare={resolve(name): share for name, share in conditions.rare.items()},
        hide=tuple(map(resolve, conditions.hide)),
    )
    table, before = manifest.table, manifest.states()
    split = np.asarray(table["split"].to_pylist())
    sides = [split == "train", split == "val"]
    patients, ids = encode(table["patient_id"])
    kept = _kept(before, sides, patients, ids, list(manifest.fields), conditions)
    states = before.copy()
    if conditions.shuffle:
        rows = np.flatnonzero(sides[0] & kept)
        order = _draws(conditions, "shuffle").permutation(patients.max(initial=0) + 1)
        states[rows] = states[rows[of_other_patients(order[patients[rows]], images="training images")]]
    learned = (sides[0] | sides[1])[:, None]
    units, n_units = _units(table)
    if conditions.noise:
        wrong = learned & (_draws(conditions, "noise").random((n_units, states.shape[1]))[units] < conditions.noise)
        wrong &= (states == PRESENT) | (states == ABSENT)
        states[wrong] = np.where(states[wrong] == PRESENT, ABSENT, PRESENT)
    if conditions.missing:
        lost = _draws(conditions, "missing").random((n_units, states.shape[1]))[units] < conditions.missing
        states[learned & lost] = NULL
    if conditions.assume_absent:
        states[learned & (states == NULL)] = ABSENT
    for name in conditions.hide:
        states[sides[0], manifest.fields.index(name)] = NULL
    _check_left(states, [side & kept for side in sides], patients)

    settings = {"generator": GENERATOR, **asdict(conditions), "hide": list(conditions.hide)}
    if isinstance(manifest.path, Path):
        with manifest.path.open("rb") as file:
            settings["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    made = Manifest(
        _table(table, manifest.fields, states, (states != before).any(axis=1), conditions.name).filter(pa.array(kept)),
        label_space=manifest.stored_space,
        image_root=manifest.image_root,
        splits=manifest.splits,
        sources=[*manifest.sources, settings],
    )
    if manifest.card:
        note = f"Made harder ({told(conditions)}); rows are told as they were before."
        made.card = {**manifest.card, **describe(made), "notes": [*manifest.card.get("notes", ()), note]}
    return made


def prepare(folder: Path, out: Path, conditions: Conditions) -> tuple[Manifest, Manifest]:
    """Write the manifest in `folder` under harder conditions to `out`; returns it as it is there and as it is now.

    A folder that holds the same is used again.

    Raises:
        VividError: as :func:`harder`; no manifest, or `out` holds another one.
    """
    before = Manifest.load(folder / "manifest.parquet")
    made, path = harder(before, conditions), out / "manifest.parquet"
    if path.exists() and (old := Manifest.load(path)).sources != made.sources:
        was = told_of(old) or "another data set"
        raise VividError(f"{out}: holds {was}, not this condition of {folder}; name another --out or remove it")
    if not path.exists():
        made.save(path)
    return before, made


def told(conditions: Conditions) -> str:
    """The settings that are not the default, as ``labels=0.05, rare=Edema 0.1, seed=0``."""
    default, words = asdict(Conditions()), []
    for name, value in asdict(conditions).items():
        if name == "seed" or value != default[name]:
            shown = ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else value
            shown = ", ".join(value) if isinstance(value, (list, tuple)) else shown
            words.append(name if value is True else f"{name}={shown}")
    return ", ".join(words)


def told_of(manifest: Manifest) -> str:
    """The settings of the condition that a manifest is; empty: it is none."""
    last: dict[str, Any] = manifest.sources[-1] if manifest.sources else {}
    if last.get("generator") != GENERATOR:
        return ""
    settings = {key: last[key] for key in asdict(Conditions()) if key in last}
    return told(Conditions(**{**settings, "hide": tuple(last["hide"])}))


def _draws(conditions: Conditions, what: str) -> np.random.Generator:
    """The generator of one kind of draw, so that none depends on whether there are others."""
    return np.random.default_rng([conditions.seed, *what.encode()])


def _kept(
    states: np.ndarray,
    sides: list[np.ndarray],
    patients: np.ndarray,
    ids: pa.Array,
    fields: list[str],
    conditions: Conditions,
) -> np.ndarray:
    """Which rows are kept, bool (N,); a patient is kept whole or not at all."""
    kept, names = np.ones(len(states), bool), ids.to_pylist()

    def drop(of: np.ndarray, share: float, salt: str) -> None:
        """All but a share of the patients with one of these rows, the first by a hash: so shares are nested."""
        position = SplitRule(salt=f"{salt} {conditions.seed}").position
        ordered = sorted(np.unique(patients[of]), key=lambda patient: position(names[patient]))
        kept[np.isin(patients, ordered[max(1, round(share * len(ordered))) :])] = False

    if conditions.labels < 1:
        drop(sides[0], conditions.labels, "labels")
    for name, share in conditions.rare.items():
        present = states[:, fields.index(name)] == PRESENT
        for side in sides:
            drop(side & present, share, f"rare {name}")
    return kept


def of_other_patients(patients: np.ndarray, *, images: str = "images") -> np.ndarray:
    """For each image one of another patient, places (N,): patients in the order of their codes, half a turn on.

    Args:
        patients: (N,), name or number of each image's patient.
        images: what the images are called where they cannot be shuffled.

    Raises:
        VividError: a patient has over half of the images.
    """
    order = np.argsort(patients, kind="stable")
    others = np.empty(len(patients), np.int64)
    others[order] = np.roll(order, len(order) // 2)
    if (patients[others] == patients).any():
        raise VividError(f"a patient has over half of the {images}, so that they cannot be shuffled; prepare more data")
    return others


def _units(table: pa.Table) -> tuple[np.ndarray, int]:
    """The study of each row, from 0, and how many there are: a report that errs does so for all its images."""
    study = pc.coalesce(table["study_id"], table["id"])
    key = pc.binary_join_element_wise(table["patient_id"].cast(pa.string()), study, "\x1f").combine_chunks()
    encoded = key.dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False), len(encoded.dictionary)


def _check_left(states: np.ndarray, sides: list[np.ndarray], patients: np.ndarray) -> None:
    train, val = (states[side] for side in sides)
    if not ((train == PRESENT).any(axis=0) & (train == ABSENT).any(axis=0)).any() or not len(val):
        n = len(np.unique(patients[sides[0]]))
        raise VividError(
            f"nothing to learn is left: {len(train)} training images of {n} patients and {len(val)} validation images, "
            "and no field that is present in one training image and absent in another; keep more, or prepare more data"
        )


def _table(
    table: pa.Table, fields: tuple[str, ...], states: np.ndarray, changed: np.ndarray, name: str | None
) -> pa.Table:
    """The table with these states, without what tells the old ones, as the data set `name`."""
    columns = {one: pa.array(states[:, place]) for place, one in enumerate(state_columns(fields))}
    if changed.any():
        taken = pa.array(np.arange(len(changed)), mask=changed)  # a null index gives a null
        columns |= {one: table[one].take(taken) for one in TELLING}
    if name:
        columns["dataset"] = pa.array([name]).dictionary_encode().take(pa.array(np.zeros(len(states), np.int8)))
    for column, values in columns.items():
        table = table.set_column(table.column_names.index(column), table.schema.field(column), values)
    return table
