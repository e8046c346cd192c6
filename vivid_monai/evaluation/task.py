"""Evaluation tasks: the images that a probe is fitted and tested on, the fields, and the checks against leakage."""

import os
from collections.abc import Iterable, Sequence
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
    """Refuse features whose training, validation and test sides share a patient or an image.

    Images are compared by id; the same picture under another id and another patient is not found here.

    Raises:
        VividError: naming up to three patients or images that are on two sides.
    """
    sides = {"training": train, "validation": validation, "test": test}
    for (first, a), (second, b) in combinations(sides.items(), 2):
        _check("image", a.ids, b.ids, f"the probe's {first} and {second} features")
        _check("patient", a.patients, b.patients, f"the probe's {first} and {second} features")


def _check(what: str, first: Iterable[str], second: Iterable[str], where: str) -> None:
    both = sorted(set(map(str, first)) & set(map(str, second)))
    if both:
        more = f" and {len(both) - 3} more" if len(both) > 3 else ""
        raise VividError(
            f"{len(both)} {what}{'s' * (len(both) > 1)} on both sides of {where}: {', '.join(both[:3])}{more}. What is "
            "tested must be unknown to the probe: prepare the data again with one split by patient"
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
        for manifest in (self.learned_on, self.manifest):
            self._check_mapping(manifest)
        self._check_images()

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
        """Features of the training, validation and test images, with the states of the task's fields.

        ``keep``: as of :meth:`FeatureStore.features`.

        Raises:
            VividError: as the store; a patient or an image on two sides.
        """
        seen = self.view(encoder)
        train, val = (self._features(seen, store, self.learned_on, split, title, keep) for split in ("train", "val"))
        test = self._features(seen, store, self.manifest, "test", title, keep)
        check_leakage(train, val, test)
        return train, val, test

    def _features(
        self, encoder: Encoder, store: FeatureStore, manifest: Manifest, split: str, title: str, keep: bool
    ) -> Features:
        title = f"{title}, {split}".strip(", ")
        part = store.features(encoder, manifest, split, self._asked(manifest), title=title, keep=keep)
        if self.source is None:
            return part
        states = shared_states(part.states, manifest.label_space, self.space)
        columns = [self.space.fields.index(self.space.resolve(field)) for field in self.fields]
        # Two hospitals may both have a patient "17": only data set and number together name a patient.
        name = manifest.table["dataset"][0].as_py()
        return replace(
            part,
            states=states[:, columns],
            patients=np.array([f"{name}/{patient}" for patient in part.patients]),
            ids=np.array([f"{name}/{key}" for key in part.ids]),
        )

    def _asked(self, manifest: Manifest) -> Sequence[str]:
        return self.fields if self.source is None else manifest.fields

    def _check_mapping(self, manifest: Manifest) -> None:
        if self.source is None:
            for field in self.fields:
                manifest.label_space.resolve(field)
            return
        mapped = shared_fields(manifest.label_space, self.space)
        missing = [field for field in self.fields if self.space.resolve(field) not in mapped]
        if missing:
            raise VividError(
                f"{self.name}: the labels of {manifest.label_space.name!r} do not map to {', '.join(missing)} of "
                f"{self.space.name!r}; a head cannot be applied to labels that mean something else. Leave the field "
                "out (--fields), or give a label space with shared concepts (--label_space)"
            )

    def _check_images(self) -> None:
        tested = set(_places(self.manifest, "test"))
        for split in ("train", "val"):
            shared = [place for place in _places(self.learned_on, split) if place in tested]
            if shared:
                raise VividError(
                    f"{self.name}: {len(shared)} test images are also {split} images of the probe, for example "
                    f"{shared[0][0]}: prepare the data again with one split for both"
                )


def _places(manifest: Manifest, split: str) -> list[tuple[str, int | None]]:
    """File and slice of every image of a split: the same image under two names is found by where it lies."""
    table = manifest.select(split).table
    root = os.path.abspath(manifest.image_root)
    files = (os.path.normpath(os.path.join(root, image)) for image in table["image"].to_pylist())
    return list(zip(files, table["slice"].to_pylist(), strict=True))
