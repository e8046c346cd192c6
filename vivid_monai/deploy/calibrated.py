"""The calibrated classifier of a finished training run, with its data set, OOD detector and results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from vivid_monai.data.manifest import Manifest
from vivid_monai.deploy.calibration import Calibration, calibrate
from vivid_monai.deploy.ood import OODDetector, ThumbnailEncoder
from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import VividEncoder, load_encoder
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.evaluation.probes import LinearProbe, load_probe
from vivid_monai.evaluation.results import Results, images_digest
from vivid_monai.evaluation.task import check_leakage
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.classifier import Classifier

ENCODER = "pretrained"
"""The encoder of a training run that is exported."""
FEATURES = "features"
"""Where a run keeps the features of its pretrained encoder."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class CalibratedModel:
    """What a training run knows of its classifier.

    Attributes:
        classifier: its head gives calibrated logits: σ of them are the probabilities.
        calibrations: per field, fitted on the validation images; already folded into the head.
        train, validation, test: features and states of the run's images.
        thumbnails: "train", "val" or "test" → float32 (N, D), what the OOD detector takes, of the same images.
        ood: detects images unlike the training images.
        results: of the run's own evaluation on its test images.
        fingerprint: of the encoder.
    """

    classifier: Classifier
    preprocess: Preprocess
    fields: tuple[str, ...]
    calibrations: Sequence[Calibration]
    manifest: Manifest
    train: Features
    validation: Features
    test: Features
    thumbnails: Mapping[str, NDArray[np.float32]]
    ood: OODDetector
    results: Results
    fingerprint: str

    @property
    def answered(self) -> list[int]:
        """Columns of the fields that are answered."""
        return [i for i, one in enumerate(self.calibrations) if not one.unanswered]

    def probabilities(self, part: Features, *, calibrated: bool = True) -> NDArray[np.float64]:
        """Probabilities (N, F) of one of the parts: calibrated, or as the head was fitted."""
        weight, bias = (one.detach().numpy().astype(np.float64) for one in self.classifier.head.parameters())
        logits = part.x @ weight.T + bias
        if not calibrated:
            logits -= [one.intercept for one in self.calibrations]
            logits /= [one.slope for one in self.calibrations]
        return expit(logits)


def load_calibrated(
    run: Path,
    store: FeatureStore,
    *,
    manifest: Path | None = None,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    accepted: float = 0.99,
) -> CalibratedModel:
    """Read a run of ``configs/train.json`` and calibrate its classifier on its validation images.

    Args:
        run: the folder of the run.
        store: computes thumbnail features, and the encoder's features where the run did not keep them.
        manifest: the run's data set; None: where the run's config has it.
        sensitivity, specificity: of :func:`~vivid_monai.deploy.calibration.calibrate`.
        accepted: share of images like the training images that is assessed.

    Raises:
        VividError: not the folder of a finished run, classes that exclude each other, a data set that is missing or
            not the one that the run was tested on, too few patients for the OOD detector.
    """
    config, results = _config(run), Results.load(run / "results.json")
    if results.kind != "findings" or ENCODER not in results.encoders:
        raise VividError(f"{run}: is not a training run with findings; give the folder of a run of configs/train.json")
    encoder = load_encoder(str(run / "pretrained_vit.safetensors"), pool=config.get("pool", "cls"))
    assert isinstance(encoder, VividEncoder)
    probe, fields = load_probe(run / "probes" / f"{ENCODER}-0.safetensors", encoder=encoder.fingerprint())
    path = manifest or Path(results.run.get("data", {}).get("manifest") or "unknown")
    if not path.is_file():
        raise VividError(f"{path}: the run's data set is not there; say where it is (--manifest)")
    table = Manifest.load(path)
    kept = FeatureStore(run / FEATURES, exact=False) if (run / FEATURES).is_dir() else store
    train, val, test = (kept.features(encoder, table, split, fields, title=split) for split in SPLITS)
    thumbnail = ThumbnailEncoder(encoder.preprocess)
    thumbnails = {
        split: store.features(thumbnail, table, split, fields, title=f"thumbnails of {split}").x for split in SPLITS
    }
    check_leakage(train, val, test)
    if images_digest(test.ids) != results.test["images_sha256"]:
        raise VividError(f"{path}: its test images are not those of the run; give the run's own data set (--manifest)")
    calibrations = calibrate(
        probe.logits(val.x),
        val.states,
        val.patients,
        fields,
        sensitivity=sensitivity,
        specificity=specificity,
        untrained=probe.untrained,
    )
    return CalibratedModel(
        classifier=_classifier(encoder, probe, calibrations),
        preprocess=encoder.preprocess,
        fields=fields,
        calibrations=calibrations,
        manifest=table,
        train=train,
        validation=val,
        test=test,
        thumbnails=thumbnails,
        ood=OODDetector.fit(
            thumbnails["train"],
            thumbnails["val"],
            accepted=accepted,
            patients=(train.patients, val.patients),
        ),
        results=results,
        fingerprint=encoder.fingerprint(),
    )


def _classifier(encoder: VividEncoder, probe: LinearProbe, calibrations: Sequence[Calibration]) -> Classifier:
    """The encoder with the probe as its head, slope and intercept of each field folded in."""
    classifier = Classifier(encoder.network, len(calibrations), pool=encoder.pool)
    slope = np.array([one.slope for one in calibrations])
    intercept = np.array([one.intercept for one in calibrations])
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(probe.weight * slope[:, None]))
        classifier.head.bias.copy_(torch.from_numpy(probe.bias * slope + intercept))
    return classifier.eval()


def _config(run: Path) -> dict[str, Any]:
    path = run / "config.json"
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise VividError(f"{path}: cannot be read: {error}; give the folder of a finished training run") from error
