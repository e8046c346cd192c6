"""Evaluation tasks: the images that a probe is fitted and tested on, the fields, and the checks against leakage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from vivid_monai.data.manifest import Manifest
from vivid_monai.data.union import namespaced
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, for_task
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.ums.label_space import LabelSpace, load_label_space
from vivid_monai.ums.mapping import shared_fields, shared_states


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
            are carried over by concept (:func:`~vivid_monai.ums.mapping.shared_states`).
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
        tested = set(self.manifest.select("test").places())
        for split in ("train", "val"):
            if shared := [place for place in self.learned_on.select(split).places() if place in tested]:
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
                patients, ids = (np.array(namespaced(of, part.datasets)) for of in (part.patients, part.ids))
                part = replace(part, states=states[:, columns], patients=patients, ids=ids)
            parts.append(part)
        train, val, test = parts
        check_leakage(train, val, test)
        return train, val, test
