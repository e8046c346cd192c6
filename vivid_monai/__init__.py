"""VIVID-Med: Vision Transformers for medical images, pretrained with a frozen language model as teacher."""

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vivid_monai.deploy.model import Model

__version__ = "0.1.0"


def load(path: str | PathLike[str]) -> "Model":
    """A bundle, the folder of a run, or the file of an encoder, as a :class:`vivid_monai.deploy.model.Model`.

    Raises:
        VividError: `path` is none of these, or damaged.
    """
    from vivid_monai.deploy.model import load_model  # with PyTorch and MONAI, which take seconds

    return load_model(path)
