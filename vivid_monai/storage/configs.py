"""Where the configs of training and evaluation are: in the checkout, or with the installed package."""

from importlib.metadata import distributions
from pathlib import Path

import vivid_monai
from vivid_monai.errors import VividError

_INSTALLED = "share/vivid-monai/configs/train.json"


def packaged_configs() -> Path:
    """The folder of the configs that go with this package.

    Raises:
        VividError: they are not installed with it.
    """
    if ((checkout := Path(vivid_monai.__file__).parents[1] / "configs") / "train.json").is_file():
        return checkout
    for one in distributions(name="vivid-monai"):  # a source tree that is not installed may stand before the other
        for file in one.files or ():
            if file.as_posix().endswith(_INSTALLED) and (path := Path(str(file.locate()))).is_file():
                return path.resolve().parent
    raise VividError("the configs of vivid-monai are not installed with it; install the package again with pip")


def find_configs() -> Path:
    """``configs/`` where a command runs, with changes of one's own; else the package's."""
    return here if ((here := Path("configs")) / "train.json").is_file() else packaged_configs()
