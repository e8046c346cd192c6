"""Fitting any kind of probe, and probes on disk."""

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.attentive import AttentiveHead, AttentiveProbe, chunks, fit_attentive
from vivid_monai.evaluation.probes.base import Probe
from vivid_monai.evaluation.probes.knn import fit_knn
from vivid_monai.evaluation.probes.linear import LinearProbe, fit_linear, fit_published
from vivid_monai.networks.modules import load_module, save_module
from vivid_monai.ums.states import ABSENT, PRESENT

KINDS: dict[str, Callable[..., Probe]] = {
    "linear": fit_linear,
    "knn": fit_knn,
    "published": fit_published,
    "attentive": fit_attentive,
}


def fit_probe(
    train: Features,
    validation: Features,
    *,
    kind: str = "linear",
    exclusive: bool = False,
    seed: int = 0,
    train_fraction: float = 1.0,
    **options: Any,
) -> Probe:
    """Fit a probe on training features, with everything that must be chosen chosen on validation features.

    Args:
        train, validation: of different patients.
        kind: "linear", "knn", "published" or, on tokens, "attentive".
        exclusive: the fields are classes, of which exactly one is present.
        seed: draws the training patients where ``train_fraction`` < 1; of "published" and "attentive" also the first
            weights and the order of the images. With all patients, "linear" and "knn" do not depend on it.
        train_fraction: share of the training patients, in (0, 1]; validation keeps all of its own.
        options: of :func:`fit_linear`, :func:`fit_knn`, :func:`fit_published` or :func:`fit_attentive`.

    Raises:
        VividError: an unknown kind or option; features that are not usable; as the fit.
    """
    if kind not in KINDS:
        raise VividError(f"probe {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    known = set(inspect.signature(KINDS[kind]).parameters) - {"train", "validation", "exclusive", "seed"}
    if unknown := sorted(options.keys() - known):
        raise VividError(f"the {kind} probe has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    _check(train, validation, exclusive, axes=3 if kind == "attentive" else 2)
    started = time.perf_counter()
    drawn = _draw_patients(train, train_fraction, seed)
    if kind in ("published", "attentive"):
        options["seed"] = seed
    probe = KINDS[kind](drawn, validation, exclusive=exclusive, **options)
    description = {
        "kind": kind,
        "exclusive": exclusive,
        "seed": seed,
        "train_fraction": train_fraction,
        "n_train_images": len(drawn.ids),
        "n_train_patients": len(np.unique(drawn.patients)),
        "n_validation_images": len(validation.ids),
        "untrained": list(probe.untrained),
        **probe.description,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return replace(probe, description=description)


def _check(train: Features, validation: Features, exclusive: bool, *, axes: int) -> None:
    for name, part in (("training", train), ("validation", validation)):
        lengths = {len(part.x), len(part.states), len(part.patients), len(part.ids)}
        if lengths == {0} or len(lengths) > 1 or part.x.ndim != axes or part.states.ndim != 2:
            raise VividError(
                f"the {name} features are not usable: x {part.x.shape}, states {part.states.shape}, "
                f"{len(part.patients)} patients, {len(part.ids)} ids"
            )
        finite = np.concatenate([np.isfinite(rows).reshape(len(rows), -1).all(1) for rows in chunks(part.x)])
        if not finite.all():
            raise VividError(f"the {name} features of image {part.ids[np.argmin(finite)]} are not finite")
        one = ((part.states == PRESENT).sum(1) == 1) & ((part.states == ABSENT).sum(1) == part.states.shape[1] - 1)
        if exclusive and not one.all():
            raise VividError(
                f"classes exclude each other here, but the {name} image {part.ids[np.argmin(one)]} has the states "
                f"{part.states[np.argmin(one)].tolist()}: exactly one must be present and all others absent"
            )
    if train.x.shape[1:] != validation.x.shape[1:] or train.states.shape[1] != validation.states.shape[1]:
        raise VividError(
            f"training and validation do not go together: features {_size(train)} and {_size(validation)}, "
            f"fields {train.states.shape[1]} and {validation.states.shape[1]}"
        )
    if train.encoder != validation.encoder:
        raise VividError("the training and validation features are of different encoders; extract both with the same")


def _size(part: Features) -> str:
    return " x ".join(map(str, part.x.shape[1:]))


def _draw_patients(train: Features, fraction: float, seed: int) -> Features:
    """The rows of a share of the patients, at least one: of one seed, a smaller share is part of a larger one."""
    if not 0 < fraction <= 1:
        raise VividError(f"train_fraction must lie in (0, 1], but is {fraction}")
    if fraction == 1:
        return train
    patients = np.unique(train.patients)
    drawn = np.random.default_rng(seed).permutation(patients)[: math.ceil(fraction * len(patients))]
    rows = np.flatnonzero(np.isin(train.patients, drawn))
    return train.select(rows)


def save_probe(probe: LinearProbe | AttentiveProbe, path: str | PathLike, *, fields: Sequence[str]) -> None:
    """Write a probe, fitted on features of a known encoder, with the names of its columns."""
    columns = len(probe.weight) if isinstance(probe, LinearProbe) else probe.module.head.out_features
    if len(set(fields)) != columns or len(fields) != columns or not probe.encoder:
        raise VividError(f"{path}: a probe of {columns} columns needs a name for each and its encoder's fingerprint")
    extra = {name: getattr(probe, name) for name in EXTRA}
    if isinstance(probe, AttentiveProbe):
        save_module(probe.module, path, kind="attentive", fields=fields, extra=extra)
        return
    config = {"in_features": probe.weight.shape[1], "out_features": columns}
    head = nn.Linear(**config, device="meta")
    head.load_state_dict({"weight": torch.tensor(probe.weight), "bias": torch.tensor(probe.bias)}, assign=True)
    save_module(head, path, kind="probe", config=config, fields=fields, extra=extra)


EXTRA = ("encoder", "exclusive", "untrained", "description")


def load_probe(path: str | PathLike, *, encoder: str) -> tuple[LinearProbe | AttentiveProbe, tuple[str, ...]]:
    """The probe and the names of its columns from a file of :func:`save_probe`.

    Raises:
        VividError: no such file, not a probe, broken, or its fingerprint of the encoder is not ``encoder``.
    """
    saved = load_module(path, {"probe": nn.Linear, "attentive": AttentiveHead})
    extra, fields, attentive = saved.extra, saved.fields or (), isinstance(saved.module, AttentiveHead)
    head: nn.Linear = saved.module.head if attentive else saved.module
    if len(fields) != head.out_features or not extra.keys() >= {*EXTRA}:
        raise VividError(f"{path}: is not a whole probe: {len(fields)} fields, {', '.join(extra) or 'nothing else'}")
    if extra["encoder"] != encoder:
        raise VividError(
            f"{path}: this probe takes features of the encoder {extra['encoder'][:12]}…, not of {encoder[:12]}…; "
            "weights, pooling and preprocessing must be the very same. Fit a probe for this encoder"
        )
    values = {name: extra[name] for name in EXTRA} | {"untrained": tuple(extra["untrained"])}
    if attentive:
        return AttentiveProbe(saved.module.eval(), **values), fields
    weight, bias = (one.detach().numpy() for one in (head.weight, head.bias))
    return LinearProbe(weight, bias, **values), fields
