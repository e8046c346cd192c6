"""Write a bundle: configs, docs, module, weights; then hold it against the run that it comes from."""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import torch

from vivid_monai.deploy.answers import Answers
from vivid_monai.deploy.bundle.configs import bundle_configs
from vivid_monai.deploy.bundle.metadata import bundle_metadata
from vivid_monai.deploy.bundle.module import module_files
from vivid_monai.deploy.bundle.onnx import write_onnx
from vivid_monai.deploy.bundle.readme import write_docs
from vivid_monai.deploy.finished import Finished
from vivid_monai.deploy.model import ASSESSMENT, ONNX, WEIGHTS, metadata_sha256
from vivid_monai.deploy.network import to_network
from vivid_monai.deploy.performance import measure_answers
from vivid_monai.errors import VividError
from vivid_monai.storage.files import whole_file

MODELS = (WEIGHTS, ONNX, ASSESSMENT)
LARGE = 25 * 2**20
"""Bytes from which on the zoo wants a file to be listed in large_files.yml instead of in git."""


@dataclass(frozen=True)
class Wording:
    """What people say of a bundle, not numbers."""

    title: str = "Chest X-ray findings by a VIVID-Med Vision Transformer"
    version: str = "0.1.0"
    changelog: Mapping[str, str] = field(default_factory=dict)
    authors: str = "VIVID-Med developers"
    copyright: str = "Copyright 2026 VIVID-Med developers, Apache-2.0"
    data_license: str = ""
    weights_url: str = ""
    """Folder where files lie that are too large for the zoo."""


def build_bundle(finished: Finished, folder: Path, *, onnx: str | None = None, wording: Wording | None = None) -> Path:
    """Write the bundle into a folder, which gives it its name; files that are there are replaced.

    Args:
        onnx: "float32" or "int8": with models/model.onnx, which ONNX Runtime answers with; None: without.

    Raises:
        VividError: a name without "_classification" (MONAI Label tells the kind of a bundle by it), a folder that
            cannot be written; as :func:`~vivid_monai.deploy.bundle.onnx.write_onnx`.
    """
    wording, name = wording or Wording(), folder.name
    if not name.endswith("_classification"):
        raise VividError(
            f"{folder}: the name of the bundle must end in _classification, for MONAI Label to know its kind"
        )
    metadata = bundle_metadata(
        finished,
        name=name,
        title=wording.title,
        version_=wording.version,
        changelog={wording.version: "first release", **wording.changelog},
        authors=wording.authors,
        copyright_=wording.copyright,
    )
    answers = Answers(metadata["answers"])
    (folder / ONNX).unlink(missing_ok=True)
    change = write_onnx(finished, folder / ONNX, kind=onnx, answers=answers) if onnx else None
    finished.assessment.save(folder / ASSESSMENT)
    weights = io.BytesIO()  # into a file, PyTorch would write the file's name too, and a temporary one has any
    torch.save(to_network(finished.classifier).state_dict(), weights)
    with whole_file(folder / WEIGHTS) as part:
        part.write_bytes(weights.getbuffer())
    digests = {
        file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in MODELS if (folder / file).exists()
    }
    metadata["vivid"] |= {"sha256": digests, "onnx": onnx}
    metadata["vivid"]["metadata_sha256"] = metadata_sha256(metadata)
    for file, text in module_files().items():
        _write(folder / "scripts" / file, text)
    for file, config in {**bundle_configs(finished.classifier, finished.preprocess), "metadata.json": metadata}.items():
        _write(folder / "configs" / file, json.dumps(config, indent=4, ensure_ascii=False) + "\n")
    _write(folder / "LICENSE", _license())
    tested = measure_answers(
        answers,
        finished.probabilities(finished.test),
        finished.probabilities(finished.test, calibrated=False),
        finished.test.states,
    )
    write_docs(folder, finished, metadata, tested, change=change, data_license=wording.data_license)
    _list_large_files(folder, digests, wording.weights_url)
    shutil.rmtree(folder / "scripts" / "__pycache__", ignore_errors=True)
    return folder


def _license() -> str:
    """The licence of this package, which comes with its installation."""
    for one in distributions(name="vivid-monai"):  # a source tree that is not installed may stand before the other
        if text := one.read_text("licenses/LICENSE"):
            return text
    raise VividError("the licence of vivid-monai is not installed with it; install the package again with pip")


def _list_large_files(folder: Path, digests: Mapping[str, str], url: str) -> None:
    """The zoo keeps files of over 25 MB elsewhere: where, and with which hash."""
    listed = folder / "large_files.yml"
    listed.unlink(missing_ok=True)
    entries = [
        {"path": file, "url": url and f"{url.rstrip('/')}/{Path(file).name}", "hash_val": digest, "hash_type": "sha256"}
        for file, digest in digests.items()
        if (folder / file).stat().st_size > LARGE
    ]
    if entries:
        _write(listed, json.dumps({"large_files": entries}, indent=2) + "\n")  # JSON is YAML


def _write(path: Path, text: str) -> None:
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
