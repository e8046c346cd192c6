"""Several data sets in one manifest: the union of their fields, rows that stay apart, and how often each is drawn."""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vivid_monai.data.columns import FINDING, conform, open_label_space, state_columns
from vivid_monai.data.manifest import Manifest
from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace
from vivid_monai.ums.mapping import shared_states, union_space

Paths = str | Path | Sequence[str | Path]
Weights = Mapping[str, float] | Sequence[float] | None


def manifests_in(folders: Paths) -> Path | list[Path]:
    """The manifest in a folder of ``vivid prepare``; of several folders (or a text such as "[a, b]") a list of them."""
    paths = [Path(folder) / "manifest.parquet" for folder in _several(folders)]
    return paths[0] if len(paths) == 1 else paths


def manifest_file(place: str | os.PathLike[str]) -> Path:
    """The manifest of a data set that is named by its file or its folder."""
    return Path(place) / "manifest.parquet" if Path(place).is_dir() else Path(place)


def load_manifest(files: Paths) -> Manifest:
    """The manifest in a file; of several files the :func:`union` of theirs, whose errors it raises."""
    loaded = [Manifest.load(file) for file in _several(files)]
    return loaded[0] if len(loaded) == 1 else union(loaded)


def _several(paths: Paths) -> Sequence[str | Path]:
    if isinstance(paths, str) and paths.startswith("[") and paths.endswith("]"):  # Fire reads no list of bare paths
        paths = [one for part in paths[1:-1].split(",") if (one := part.strip(" '\""))]
    return [paths] if isinstance(paths, (str, Path)) else paths


def union(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest with the rows of several data sets, one after the other, asked in the union of their fields.

    States are carried over by :func:`~vivid_monai.ums.mapping.shared_states`: what a data set's labels do not answer is
    null. Splits stay as they are; ids, patients and studies are called ``DATASET/…``, since two hospitals may both have
    a patient "17"; paths of images and masks are absolute. Splits and cards are those of each data set, by its name.

    Raises:
        VividError: no manifest, two of one data set, an image in two splits; as
            :func:`~vivid_monai.ums.mapping.union_space`.
    """
    if not manifests:
        raise VividError("there is no data set: name the folder of one, or several as \"['a','b']\"")
    named: dict[str, Manifest] = {}
    for one in manifests:
        for name in _names(one):
            if (other := named.setdefault(name, one)) is not one:
                raise VividError(
                    f"{other.path} and {one.path} are both of the data set {name!r}: prepare one table of both, or, if "
                    'they share no patient, one of them under another name ("dataset" of its mapping)'
                )
    _check_places(manifests)
    spaces = [one.label_space for one in manifests]
    alike = all(space == spaces[0] for space in spaces)
    stored = manifests[0].stored_space if alike else union_space(spaces)
    space = open_label_space(stored)
    titles = [", ".join(_names(one)) for one in manifests]
    whole = Manifest(
        pa.concat_tables([_carried_over(one, space) for one in manifests]),
        label_space=stored,
        image_root=os.path.commonpath([one.image_root.absolute() for one in manifests]),
        splits={title: one.splits for title, one in zip(titles, manifests, strict=True)},
        sources=[source for one in manifests for source in one.sources],
        card={title: one.card for title, one in zip(titles, manifests, strict=True)},
    )
    paths = [one.path for one in manifests if isinstance(one.path, Path)]
    whole.path = paths if len(paths) == len(manifests) else None
    return whole


def namespaced(words: Iterable[str | None], datasets: Iterable[str]) -> list[str | None]:
    """Ids or patients as ``DATASET/…``; those that are called so already, and None, stay."""
    pairs = zip(words, datasets, strict=True)
    return [word if word is None or word.startswith(f"{name}/") else f"{name}/{word}" for word, name in pairs]


def _names(manifest: Manifest) -> list[str]:
    """The names of a manifest's data sets, in the order of its rows."""
    return pc.unique(manifest.table["dataset"]).to_pylist()


def _check_places(manifests: Sequence[Manifest]) -> None:
    seen: dict[tuple[str, int | None], tuple[str, str]] = {}
    for one in manifests:
        own = dict(zip(one.places(), zip(one.datasets(), one.table["split"].to_pylist(), strict=True), strict=True))
        if clashes := [place for place, (_, split) in own.items() if seen.get(place, ("", split))[1] != split]:
            (first, split), (second, other) = seen[clashes[0]], own[clashes[0]]
            raise VividError(
                f"{len(clashes)} image(s) of {second!r} are in another split of {first!r}, for example "
                f"{clashes[0][0]} ({other} and {split}): prepare {second!r} again with the splits of {first!r} "
                '("split" of its mapping)'
            )
        seen |= own


def _carried_over(manifest: Manifest, space: LabelSpace) -> pa.Table:
    """The rows of a manifest in the columns of a union's label space."""
    table, own = manifest.table, manifest.label_space
    columns: dict[str, Any] = {name: table[name] for name in table.column_names if not name.startswith(FINDING)}
    datasets, root = manifest.datasets(), str(manifest.image_root.absolute())
    for name in ("id", "patient_id", "study_id"):
        columns[name] = pa.array(namespaced(table[name].to_pylist(), datasets), pa.string())
    for name in ("image", "mask"):
        paths = table[name].to_pylist()
        columns[name] = pa.array([path and os.path.join(root, path) for path in paths], pa.string())
    names = own.mapping_to(space)
    if any(ours != theirs for ours, theirs in names.items()):
        boxes = [row and [{**box, "field": names[box["field"]]} for box in row] for row in table["boxes"].to_pylist()]
        details = [text and _renamed(json.loads(text), names) for text in table["details"].to_pylist()]
        columns |= {"boxes": pa.array(boxes, table["boxes"].type), "details": pa.array(details, pa.string())}
    states = shared_states(manifest.states(), own, space)
    columns |= {name: states[:, place] for place, name in enumerate(state_columns(space.fields))}
    return conform(pa.table(columns), space.fields)


def _renamed(details: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return json.dumps({names[field]: value for field, value in details.items()}, ensure_ascii=False)


def shares(manifest: Manifest, split: str, weights: Weights) -> list[tuple[np.ndarray, float]] | None:
    """Places (int64) of the images of each data set in a split, and its weight: what the sampler draws by.

    Args:
        weights: of each data set by its name, or all in the order of the manifest's data sets; None: none has a weight,
            and so nothing to draw by. A data set with weight 0 is left out.

    Raises:
        VividError: a name that is no data set, a data set without a weight, another number of weights, a weight that
            is negative or not finite, none above 0, a data set with a weight and no image in the split.
    """
    if weights is None:
        return None
    names = _names(manifest)
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
                raise VividError(f"dataset_weights: {name!r} is no data set of this run; {hint}")
        if missing := [name for name in names if name not in weights]:
            raise VividError(f"dataset_weights: {', '.join(missing)} has no weight; give 0 to leave a data set out")
        given = [weights[name] for name in names]
    elif isinstance(weights, str) or not isinstance(weights, Sequence) or len(weights) != len(names):
        raise VividError(
            f"dataset_weights is {weights!r}: give {len(names)} numbers, one for each of {', '.join(names)}, or names "
            f"and numbers, such as \"{{'{names[0]}': 1, …}}\""
        )
    else:
        given = list(weights)
    for name, weight in zip(names, given, strict=True):
        if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
            raise VividError(f"dataset_weights: the weight of {name!r} is {weight!r}, not a number from 0 on")
    if not any(given):
        raise VividError("dataset_weights: every weight is 0, so that there is nothing to train on")
    rows, weighted = manifest.select(split).datasets(), {n: float(w) for n, w in zip(names, given, strict=True) if w}
    places = {name: np.flatnonzero(rows == name) for name in weighted}
    if empty := [name for name, of_name in places.items() if not len(of_name)]:
        raise VividError(f"dataset_weights: {empty[0]!r} has no image in the split {split!r}; give it the weight 0")
    return [(places[name], weight) for name, weight in weighted.items()]
