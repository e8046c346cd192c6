"""The calibrated classifier of a run: probabilities, decision thresholds, OOD detector, operating points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from vivid_monai.data.manifest import Manifest
from vivid_monai.data.splits import ENOUGH
from vivid_monai.data.union import load_manifest, manifest_file
from vivid_monai.deploy.ood import OODDetector, ThumbnailEncoder
from vivid_monai.deploy.postprocessing import DecisionRules
from vivid_monai.deploy.trained import Trained, load_trained
from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.evaluation.probes import LinearProbe
from vivid_monai.evaluation.results import Results, images_digest
from vivid_monai.evaluation.task import check_leakage
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.metrics.intervals import Patients, auroc_resamples
from vivid_monai.metrics.statistics import brier, ece
from vivid_monai.networks.classifier import Classifier
from vivid_monai.ums.states import ABSENT, PRESENT

FEATURES = "features"
"""Where a run keeps the features of its pretrained encoder."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Calibration:
    """How one field's logit becomes a probability, σ(slope · logit + intercept) (Platt 1999), and a state.

    Between the decision thresholds it is uncertain; they are None where the field is not answered, and `unanswered`
    says why. `n_present` and `n_absent` are the validation images behind these numbers.
    """

    field: str
    slope: float
    intercept: float
    absent_below: float | None
    present_from: float | None
    n_present: int
    n_absent: int
    unanswered: str = ""


@dataclass(frozen=True)
class CalibratedModel:
    """What a run knows of its classifier.

    Attributes:
        classifier: its head gives calibrated logits: σ of them are the probabilities.
        calibrations: per field, fitted on the validation images; already folded into the head.
        train, validation, test: features and states of the run's images.
        thumbnails: "train", "val" or "test" → float32 (N, D), what the OOD detector takes, of the same images.
        results: of the run's own evaluation on its test images.
        name: of the encoder in these results.
        fingerprint: of the encoder.
        made, beside: as of :class:`~vivid_monai.deploy.trained.Trained`.
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
    name: str
    fingerprint: str
    made: str
    beside: str = ""

    @property
    def answered(self) -> list[int]:
        """Columns of the fields that are answered."""
        return [i for i, one in enumerate(self.calibrations) if not one.unanswered]

    def probabilities(self, features: NDArray, *, calibrated: bool = True) -> NDArray[np.float64]:
        """Probabilities (N, F) of features (N, D): calibrated, or as the head was fitted."""
        logits = LinearProbe.of_head(self.classifier.head).logits(features)
        if not calibrated:
            logits -= [one.intercept for one in self.calibrations]
            logits /= [one.slope for one in self.calibrations]
        return expit(logits)


def load_calibrated(
    run: Path,
    *,
    encoder: str | None = None,
    manifest: Path | Sequence[Path] | None = None,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    accepted: float = 0.99,
) -> CalibratedModel:
    """Read a run of ``configs/train.json`` or ``configs/evaluate.json``, calibrate its classifier on its validation
    images.

    Args:
        encoder: of an evaluation, as of :func:`~vivid_monai.deploy.trained.load_trained`.
        manifest: the run's data set, or its data sets in their order; None: where the run's results have it.
        sensitivity, specificity: of :func:`calibrate`; accepted: of :meth:`OODDetector.fit`.

    Raises:
        VividError: as :func:`~vivid_monai.deploy.trained.load_trained`; a data set that is missing or not the one that
            the run was tested on, too few patients for the OOD detector.
    """
    trained = load_trained(run, encoder)
    given = manifest or trained.results.run.get("data", {}).get("manifest") or "unknown"
    paths = manifest_files([given] if isinstance(given, (str, Path)) else given)
    table, compute = load_manifest(paths), FeatureStore(None)
    kept = FeatureStore(run / FEATURES, exact=False) if (run / FEATURES).is_dir() else compute
    train, val, test = (kept.features(trained.encoder, table, split, trained.fields, title=split) for split in SPLITS)
    check_leakage(train, val, test)
    if images_digest(test.ids) != trained.results.test["images_sha256"]:
        found = ", ".join(map(str, paths))
        raise VividError(f"{found}: its test images are not those of the run; give the run's own data set (--manifest)")
    return calibrated(
        trained, table, (train, val, test), sensitivity=sensitivity, specificity=specificity, accepted=accepted
    )


def manifest_files(given: Sequence[str | Path]) -> list[Path]:
    """The files of data sets, named by file or folder; a VividError where one is not there."""
    paths = [manifest_file(one) for one in given]
    for path in paths:
        if not path.is_file():
            raise VividError(f"{path}: the run's data set is not there; say where it is (--manifest)")
    return paths


def calibrated(
    trained: Trained,
    table: Manifest,
    parts: tuple[Features, Features, Features],
    *,
    sensitivity: float,
    specificity: float,
    accepted: float,
) -> CalibratedModel:
    """Calibrate on the validation images, put that into the head, fit the OOD detector on the training images.

    Args:
        parts: features of the training, validation and test images, of which none is on two sides.
        sensitivity, specificity, accepted: as of :func:`load_calibrated`.
    """
    encoder, probe, fields = trained.encoder, trained.probe, trained.fields
    train, val, test = parts
    compute, thumbnail = FeatureStore(None), ThumbnailEncoder(encoder.preprocess)
    thumbnails = {
        split: compute.features(thumbnail, table, split, fields, title=f"thumbnails of {split}").x for split in SPLITS
    }
    calibrations = calibrate(
        probe.logits(val.x),
        val.states,
        val.patients,
        fields,
        sensitivity=sensitivity,
        specificity=specificity,
        untrained=probe.untrained,
    )
    classifier = Classifier(encoder.network, len(fields), pool=encoder.pool, spd=encoder.spd)
    slope, intercept = (np.array([getattr(one, name) for one in calibrations]) for name in ("slope", "intercept"))
    with torch.no_grad():
        classifier.head.weight.copy_(torch.from_numpy(probe.weight * slope[:, None]))
        classifier.head.bias.copy_(torch.from_numpy(probe.bias * slope + intercept))
    patients = train.patients, val.patients
    return CalibratedModel(
        classifier=classifier.eval(),
        preprocess=encoder.preprocess,
        fields=fields,
        calibrations=calibrations,
        manifest=table,
        train=train,
        validation=val,
        test=test,
        thumbnails=thumbnails,
        ood=OODDetector.fit(thumbnails["train"], thumbnails["val"], patients, accepted=accepted),
        results=trained.results,
        name=trained.name,
        fingerprint=encoder.fingerprint(),
        made=trained.made,
        beside=trained.beside,
    )


def calibrate(
    logits: NDArray,
    states: NDArray,
    patients: NDArray,
    fields: Sequence[str],
    *,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    untrained: Sequence[int] = (),
) -> list[Calibration]:
    """Fit every field by itself on the validation images whose state is present or absent.

    The probability is Platt's: logistic regression on the logit with his smoothed targets, which keep small samples
    from certainty. "Absent" is said under the highest threshold with this `sensitivity` (rule out), "present" from the
    lowest threshold with this `specificity` on (rule in). Both rates do not depend on prevalence, which differs between
    hospitals. Where one threshold does both, there is nothing uncertain between them.

    A field is answered only where its AUROC on these images is above one half with its whole 95 % interval: a state
    made of noise looks like any other.

    Args:
        logits, states: (N, F); codes of :mod:`vivid_monai.ums.states`.
        patients: (N,), whose image it is.
        fields: names of the columns.
        sensitivity, specificity: in (0.5, 1).
        untrained: columns whose head could not be fitted.

    Raises:
        VividError: shapes that differ, logits that are not finite, rates outside (0.5, 1).
    """
    if not (0.5 < sensitivity < 1 and 0.5 < specificity < 1):
        raise VividError(f"sensitivity {sensitivity} and specificity {specificity} must lie between 0.5 and 1")
    measured = auroc_resamples(Patients(patients), logits, states)
    fitted = []
    for column, (field, auroc, ends) in enumerate(zip(fields, measured.value, measured.interval(), strict=True)):
        present = states[:, column] == PRESENT
        counted = present | (states[:, column] == ABSENT)
        logit, truth = np.asarray(logits[counted, column], np.float64), present[counted]
        n_present, n_absent = int(truth.sum()), int((~truth).sum())
        reason = ""
        if column in untrained:
            reason = "its training images have one state only"
        elif min(n_present, n_absent) < ENOUGH:
            reason = (
                f"{n_present} present and {n_absent} absent validation images, of each of which {ENOUGH} are needed"
            )
        elif not (ends[0] > 0.5 or auroc == 1):  # perfect separation has no interval
            between = "" if np.isnan(ends[0]) else f", {ends[0]:.2f} to {ends[1]:.2f}"
            reason = f"on the validation images it does not differ from chance (AUROC {auroc:.2f}{between})"
        slope, intercept, low, high = 1.0, 0.0, None, None
        if not reason:
            slope, intercept = _platt(logit, truth)
            low, high = _thresholds(expit(slope * logit + intercept), truth, sensitivity, specificity)
        fitted.append(Calibration(field, slope, intercept, low, high, n_present, n_absent, reason))
    return fitted


def _platt(logit: NDArray, truth: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept of Platt's sigmoid (Advances in Large Margin Classifiers, 1999, section 2)."""
    n_present, n_absent = truth.sum(), (~truth).sum()
    target = np.where(truth, (n_present + 1) / (n_present + 2), 1 / (n_absent + 2))
    scale = max(logit.std(), 1e-12)  # the solver's tolerance is absolute
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000)
    both = np.concatenate([logit, logit])[:, None] / scale
    model.fit(both, np.repeat([1, 0], len(logit)), sample_weight=np.concatenate([target, 1 - target]))
    return float(model.coef_[0, 0] / scale), float(model.intercept_[0])


def _thresholds(
    probability: NDArray, truth: NDArray[np.bool_], sensitivity: float, specificity: float
) -> tuple[float, float]:
    present, absent = np.sort(probability[truth]), np.sort(probability[~truth])
    low = _between(probability, present[int((1 - sensitivity) * len(present) + 1e-9)])
    kept = absent[len(absent) - 1 - int((1 - specificity) * len(absent) + 1e-9)]
    above = probability[probability > kept]
    high = _between(probability, above.min()) if len(above) else float(np.nextafter(kept, 2))
    return (low, high) if low < high else ((low + high) / 2,) * 2


def _between(probability: NDArray, value: float) -> float:
    """Midway between `value` and the next lower probability, so that a threshold does not hang on one last digit."""
    below = probability[probability < value].max(initial=0)
    middle = (below + value) / 2
    return float(middle if below < middle < value else value)


def operating_points(
    rules: DecisionRules, probabilities: NDArray, before: NDArray, states: NDArray
) -> list[dict[str, Any]]:
    """How every field does on the test images whose state is present or absent.

    Args:
        probabilities, before: after and before calibration, (N, F), columns as ``rules.fields``.
        states: (N, F), codes of :mod:`vivid_monai.ums.states`.

    Returns:
        Per field: n_present, n_absent (images); sensitivity and missed: shares of the present images that are called
        present, absent; specificity and false_alarms: shares of the absent ones that are called absent, present; brier
        and ece of the calibrated probabilities, brier_before and ece_before. None where there is nothing to count, or
        the field is not answered.
    """
    called = np.array([[state or "" for state in rules.states(row).values()] for row in probabilities])
    points = []
    for column, field in enumerate(rules.fields):
        said, codes = called[:, column], states[:, column]
        present, absent = said[codes == PRESENT], said[codes == ABSENT]

        def share(of: NDArray, word: str, answered: bool = "" not in said) -> float | None:
            return float((of == word).mean()) if len(of) and answered else None

        point = {
            "field": field,
            "n_present": len(present),
            "n_absent": len(absent),
            "sensitivity": share(present, "present"),
            "missed": share(present, "absent"),
            "specificity": share(absent, "absent"),
            "false_alarms": share(absent, "present"),
        }
        for key, scores in (("", probabilities), ("_before", before)):
            for name, metric in (("brier", brier), ("ece", ece)):
                value = metric(scores[:, column], codes, np.arange(len(codes)))(np.ones((1, len(codes)), int))[0]
                point[name + key] = None if np.isnan(value) else float(value)
        points.append(point)
    return points
