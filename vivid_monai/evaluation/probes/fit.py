"""One way to fit any kind of probe."""

import inspect
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.probes.base import Probe, check_sides, draw_patients
from vivid_monai.evaluation.probes.knn import fit_knn
from vivid_monai.evaluation.probes.linear import LinearProbe, fit_linear
from vivid_monai.evaluation.probes.published import fit_published

KINDS: dict[str, Callable[..., Any]] = {"linear": fit_linear, "knn": fit_knn, "published": fit_published}


@overload
def fit_probe(
    train: Features,
    validation: Features,
    *,
    kind: Literal["linear", "published"] = ...,
    exclusive: bool = ...,
    seed: int = ...,
    train_fraction: float = ...,
    **options: Any,
) -> LinearProbe: ...


@overload
def fit_probe(
    train: Features,
    validation: Features,
    *,
    kind: str,
    exclusive: bool = ...,
    seed: int = ...,
    train_fraction: float = ...,
    **options: Any,
) -> Probe: ...


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
        kind: "linear", "knn" or "published".
        exclusive: the fields are classes, of which exactly one is present.
        seed: draws the training patients where ``train_fraction`` < 1; of "published" also the first weights and the
            order of the images. With all patients, "linear" and "knn" do not depend on it.
        train_fraction: share of the training patients, in (0, 1]; validation keeps all of its own.
        options: of :func:`fit_linear`, :func:`fit_knn` or :func:`fit_published`.

    Raises:
        VividError: an unknown kind or option; features that are not usable; as the fit.
    """
    if kind not in KINDS:
        raise VividError(f"probe {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    known = set(inspect.signature(KINDS[kind]).parameters) - {"train", "validation", "exclusive", "seed"}
    if unknown := sorted(options.keys() - known):
        raise VividError(f"the {kind} probe has no option {unknown[0]!r}; it has {', '.join(sorted(known))}")
    check_sides(train, validation, exclusive=exclusive)
    started = time.perf_counter()
    drawn = draw_patients(train, train_fraction, seed)
    seeded = {"seed": seed} if kind == "published" else {}
    probe = KINDS[kind](drawn, validation, exclusive=exclusive, **seeded, **options)
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
