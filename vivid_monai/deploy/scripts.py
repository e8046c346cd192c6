"""Files of this package made to run without it: in a bundle's `scripts/`, in a Hugging Face folder."""

import re
from collections.abc import Iterable, Mapping
from importlib import resources

MODULES = (
    "checks.py",
    "networks/classifier.py",
    "images/preprocess.py",
    "deploy/eligibility.py",
    "deploy/inputs.py",
    "deploy/ood_score.py",
    "deploy/postprocessing.py",
)
"""The files of this package that the configs of a classification bundle name."""
LIBRARY_MODULE = "networks/library.py"
"""What they name beside these where the network is another library's."""


def module_files(modules: Iterable[str] = MODULES) -> dict[str, str]:
    """File name in the bundle's `scripts/` → its text: files of this package, with all that they import of it.

    Imports of the package are made relative. A bundle so reads images and writes findings as this package does; it
    needs none of MONAI's readers, which show DICOM otherwise, alias ribs when they shrink an image, and take truncated
    files for images.
    """
    root = resources.files("vivid_monai")
    texts: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        if (name := waiting.pop()) not in texts:
            texts[name] = (root / name).read_text(encoding="utf-8")
            waiting += [f"{one.replace('.', '/')}.py" for one in re.findall(_IMPORT, texts[name], flags=re.MULTILINE)]
    places = {name: name.rpartition("/")[2] for name in sorted(texts)}
    if len(set(places.values())) < len(places):
        raise AssertionError(f"two files of a bundle's scripts/ have one name: {sorted(places)}")
    shipped = {places[name]: _relative(text, places) for name, text in texts.items()}
    return {"__init__.py": '"""Files of vivid-monai: network, reading of images, findings."""\n', **shipped}


_IMPORT = r"^from vivid_monai\.([\w.]+) import"


def _relative(text: str, places: Mapping[str, str]) -> str:
    for name, place in places.items():
        full, short = (re.escape(one.removesuffix(".py").replace("/", ".")) for one in (name, place))
        text = re.sub(rf"^from vivid_monai\.{full} import", f"from .{short} import", text, flags=re.MULTILINE)
        text = re.sub(rf"\bvivid_monai\.{full}\b", f"scripts.{short}", text)
    return re.sub(r":\w+:`~?vivid_monai\.(?:[\w.]+\.)?(\w+)`", r"`\1` of vivid-monai", text)
