"""A bundle whose weights were trained further, by its own ``configs/train.json``: calibrated and tested anew."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from vivid_monai.data.manifest import Manifest
from vivid_monai.data.union import load_manifest
from vivid_monai.deploy.calibration import CalibratedModel, calibrated, manifest_files
from vivid_monai.deploy.model import BundleModel
from vivid_monai.deploy.trained import Trained
from vivid_monai.errors import VividError, cut, did_you_mean
from vivid_monai.evaluation.encoders import VividEncoder
from vivid_monai.evaluation.encoders.base import load_strictly
from vivid_monai.evaluation.evaluate import evaluate
from vivid_monai.evaluation.features import FeatureStore
from vivid_monai.evaluation.finetuning import FROZEN
from vivid_monai.evaluation.probes import LinearProbe
from vivid_monai.evaluation.task import Task
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.networks.checkpoint import read_checkpoint
from vivid_monai.networks.classifier import Classifier

FURTHER, ORIGINAL = "trained further", "original"


def load_further(
    bundle: Path,
    weights: Path,
    manifest: Sequence[Path],
    *,
    fields: Sequence[str] | None = None,
    sensitivity: float = 0.9,
    specificity: float = 0.9,
    accepted: float = 0.99,
    n_resamples: int = 1000,
) -> CalibratedModel:
    """The network of a bundle with other weights, calibrated on a data set's validation images.

    On its test images it stands beside the bundle's own weights ("original") or, where the fields are others, beside a
    linear probe on the bundle's encoder ("frozen").

    Args:
        bundle: whose network it is.
        weights: state dict of that network, as ``configs/train.json`` of the bundle writes it; its head may be of
            another width.
        manifest: the data set, or several.
        fields: of the head's outputs, in their order; None: the bundle's.
        sensitivity, specificity, accepted: as of :func:`~vivid_monai.deploy.calibration.load_calibrated`.
        n_resamples: of the test patients.

    Raises:
        VividError: no bundle, weights that are not of its network, fields that are not the head's or not the data
            set's, a data set that is not there, patients on two sides of its splits; as
            :func:`~vivid_monai.evaluation.measure.measure` and the OOD detector.
    """
    model = BundleModel(bundle, runtime="torch")
    classifier = with_weights(model.classifier, read_checkpoint(weights).tensors, f"{weights}: not of {bundle}")
    names = _fields(classifier, model.fields, fields, str(weights))
    table = load_manifest(manifest_files(manifest))
    _refuse_unknown(names, table, own=fields is None)
    task = Task(name=FURTHER, manifest=table, fields=names)
    if task.exclusive:
        raise VividError(f"{manifest[0]}: its classes exclude each other, and a bundle answers findings")
    encoder, probe = _parts(classifier, model.preprocess, str(weights), kind=FURTHER)
    before, probe_before = _parts(model.classifier, model.preprocess, str(bundle), kind=ORIGINAL)
    same = names == model.fields
    beside = ORIGINAL if same else FROZEN
    fitted = {FURTHER: [probe]} | ({ORIGINAL: [probe_before]} if same else {})
    with TemporaryDirectory() as folder:  # the features of the first are asked for twice
        store = FeatureStore(folder)
        evaluated = evaluate(
            {FURTHER: [encoder], beside: [before]}, task, store, fitted=fitted, keep=[FURTHER], n_resamples=n_resamples
        )
        train, val, test = (replace(one, x=np.array(one.x)) for one in task.parts(encoder, store, title=FURTHER))
    trained = Trained(encoder, probe, names, evaluated.results, FURTHER, made=FURTHER, beside=beside)
    rates = {"sensitivity": sensitivity, "specificity": specificity, "accepted": accepted}
    return calibrated(trained, table, (train, val, test), **rates)


def with_weights(classifier: Classifier, tensors: dict[str, Tensor], where: str) -> Classifier:
    """A copy of a classifier with these weights and a head of their width; a VividError, after ``where``, on misfit."""
    bias = tensors.get("head.bias")
    if bias is None or bias.ndim != 1 or not len(bias):
        raise VividError(f"{where}: there is no head in it, but {cut(', '.join(sorted(tensors)), 100)}")
    encoder, spd = copy.deepcopy((classifier.encoder, classifier.spd))
    other = Classifier(encoder, len(bias), pool=classifier.pool, spd=spd)
    load_strictly(other, tensors, where)
    return other.eval()


def _parts(
    classifier: Classifier, preprocess: Preprocess, source: str, *, kind: str
) -> tuple[VividEncoder, LinearProbe]:
    """A classifier as encoder and probe."""
    encoder = VividEncoder(classifier.encoder, preprocess, spd=classifier.spd, pool=classifier.pool, source=source)
    about = {"kind": kind, "warnings": []}
    return encoder, LinearProbe.of_head(classifier.head, encoder.fingerprint(), description=about)


def _fields(classifier: Classifier, own: tuple[str, ...], asked: Sequence[str] | None, weights: str) -> tuple[str, ...]:
    outputs, names = classifier.head.out_features, tuple(own if asked is None else asked)
    if len(names) != outputs:
        whose = "the bundle has" if asked is None else "--fields names"
        raise VividError(
            f"{weights}: its head has {outputs} outputs, and {whose} {len(names)} findings; name those that it was "
            "trained on, in the order of the labels (--fields A B C)"
        )
    return names


def _refuse_unknown(names: Sequence[str], table: Manifest, *, own: bool) -> None:
    for name in names:
        if name not in table.fields:
            way = "; where the weights learned other findings, name these in the order of the labels (--fields A B C)"
            hint = did_you_mean(name, table.fields).rstrip(".")
            raise VividError(f"{table.path}: has no finding {cut(name, 60)!r}{hint}{way if own else ''}")
