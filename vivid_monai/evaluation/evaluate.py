"""Encoders, a task and a kind of probe → numbers: the one path that every evaluation takes."""

import time
from collections.abc import Mapping, Sequence
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
class Evaluated:
    """What came out.

    Attributes:
        results: the numbers, without their provenance.
        scores: encoder name → probabilities (S, N, F) of the test images.
        probes: encoder name → its probes, one per seed.
        test: ids, patients and states of the test images.
        seconds: encoder name → seconds for "features" and for "probes", all seeds together.
    """

    results: Results
    scores: dict[str, np.ndarray]
    probes: dict[str, list[Probe]]
    test: Features
    seconds: dict[str, dict[str, float]]


def evaluate(
    encoders: Mapping[str, Sequence[Encoder]],
    task: Task,
    store: FeatureStore,
    *,
    probe: str = "linear",
    probe_options: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    train_fraction: float = 1.0,
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
) -> Evaluated:
    """Fit a probe per encoder and seed on the training images, choose on the validation images, measure on the test.

    Args:
        encoders: name → one encoder, which is probed with every seed, or one encoder per seed (as many pretraining
            runs), each probed with its seed.
        task: images and fields.
        store: where features come from.
        probe: "linear", "knn" or "published"; ``probe_options`` go to :func:`~vivid_monai.evaluation.probes.fit_probe`.
        seeds: of the probes. They never touch the split, the bootstrap or the test images.
        train_fraction: share of the training patients that the probe sees, drawn by the seed.
        min_present, min_absent: what a field needs of each on the test images to enter the macro average.
        n_resamples: bootstrap resamples of the test patients.

    Raises:
        VividError: neither one encoder nor one per seed, encoders that could read different test images, and whatever
            task, store, probe and metrics raise.
    """
    scored, scores, probes, seconds = {}, {}, {}, {}
    skipped: dict[str, str] = {}
    first: Features | None = None
    states = np.empty((0, 0))
    for name, members in encoders.items():
        if len(members) not in (1, len(seeds)):
            raise VividError(f"{name}: {len(members)} encoders for {len(seeds)} seeds; give one, or one for each seed")
        fitted, validation, tested, spent = [], [], [], {"features": 0.0, "probes": 0.0}
        for position, seed in enumerate(seeds):
            encoder = members[position % len(members)]
            if position < len(members):
                started = time.perf_counter()
                train, val, test = task.parts(encoder, store, title=name)
                spent["features"] += time.perf_counter() - started
                first = first or test
                _check_same_images(name, first, test)
                skipped = dict((*train.skipped, *val.skipped, *test.skipped)) | skipped
                states = val.states
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
        scores[name], probes[name] = np.stack(tested), fitted
        seconds[name] = {part: round(value, 3) for part, value in spent.items()}
        scored[name] = Scored(
            validation=np.stack(validation),
            test=scores[name],
            encoder=_describe(members, task),
            probes=[one.describe() for one in fitted],
            untrained=tuple(sorted({column for one in fitted for column in one.untrained})),
        )
    if first is None:
        raise VividError(f"{task.name}: there is no encoder to evaluate")
    results = measure(
        scored,
        task=task.name,
        fields=list(task.fields),
        exclusive=task.exclusive,
        validation_states=states,
        test=first,
        seeds=list(seeds),
        skipped=list(skipped.items()),
        min_present=min_present,
        min_absent=min_absent,
        n_resamples=n_resamples,
    )
    return Evaluated(results, scores, probes, first, seconds)


def _describe(members: Sequence[Encoder], task: Task) -> dict[str, Any]:
    """What the encoder is on this task; of several runs of one recipe, the sources and fingerprints of all."""
    seen = [task.view(member).describe() for member in members]
    if len(seen) == 1:
        return seen[0]
    return seen[0] | {key: [one[key] for one in seen] for key in ("source", "fingerprint")}


def _check_same_images(name: str, first: Features, test: Features) -> None:
    if not np.array_equal(first.ids, test.ids):
        odd = sorted(set(first.ids) ^ set(test.ids))
        raise VividError(
            f"{name} could not read the same test images as the encoder before it (for example {odd[0]}): encoders are "
            "compared on the same images only"
        )
