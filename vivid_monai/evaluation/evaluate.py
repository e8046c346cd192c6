"""Evaluation: the scores of a method, here of probes on frozen features, then everything that is measured on them."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.evaluation.measure import Scored, measure
from vivid_monai.evaluation.probes import Probe, fit_probe
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.task import Task


@dataclass(frozen=True)
class Scores:
    """Probabilities of encoders on the same images of a task, ready to be measured.

    Attributes:
        scored: encoder name → probabilities of the validation and the test images.
        validation: the validation images, behind thresholds.
        test: ids, patients and states of the test images.
        skipped: images that could not be read, path → reason.
        probes: encoder name → its probes, one per seed.
        seconds: encoder name → seconds for "features" and for "probes", all seeds together.
    """

    scored: dict[str, Scored]
    validation: Features
    test: Features
    skipped: dict[str, str]
    probes: dict[str, list[Probe]]
    seconds: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Evaluated:
    """Results without their provenance, and the scores that they were measured on."""

    results: Results
    scores: Scores


def evaluate(
    encoders: Mapping[str, Sequence[Encoder]],
    task: Task,
    store: FeatureStore,
    *,
    probe: str = "linear",
    probe_options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    train_fraction: float = 1.0,
    keep: Collection[str] | None = None,
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
) -> Evaluated:
    """Measure probes of encoders on the test images of a task: :func:`probe_scores`, then :func:`.measure.measure`.

    Args:
        encoders, probe, probe_options, seeds, train_fraction, keep: of :func:`probe_scores`.
        task: images and fields.
        store: where features come from.
        min_present, min_absent: what a field needs of each on the test images to enter the macro average.
        n_resamples: bootstrap resamples of the test patients.

    Raises:
        VividError: as the two.
    """
    options = {"probe": probe, "probe_options": probe_options, "seeds": seeds, "train_fraction": train_fraction}
    scores = probe_scores(encoders, task, store, keep=keep, **options)  # type: ignore[arg-type]
    results = measure(
        scores.scored,
        task=task.name,
        fields=list(task.fields),
        exclusive=task.exclusive,
        validation_states=scores.validation.states,
        test=scores.test,
        seeds=list(seeds),
        skipped=list(scores.skipped.items()),
        min_present=min_present,
        min_absent=min_absent,
        n_resamples=n_resamples,
    )
    return Evaluated(results, scores)


def probe_scores(
    encoders: Mapping[str, Sequence[Encoder]],
    task: Task,
    store: FeatureStore,
    *,
    probe: str = "linear",
    probe_options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    train_fraction: float = 1.0,
    keep: Collection[str] | None = None,
) -> Scores:
    """Fit a probe per encoder and seed on the training images, its settings chosen on the validation images.

    Args:
        encoders: name → one encoder, which is probed with every seed, or one encoder per seed (as many pretraining
            runs), each probed with its seed.
        task: images and fields.
        store: where features come from.
        probe: "linear", "knn" or "published"; ``probe_options`` go to :func:`~vivid_monai.evaluation.probes.fit_probe`.
        seeds: of the probes. They never touch the split, the bootstrap or the test images.
        train_fraction: share of the training patients that the probe sees, drawn by the seed.
        keep: names of the encoders whose features the store keeps; None: all.

    Raises:
        VividError: neither one encoder nor one per seed, encoders that could read different images, and whatever task,
            store and probe raise.
    """
    scored: dict[str, Scored] = {}
    probes: dict[str, list[Probe]] = {}
    seconds: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    first: tuple[Features, Features] | None = None
    for name, members in encoders.items():
        if len(members) not in (1, len(seeds)):
            raise VividError(f"{name}: {len(members)} encoders for {len(seeds)} seeds; give one, or one for each seed")
        fitted, validation, tested, spent = [], [], [], {"features": 0.0, "probes": 0.0}
        for position, seed in enumerate(seeds):
            encoder = members[position % len(members)]
            if position < len(members):
                started = time.perf_counter()
                train, val, test = task.parts(encoder, store, title=name, keep=keep is None or name in keep)
                spent["features"] += time.perf_counter() - started
                first = first or (val, test)
                for word, a, b in zip(("validation", "test"), first, (val, test), strict=True):
                    _check_same_images(name, word, a, b)
                skipped = dict((*train.skipped, *val.skipped, *test.skipped)) | skipped
            started = time.perf_counter()
            one = fit_probe(
                train,
                val,
                kind=probe,
                exclusive=task.exclusive,
                seed=seed,
                train_fraction=train_fraction,
                **(probe_options or {}),
            )
            spent["probes"] += time.perf_counter() - started
            fitted.append(one)
            validation.append(one.probabilities(val.x))
            tested.append(one.probabilities(test.x))
        probes[name] = fitted
        seconds[name] = {part: round(value, 3) for part, value in spent.items()}
        scored[name] = Scored(
            validation=np.stack(validation),
            test=np.stack(tested),
            encoder=_describe(members, task),
            probes=[one.describe() for one in fitted],
            untrained=tuple(sorted({column for one in fitted for column in one.untrained})),
        )
    if first is None:
        raise VividError(f"{task.name}: there is no encoder to evaluate")
    return Scores(scored, *first, skipped, probes, seconds)


def _describe(members: Sequence[Encoder], task: Task) -> dict[str, Any]:
    """What the encoder is on this task; of several runs of one recipe, the sources and fingerprints of all."""
    seen = [task.view(member).describe() for member in members]
    if len(seen) == 1:
        return seen[0]
    return seen[0] | {key: [one[key] for one in seen] for key in ("source", "fingerprint")}


def _check_same_images(name: str, which: str, first: Features, other: Features) -> None:
    if not np.array_equal(first.ids, other.ids):
        odd = sorted(set(first.ids) ^ set(other.ids))
        raise VividError(
            f"{name} could not read the same {which} images as the encoder before it (for example {odd[0]}): encoders "
            "are compared on the same images only"
        )
