"""Evaluation: probes on frozen features of encoders, and everything that is measured on their scores."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from vivid_monai.errors import VividError
from vivid_monai.evaluation.encoders import Encoder, TokenEncoder
from vivid_monai.evaluation.features import Features, FeatureStore
from vivid_monai.evaluation.measure import Scored, measure
from vivid_monai.evaluation.probes import Probe, fit_probe
from vivid_monai.evaluation.results import Results
from vivid_monai.evaluation.task import Task
from vivid_monai.ums.states import ABSENT, PRESENT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """Results without their provenance, and what they were measured on.

    Attributes:
        results: the numbers.
        scored: encoder name → probabilities of the validation and the test images.
        validation, test: features of the first encoder for these images, with their ids, patients and states.
        probes: encoder name → its probes, one per seed.
        seconds: encoder name → seconds for "features" and for "probes", all seeds together.
    """

    results: Results
    scored: dict[str, Scored]
    validation: Features
    test: Features
    probes: dict[str, list[Probe]]
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
    keep: Collection[str] | None = None,
    fitted: Mapping[str, Sequence[Probe]] | None = None,
    min_present: int = 10,
    min_absent: int = 10,
    n_resamples: int = 1000,
) -> Evaluated:
    """Fit a probe per encoder and seed on training images, choose on validation images, measure on test images.

    Args:
        encoders: name → one encoder, which is probed with every seed, or one encoder per seed (as many pretraining
            runs), each probed with its seed.
        task: images and fields.
        store: where features come from.
        probe: "linear", "knn", "published" or "attentive" (on tokens); ``probe_options`` go to
            :func:`~vivid_monai.evaluation.probes.fit_probe`.
        seeds: of the probes. They never touch the split, the bootstrap or the test images.
        train_fraction: share of the training patients that the probe sees, drawn by the seed.
        keep: names of the encoders whose features the store keeps; None: all.
        fitted: names of encoders → the probe that each has already, on its pooled features: one for all seeds, or one
            for each.
        min_present, min_absent: what a field needs of each on the test images to enter the macro average.
        n_resamples: bootstrap resamples of the test patients.

    Raises:
        VividError: neither one encoder nor one per seed, encoders that could read different images, and whatever task,
            store, probe and :func:`~vivid_monai.evaluation.measure.measure` raise.
    """
    if probe == "attentive":
        encoders = {name: [TokenEncoder(one) for one in members] for name, members in encoders.items()}
    fit = partial(fit_probe, kind=probe, exclusive=task.exclusive, train_fraction=train_fraction)
    scored: dict[str, Scored] = {}
    probes: dict[str, list[Probe]] = {}
    seconds: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    first: tuple[Features, Features] | None = None
    for name, members in encoders.items():
        if len(members) not in (1, len(seeds)):
            raise VividError(f"{name}: {len(members)} encoders for {len(seeds)} seeds; give one, or one for each seed")
        given = (fitted or {}).get(name, ())
        if len(given) not in (0, 1, len(seeds)):
            raise VividError(f"{name}: {len(given)} probes for {len(seeds)} seeds; give one, or one for each seed")
        used, validation, tested, spent = [], [], [], {"features": 0.0, "probes": 0.0}
        for position, seed in enumerate(seeds):
            if position < len(members):
                started = time.perf_counter()
                kept = keep is None or name in keep
                train, val, test = task.parts(members[position], store, title=name, keep=kept)
                spent["features"] += time.perf_counter() - started
                first = first or (val, test)
                for part, a, b in (("validation", first[0], val), ("test", first[1], test)):
                    if len(odd := np.setxor1d(a.ids, b.ids)):
                        raise VividError(
                            f"{name} could not read the same {part} images as the encoder before it (for example "
                            f"{odd[0]}): encoders are compared on the same images only"
                        )
                skipped = dict((*train.skipped, *val.skipped, *test.skipped)) | skipped
            started = time.perf_counter()
            own = given[position % len(given)] if given else fit(train, val, seed=seed, **(probe_options or {}))
            spent["probes"] += time.perf_counter() - started
            used.append(own)
            validation.append(own.probabilities(val.x))
            tested.append(own.probabilities(test.x))
        probes[name] = used
        seconds[name] = {part: round(value, 3) for part, value in spent.items()}
        described = [task.view(member).describe() for member in members]
        if len(described) > 1:  # runs of one recipe
            described[0] |= {key: [one[key] for one in described] for key in ("source", "fingerprint")}
        scored[name] = Scored(
            validation=np.stack(validation),
            test=np.stack(tested),
            encoder=described[0],
            probes=[one.description for one in used],
            untrained=tuple(sorted({column for one in used for column in one.untrained})),
        )
    if first is None:
        raise VividError(f"{task.name}: there is no encoder to evaluate")
    results = measure(
        scored,
        task=task.name,
        fields=list(task.fields),
        exclusive=task.exclusive,
        validation_states=first[0].states,
        test=first[1],
        seeds=list(seeds),
        skipped=list(skipped.items()),
        min_present=min_present,
        min_absent=min_absent,
        n_resamples=n_resamples,
    )
    return Evaluated(results, scored, *first, probes, seconds)


def of_datasets(evaluated: Evaluated) -> dict[str, Evaluated]:
    """The same encoders and probes, measured on the test images of each data set alone, where there are several.

    Fields are those that its test images answer, thresholds those of its own validation images. A data set without a
    field that can be measured is left out, and told.

    Returns:
        Name of the data set → what was measured, in the order of the test images.
    """
    whole, names = evaluated.results, list(dict.fromkeys(evaluated.test.datasets.tolist()))
    exclusive = whole.kind == "classes"
    options = {name: whole.intervals[name] for name in ("min_present", "min_absent", "seed")}
    alone = {}
    for name in names if len(names) > 1 else ():
        own_test, own_validation = (part.datasets == name for part in (evaluated.test, evaluated.validation))
        answered = np.isin(evaluated.test.states[own_test], (PRESENT, ABSENT)).any(axis=0)
        columns = np.flatnonzero(answered | exclusive).tolist()
        validation, test = (
            evaluated.validation.select(own_validation, columns),
            evaluated.test.select(own_test, columns),
        )
        scored = {
            encoder: replace(
                one,
                validation=one.validation[:, own_validation][:, :, columns],
                test=one.test[:, own_test][:, :, columns],
                # What is said of each field is said of all fields, and belongs to the whole.
                probes=[{k: v for k, v in probe.items() if not isinstance(v, (list, dict))} for probe in one.probes],
                untrained=tuple(columns.index(column) for column in one.untrained if column in columns),
            )
            for encoder, one in evaluated.scored.items()
        }
        try:
            results = measure(
                scored,
                task=f"{whole.task}, {name}",
                fields=[whole.fields[column] for column in columns],
                exclusive=exclusive,
                validation_states=validation.states,
                test=test,
                seeds=whole.seeds,
                n_resamples=whole.intervals["resamples"],
                **options,
            )
        except VividError as error:
            logger.warning(f"no numbers for {name!r} alone: {error}")
            continue
        alone[name] = replace(evaluated, results=results, scored=scored, validation=validation, test=test)
    return alone
