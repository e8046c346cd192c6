"""Evaluation tasks: the images that a probe is fitted and tested on, the fields, and the checks against leakage."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, for_task
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.ums.label_space import LabelSpace, load_label_space
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
    known = source.no_finding is not None or source.none_label is not None
    return mapped | ({target.no_finding} if known and target.no_finding else set())


def check_leakage(train: Features, validation: Features, test: Features) -> None:
    """Raise a VividError where training, validation and test features share a patient or (by its id) an image."""
    sides = {"training": train, "validation": validation, "test": test}
    for (first, a), (second, b) in combinations(sides.items(), 2):
        for what, name in (("image", "ids"), ("patient", "patients")):
            both = np.intersect1d(getattr(a, name), getattr(b, name))
            if n := len(both):
                more = f" and {n - 3} more" if n > 3 else ""
                raise VividError(
                    f"{n} {what}{'s' * (n > 1)} on both sides of the probe's {first} and {second} features: "
                    f"{', '.join(both[:3])}{more}. What is tested must be unknown to the probe: prepare the data again "
                    "with one split by patient"
                )


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation task.

    Args:
        name: what results are called by.
        manifest: the data set whose test split is tested on, and whose train and val splits the probe learns on unless
            there is a ``source``.
        fields: what is asked, in order; names of the manifest's label space, or of ``label_space`` where there is one.
        source: another data set to learn on (transfer): its train and val splits, none of its test split.
        label_space: name or path of the space through which the two data sets speak; needed with ``source``. States
            are carried over by concept (:func:`~vivid_monai.evaluation.task.shared_states`).
        window: (centre, width) in HU that CT is seen through, whatever the encoder; None for other images.
        slices: 1, or 3 for a slice and its two neighbours.

    Raises:
        VividError: a source without a label space, a field that a data set's labels do not map to, a test image among
            the images that the probe learns on.
    """

    name: str
    manifest: Manifest
    fields: Sequence[str]
    source: Manifest | None = None
    label_space: str | None = None
    window: tuple[float, float] | None = None
    slices: int = 1

    def __post_init__(self) -> None:
        if (self.source is None) != (self.label_space is None):
            raise VividError(f"{self.name}: a source data set and the label space it shares go together")
        if not self.fields:
            raise VividError(f"{self.name}: no field is asked for")
        wanted = {field: self.space.resolve(field) for field in self.fields}
        for space in () if self.source is None else (self.source.label_space, self.manifest.label_space):
            mapped = shared_fields(space, self.space)
            if missing := [field for field, own in wanted.items() if own not in mapped]:
                raise VividError(
                    f"{self.name}: the labels of {space.name!r} do not map to {', '.join(missing)} of "
                    f"{self.space.name!r}; a head cannot be applied to labels that mean something else. Leave the "
                    "field out (--fields), or give a label space with shared concepts (--label_space)"
                )
        tested = set(_places(self.manifest, "test"))
        for split in ("train", "val"):
            if shared := [place for place in _places(self.learned_on, split) if place in tested]:
                raise VividError(
                    f"{self.name}: {len(shared)} test images are also {split} images of the probe, for example "
                    f"{shared[0][0]}: prepare the data again with one split for both"
                )

    @property
    def learned_on(self) -> Manifest:
        """The data set of the probe's training and validation images."""
        return self.manifest if self.source is None else self.source

    @property
    def space(self) -> LabelSpace:
        """The label space that the fields belong to."""
        return self.manifest.label_space if self.label_space is None else load_label_space(self.label_space)

    @property
    def exclusive(self) -> bool:
        """Whether exactly one field is present in every image: a choice between classes, not a list of findings."""
        return self.space.exclusive and len(self.fields) == len(self.space.fields)

    def view(self, encoder: Encoder) -> Encoder:
        """The encoder as it sees this task's images: through its window, as many slices at a time."""
        return for_task(encoder, window=self.window, slices=self.slices)

    def parts(
        self, encoder: Encoder, store: FeatureStore, *, title: str = "", keep: bool = True
    ) -> tuple[Features, Features, Features]:
        """Training, validation and test features with the states of the task's fields, none of them on two sides.

        ``title`` and ``keep`` are those of :meth:`FeatureStore.features`.
        """
        seen, parts = self.view(encoder), []
        for manifest, split in ((self.learned_on, "train"), (self.learned_on, "val"), (self.manifest, "test")):
            asked = self.fields if self.source is None else manifest.fields
            part = store.features(seen, manifest, split, asked, title=f"{title}, {split}".strip(", "), keep=keep)
            if self.source is not None:
                states = shared_states(part.states, manifest.label_space, self.space)
                columns = [self.space.fields.index(self.space.resolve(field)) for field in self.fields]
                # Two hospitals may both have a patient "17": only data set and number together name a patient.
                name = manifest.table["dataset"][0].as_py()
                patients, ids = (np.array([f"{name}/{one}" for one in of]) for of in (part.patients, part.ids))
                part = replace(part, states=states[:, columns], patients=patients, ids=ids)
            parts.append(part)
        train, val, test = parts
        check_leakage(train, val, test)
        return train, val, test


def _places(manifest: Manifest, split: str) -> list[tuple[str, int | None]]:
    """File and slice of every image of a split: the same image under two names is found by where it lies."""
    table = manifest.select(split).table
    root = os.path.abspath(manifest.image_root)
    files = (os.path.normpath(os.path.join(root, image)) for image in table["image"].to_pylist())
    return list(zip(files, table["slice"].to_pylist(), strict=True))
