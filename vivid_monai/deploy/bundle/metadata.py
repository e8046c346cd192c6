"""metadata.json of a bundle: the zoo's schema, and how the model answers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np

from vivid_monai.deploy.finished import Finished
from vivid_monai.evaluation.results import MACRO

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
NEEDED = (
    "einops",
    "fire",
    "nibabel",
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pytorch-ignite",
    "safetensors",
)


def bundle_metadata(
    finished: Finished,
    *,
    name: str,
    title: str,
    version_: str,
    changelog: Mapping[str, str],
    authors: str,
    copyright_: str,
) -> dict[str, Any]:
    """The content of metadata.json.

    Args:
        name: of the bundle's folder. title: for people.
        version_: of the bundle; a key of the changelog.
    """
    fields, preprocess = finished.fields, finished.preprocess
    channels = max(preprocess.channels, preprocess.slices)
    dataset = ", ".join(sorted(set(finished.manifest.table["dataset"].to_pylist())))
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "CR",
        "num_channels": channels,
        "spatial_shape": [preprocess.size, preprocess.size],
        "dtype": "float32",
        "value_range": _value_range(finished),
        "is_patch_data": False,
        "channel_def": {str(i): "image" if channels == 1 else f"image {i}" for i in range(channels)},
    }
    logits = {
        "type": "probabilities",
        "format": "logits",
        "num_channels": len(fields),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(i): field for i, field in enumerate(fields)},
    }
    features = {
        "type": "features",
        "format": "embedding",
        "num_channels": finished.classifier.head.in_features,
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
    }
    return {
        "schema": SCHEMA,
        "version": version_,
        "changelog": dict(changelog),
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {package: version(package) for package in NEEDED},
        "name": title,
        "task": "Findings of a chest X-ray: present, absent or uncertain, with calibrated probabilities",
        "description": f"A plain Vision Transformer with a linear head, pretrained by VIVID-Med on {dataset}. Reads "
        "DICOM, PNG and JPEG; says what it does not answer.",
        "authors": authors,
        "copyright": copyright_,
        "data_source": dataset,
        "data_type": "dicom, png, jpeg",
        "image_classes": "one chest X-ray, preprocessed as docs/README.md says",
        "pred_classes": "one calibrated logit per finding; its sigmoid is the probability that the finding is present",
        "eval_metrics": {"test_macro_auroc": _rounded(finished.results.get("auroc", MACRO, "pretrained").value)},
        "intended_use": "Research. Not a medical device, and not for clinical decisions.",
        "references": ["VIVID-Med, arXiv:2603.09109"],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
        "encoder_data_format": {"inputs": {"image": image}, "outputs": {"features": features}},
        "answers": {
            "label_space": finished.manifest.label_space.name,
            "modality": "DX",
            "anatomy": "chest",
            "labeller": name,
            "labeller_version": version_,
            **_rules(finished),
        },
        "vivid": {
            "vivid_monai_version": version("vivid-monai"),
            "encoder": finished.fingerprint,
            "vit": finished.classifier.encoder.config,
            "pool": finished.classifier.pool,
            "views": _views(finished),
            "preprocess": preprocess.to_dict(),
        },
    }


def _rules(finished: Finished) -> dict[str, Any]:
    space = finished.manifest.label_space
    fields: Sequence[dict[str, Any]] = [
        {"field": one.field, "ancestors": list(space.ancestors(one.field)), **_without(asdict(one), "field")}
        for one in finished.calibrations
    ]
    return {
        "no_finding": space.no_finding,
        "no_finding_compatible": list(space.no_finding_compatible),
        "fields": fields,
    }


def _views(finished: Finished) -> list[str]:
    """View positions of the training images."""
    return sorted({view for view in finished.manifest.select("train").table["view"].to_pylist() if view})


def _value_range(finished: Finished) -> list[float]:
    """What black and white become."""
    mean, std = (np.atleast_1d(one) for one in (finished.preprocess.mean, finished.preprocess.std))
    return [_rounded(float(((0 - mean) / std).min())), _rounded(float(((1 - mean) / std).max()))]


def _rounded(value: float | None) -> float:
    return round(float("nan") if value is None else value, 4)


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}
