"""VIVID-Med: Vision Transformers for medical images, pretrained with a frozen language model as teacher."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vivid_monai.api import Manifest, evaluate, features, finetune, load, predict

__version__ = "0.1.0"
__all__ = ["Manifest", "evaluate", "features", "finetune", "load", "predict"]


def __getattr__(name: str) -> Any:
    """What `vivid_monai.api` has, imported when it is asked for: PyTorch and MONAI take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("vivid_monai.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
