"""What the package ``medmnist`` says of a data set: its files, their MD5, its classes and splits."""

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from vivid_monai.errors import VividError
from vivid_monai.ums.label_space import LabelSpace, load_label_space

SIZES = (28, 64, 128, 224)


@dataclass(frozen=True)
class _Kind:
    label_space: str
    modality: str
    anatomy: str
    view: str | None = None


_KINDS = {
    "organamnist": _Kind("organamnist-11", "CT", "abdomen", "axial"),
    "organcmnist": _Kind("organamnist-11", "CT", "abdomen", "coronal"),
    "organsmnist": _Kind("organamnist-11", "CT", "abdomen", "sagittal"),
    "pneumoniamnist": _Kind("pneumoniamnist", "DX", "chest"),
}
NAMES = tuple(_KINDS)
"""The sets that have a label space: grey, two-dimensional, one class per image."""


@dataclass(frozen=True)
class Official:
    """A data set as the package describes it.

    Attributes:
        classes: the words of the classes; the position is the class number.
        fields: class number → field of ``space``; ``None`` for the class that is no field ("normal").
        counts: split ("train", "val", "test") → images.
    """

    name: str
    title: str
    licence: str
    classes: tuple[str, ...]
    fields: tuple[str | None, ...]
    counts: Mapping[str, int]
    space: LabelSpace
    modality: str
    anatomy: str
    view: str | None
    info: Mapping[str, Any]

    def file_name(self, size: int) -> str:
        """The name of the file with images of ``size`` pixels a side."""
        return f"{self.name}{_suffix(size)}.npz"

    def url(self, size: int) -> str:
        """Where that file is published."""
        return self.info[f"url{_suffix(size)}"]

    def md5(self, size: int) -> str:
        """Its MD5, in hexadecimal."""
        return self.info[f"MD5{_suffix(size)}"]


def official(name: str) -> Official:
    """Return what the package says of a data set, with its classes checked against our label space.

    Raises:
        VividError: the package is not installed or too old, the set has no label space, or its classes are not those
            of the label space in the same order.
    """
    if name not in _KINDS:
        raise VividError(f"MedMNIST {name!r} has no label space here: those with one are {', '.join(NAMES)}")
    info = _package_info().get(name, {})
    if missing := [key for key in ("label", "n_samples", "MD5_224", "url_224") if key not in info]:
        raise VividError(f"the installed medmnist knows no {missing[0]!r} of {name!r}: install medmnist>=3.0")
    kind = _KINDS[name]
    space = load_label_space(kind.label_space)
    classes = tuple(info["label"].get(str(number)) for number in range(len(info["label"])))
    fields = space.fields if space.none_label is None else (None, *space.fields)
    ours = tuple(space.none_label if field is None else field for field in fields)
    if classes != ours:
        raise VividError(
            f"{name}: the medmnist package has the classes {', '.join(map(str, classes))}, but label space "
            f"{space.name!r} has {', '.join(map(str, ours))}: labels would get wrong names, so nothing is prepared"
        )
    return Official(
        name=name,
        title=info["python_class"],
        licence=info["license"],
        classes=classes,
        fields=fields,
        counts=dict(info["n_samples"]),
        space=space,
        modality=kind.modality,
        anatomy=kind.anatomy,
        view=kind.view,
        info=info,
    )


def _suffix(size: int) -> str:
    if size not in SIZES:
        raise VividError(f"MedMNIST has no size {size}: its sizes are {', '.join(map(str, SIZES))}")
    return "" if size == 28 else f"_{size}"


def _package_info() -> dict[str, Any]:
    """The package's INFO. Importing it makes an empty folder ~/.medmnist, which nothing here uses.

    What the import says is of no use: it asks for packages that only its own Dataset classes need, and warns where the
    home folder cannot be written.
    """
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from medmnist import INFO
    except ImportError as error:
        raise VividError(
            f"MedMNIST's file list and classes come from the package medmnist, which cannot be imported ({error}): "
            "pip install 'vivid-monai[medmnist]', or pip install --no-deps medmnist (without the torchvision that "
            "it declares and that is not needed here)"
        ) from error
    return INFO
