"""Write a MONAI bundle: configs, metadata, the modules it ships, weights, docs."""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vivid_monai.deploy.calibration import CalibratedModel, operating_points
from vivid_monai.deploy.eligibility import RADIOGRAPHS
from vivid_monai.deploy.export import export_onnx
from vivid_monai.deploy.model import ONNX, OOD, WEIGHTS, metadata_sha256
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.deploy.quantize import write_int8
from vivid_monai.deploy.readme import bundle_docs
from vivid_monai.deploy.scripts import LIBRARY_MODULE, MODULES, module_files
from vivid_monai.errors import VividError
from vivid_monai.evaluation.results import MACRO
from vivid_monai.images.augment import Augment
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import BACKBONES, Classifier
from vivid_monai.networks.library import PACKAGES, LibraryBackbone
from vivid_monai.storage.files import whole_file

Config = dict[str, Any]

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
NEEDED = (
    *("einops", "fire", "nibabel", "pillow", "pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"),
    *("pytorch-ignite", "safetensors"),
)
LARGE = 25 * 2**20
"""Bytes from which on the zoo wants a file to be listed in large_files.yml instead of in git."""
WORDING = {
    "title": "",
    "version": "0.1.0",
    "authors": "VIVID-Med developers",
    "copyright": "Copyright 2026 VIVID-Med developers, Apache-2.0",
    "data_license": "",
    "weights_url": "",
}
"""What people say of a bundle, not numbers. An empty title names the kind of image, an empty licence refers to the
data's providers; weights_url is the folder of the files that are too large for the zoo."""


@dataclass(frozen=True)
class Family:
    """A kind of bundle: what :func:`build_bundle` needs to know of a model.

    Attributes:
        suffix: of the bundle's name, by which MONAI Label tells its kind.
        network: `network_def` in MONAI's config language, of the modules in `scripts/`.
        weights: the state dict of that network.
        preprocess: what an image goes through before it.
        modules: files of this package that the configs name; what they import is shipped with them.
        rules: how the outputs become findings: the part "answers" of metadata.json.
        outputs: "pred" and "features", in the words of the zoo's metadata schema.
    """

    suffix: str
    network: Config
    weights: Mapping[str, torch.Tensor]
    preprocess: Preprocess
    modules: Sequence[str]
    rules: Config
    outputs: Mapping[str, Config]


def classification(model: CalibratedModel) -> Family:
    """A classifier of findings; its thresholds, label space, modality and anatomy become decision rules."""
    if model.preprocess.kind != "image":
        raise VividError("a bundle reads images; there is no family of bundles for volumes yet")
    space, seen = model.manifest.label_space, _trained_on(model)

    def only(words: Sequence[str], several: str) -> str:
        return words[0] if len(words) == 1 else several

    def output(kind: str, form: str, channels: int) -> Config:
        known = {"type": kind, "format": form, "num_channels": channels, "spatial_shape": [], "dtype": "float32"}
        return known | {"value_range": [], "is_patch_data": False}

    pred = output("probabilities", "logits", len(model.fields))
    channels = {"channel_def": {str(i): field for i, field in enumerate(model.fields)}}
    fields = [
        {"field": one.field, "ancestors": list(space.ancestors(one.field)), **asdict(one)} for one in model.calibrations
    ]
    return Family(
        suffix="_classification",
        network=network_config(model.classifier),
        weights=model.classifier.state_dict(),
        preprocess=model.preprocess,
        modules=(*MODULES, LIBRARY_MODULE) if isinstance(model.classifier.encoder, LibraryBackbone) else MODULES,
        rules={
            "label_space": space.name,
            "modality": only(seen["modality"], "DX" if _radiographs(seen) else "OT"),
            "anatomy": only(seen["anatomy"], "other"),
            "no_finding": space.no_finding,
            "no_finding_compatible": list(space.no_finding_compatible),
            "fields": fields,
        },
        outputs={
            "pred": pred | channels,
            "features": output("features", "embedding", model.classifier.head.in_features),
        },
    )


def network_config(classifier: Classifier) -> Config:
    """A classifier in MONAI's config language, of the modules in a bundle's `scripts/`."""
    backbone = type(classifier.encoder)
    module = backbone.__module__.rpartition(".")[2]
    return {
        "_target_": "scripts.classifier.Classifier",
        "encoder": {"_target_": f"scripts.{module}.{backbone.__name__}", **classifier.encoder.config},
        "num_classes": classifier.head.out_features,
        "pool": classifier.pool,
        **({"spd": {"_target_": "scripts.spd.SPD", **classifier.spd.config}} if classifier.spd else {}),
    }


def _trained_on(model: CalibratedModel) -> dict[str, list[str]]:
    """The words in the columns "modality", "anatomy" and "view" of the training images."""
    table = model.manifest.select("train").table
    return {name: sorted(set(table[name].to_pylist()) - {None, ""}) for name in ("modality", "anatomy", "view")}


def _radiographs(seen: Mapping[str, Sequence[str]]) -> bool:
    return set(seen["modality"]) <= set(RADIOGRAPHS)


def build_bundle(
    model: CalibratedModel, folder: Path, *, onnx: str | None = None, wording: Mapping[str, str] | None = None
) -> Path:
    """Write the bundle of a classifier into a folder, which gives it its name; files that are there are replaced.

    Args:
        onnx: "float32" or "int8": with models/model.onnx, which ONNX Runtime runs; None: without.
        wording: what is to be said instead of :data:`WORDING`.

    Raises:
        VividError: a name without the suffix of its family, a folder that cannot be written; as
            :func:`~vivid_monai.deploy.quantize.write_int8`.
    """
    said, family, seen = {**WORDING, **(wording or {})}, classification(model), _trained_on(model)
    if not folder.name.endswith(family.suffix):
        raise VividError(
            f"{folder}: the name of the bundle must end in {family.suffix}, for MONAI Label to know its kind"
        )
    where = " or ".join(one for one in seen["anatomy"] if one != "other")
    kind = "X-ray" if _radiographs(seen) else " or ".join(seen["modality"]) + " image"
    about = f"{where} {kind}".strip()  # "chest X-ray", "lung CT image"
    metadata = _metadata(model, family, said, seen, name=folder.name, about=about)
    rules = DecisionRules(metadata["answers"])
    (folder / ONNX).unlink(missing_ok=True)
    change = None
    if onnx == "float32":
        export_onnx(model.classifier, folder / ONNX, preprocess=model.preprocess, fields=model.fields)
    elif onnx == "int8":
        change = write_int8(model, folder / ONNX, rules)
    model.ood.save(folder / OOD)
    weights = io.BytesIO()  # into a file, PyTorch would write the file's name too, and a temporary one has any
    torch.save(dict(family.weights), weights)
    _write(folder / WEIGHTS, weights.getvalue())
    written = (file for file in (WEIGHTS, ONNX, OOD) if (folder / file).exists())
    digests = {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in written}
    metadata["vivid"] |= {"sha256": digests, "onnx": onnx}
    metadata["vivid"]["metadata_sha256"] = metadata_sha256(metadata)
    if (folder / "configs" / "metadata.json").exists():  # of an earlier build, maybe of another version
        shutil.rmtree(folder / "scripts", ignore_errors=True)
    for file, text in module_files(family.modules).items():
        _write(folder / "scripts" / file, text.encode())
    for file, config in {**bundle_configs(family.network, family.preprocess), "metadata.json": metadata}.items():
        _write(folder / "configs" / file, (json.dumps(config, indent=4, ensure_ascii=False) + "\n").encode())
    _write(folder / "LICENSE", _license().encode())
    after, before = (model.probabilities(model.test.x, calibrated=calibrated) for calibrated in (True, False))
    tested = operating_points(rules, after, before, model.test.states)
    license_ = said["data_license"]
    docs = bundle_docs(model, metadata, tested, name=folder.name, about=about, change=change, data_license=license_)
    for file, content in docs.items():
        _write(folder / "docs" / file, content)
    _list_large_files(folder, digests, said["weights_url"])
    return folder


def bundle_configs(network: Config, preprocess: Preprocess) -> dict[str, Config]:
    """File name → content of every config but metadata.json: the templates, filled with what belongs to the weights."""
    templates = resources.files("vivid_monai.deploy") / "configs"
    configs = {one.name: json.loads(one.read_text(encoding="utf-8")) for one in templates.iterdir()}
    inference, train = configs["inference.json"], configs["train.json"]
    inference["network_def"] = network
    outputs = f"$len(@fields) if @fields else {network['num_classes']}"
    train["network_def"] = {**network, "num_classes": outputs}
    module = "scripts.preprocess"
    inference["preprocessing"]["transforms"] += preprocess.config(module=module)
    inference["dataset"]["shape"] = list(preprocess.shape)
    train["to_unit"] = preprocess.config(module=module, stages=("stored", "unit"))
    train["to_normal"] = preprocess.config(module=module, stages=("normal",))
    shift = round(Augment().translate * preprocess.size, 3)
    train["train"]["random_transforms"][0]["translate_range"] = [shift, shift]
    return configs


def _metadata(
    model: CalibratedModel,
    family: Family,
    said: Mapping[str, str],
    seen: Mapping[str, Sequence[str]],
    *,
    name: str,
    about: str,
) -> Config:
    """The content of metadata.json: the zoo's schema, the decision rules, and what this package reads."""
    preprocess = model.preprocess
    dataset = ", ".join(sorted(set(model.manifest.table["dataset"].to_pylist())))
    channels, *shape = preprocess.shape
    mean, std = (np.atleast_1d(one) for one in (preprocess.mean, preprocess.std))
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "CR" if _radiographs(seen) else family.rules["modality"],
        "num_channels": channels,
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [round(float(((0 - mean) / std).min()), 4), round(float(((1 - mean) / std).max()), 4)],
        "is_patch_data": False,
        "channel_def": {str(i): "image" if channels == 1 else f"image {i}" for i in range(channels)},
    }
    backbone = next(kind for kind, one in BACKBONES.items() if type(model.classifier.encoder) is one)
    network = {"vit": "Vision Transformer", "resnet": "ResNet", "densenet": "DenseNet"}.get(backbone)
    network = network or model.classifier.encoder.architecture  # another library's, by its name there
    read = ", read through its query groups (SPD)," if model.classifier.spd else ""
    macro = model.results.get("auroc", MACRO, model.name).value
    return {
        "schema": SCHEMA,
        "version": said["version"],
        "changelog": {said["version"]: "first release"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {package: version(package) for package in (*NEEDED, *_library(model.classifier))},
        "name": said["title"] or f"{about[0].upper()}{about[1:]} findings by a VIVID-Med {network}",
        "task": f"Findings of a {about}: present, absent or uncertain, with calibrated probabilities",
        "description": f"A plain {network}{read} with a linear head, {model.made} by VIVID-Med on {dataset}. Reads "
        "DICOM, PNG and JPEG; says what it does not answer.",
        "authors": said["authors"],
        "copyright": said["copyright"],
        "data_source": dataset,
        "data_type": "dicom, png, jpeg",
        "image_classes": f"one {about}, preprocessed as docs/README.md says",
        "pred_classes": "one calibrated logit per finding; its sigmoid is the probability that the finding is present",
        "eval_metrics": {"test_macro_auroc": round(float("nan") if macro is None else macro, 4)},
        "intended_use": "Research. Not a medical device, and not for clinical decisions.",
        "references": ["VIVID-Med, arXiv:2603.09109"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": family.outputs["pred"]}},
        "encoder_data_format": {"inputs": {"image": image}, "outputs": {"features": family.outputs["features"]}},
        "answers": {**family.rules, "labeller": name, "labeller_version": said["version"]},
        "vivid": {
            "vivid_monai_version": version("vivid-monai"),
            "encoder": model.fingerprint,
            "backbone": backbone,
            "config": model.classifier.encoder.config,
            "pool": model.classifier.pool,
            **({"spd": model.classifier.spd.config} if model.classifier.spd else {}),
            "modalities": seen["modality"],
            "anatomies": seen["anatomy"],
            "views": seen["view"],
            "preprocess": preprocess.to_dict(),
        },
    }


def _library(classifier: Classifier) -> tuple[str, ...]:
    """The packages that build the network, where it is another library's."""
    encoder = classifier.encoder
    return PACKAGES[encoder.library] if isinstance(encoder, LibraryBackbone) else ()


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
        _write(listed, (json.dumps({"large_files": entries}, indent=2) + "\n").encode())  # JSON is YAML


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as part:
        part.write_bytes(content)
