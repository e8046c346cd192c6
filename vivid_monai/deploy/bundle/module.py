"""The one module of a bundle, ``scripts``: this package's own files, copied, so that images are read the same way.

What MONAI has is not in it. It reads no DICOM as a viewer shows it, aliases ribs when it shrinks an image, and takes
truncated files for images; and states and records are ours.
"""

import re
from importlib import resources

PREFIX = "vivid_monai."
FILES = {  # in the bundle's scripts/ → in this package
    "errors.py": "errors.py",
    "raster.py": "images/raster.py",
    "dicom.py": "images/dicom.py",
    "nifti.py": "images/nifti.py",
    "read.py": "images/read.py",
    "geometry.py": "images/geometry.py",
    "volume.py": "images/volume.py",
    "transforms.py": "images/transforms.py",
    "preprocess.py": "images/preprocess.py",
    "appearance.py": "deploy/appearance.py",
    "assessed.py": "deploy/assessed.py",
    "answers.py": "deploy/answers.py",
    "save.py": "deploy/save.py",
}


def module_files() -> dict[str, str]:
    """File name in ``scripts`` → its text: that of the package, with imports of the package made relative."""
    root = resources.files("vivid_monai")
    texts = {name: _relative((root / source).read_text(encoding="utf-8")) for name, source in FILES.items()}
    return {"__init__.py": '"""Reading of images and writing of answers, as in training."""\n', **texts}


def _relative(text: str) -> str:
    places = {source.removesuffix(".py").replace("/", "."): name.removesuffix(".py") for name, source in FILES.items()}
    for full, name in places.items():
        text = re.sub(rf"^from {re.escape(PREFIX + full)} import", f"from .{name} import", text, flags=re.MULTILINE)
        text = text.replace(f"~{PREFIX}{full}.", f"~scripts.{name}.").replace(f"`{PREFIX}{full}.", f"`scripts.{name}.")
    return text
