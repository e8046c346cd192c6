"""Folders of runs as an evaluation writes them, with numbers that come from the package's own metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vivid_monai.evaluation.examples import Examples, Heats
from vivid_monai.evaluation.features import Features
from vivid_monai.evaluation.measure import Scored, measure
from vivid_monai.evaluation.results import Results, write_predictions

FIELDS = ("Cardiomegaly", "Edema", "Fracture", "Lesion", "Support Devices")
ENCODERS = {"pretrained": 2.0, "untrained": 0.5}
RUN = {
    "command": "python -m monai.bundle run evaluating --config_file configs/evaluate.json",
    "versions": {"python": "3.12.1", "torch": "2.13.0"},
    "created": "2026-11-23T12:00:00+00:00",
    "seconds": {"pretrained": {"features": 12.3, "probes": 4.5}},
    "data": {
        "dataset": "phantom",
        "splits": {"salt": "vivid", "val": 0.1, "test": 0.2},
        "image_root": "data/phantom",
        "card": {
            "label_policy": "every state as generated",
            "splits": {"train": {"images": 700, "patients": 350}, "test": {"images": 200, "patients": 100}},
            "rows": {"read": 1000, "kept": 1000, "skipped": 0},
            "states": {"test": {"Edema": {"null": 3, "absent": 100, "present": 90, "uncertain": 7}}},
            "ages": {"known": 0},
            "notes": [],
            "sources": [{"file": "manifest.csv", "sha256": "ab" * 32}],
        },
    },
}


def make_run(
    folder: Path,
    *,
    fields: Sequence[str] = FIELDS,
    encoders: Mapping[str, float] = ENCODERS,
    seeds: Sequence[int] = (0,),
    n: int = 200,
    exclusive: bool = False,
    rare: Sequence[str] = ("Lesion",),
    examples: int = 2,
    maps: bool = True,
    heats: bool = True,
    seed: int = 0,
    prefix: str = "",
    **changes: object,
) -> Results:
    """Write results.json, predictions.csv and examples.npz.

    Args:
        encoders: name → how much of the truth its scores hold.
        rare: fields with three present images.
        examples: images in examples.npz; 0 for no file.
        maps: whether they have attention maps; heats: whether they have maps of findings.
        seed: of the scores; states, patients and ids are those of n and fields alone.
        prefix: of the ids in predictions.csv, which those in examples.npz have not.
        changes: parts of the results that are replaced.
    """
    rng = np.random.default_rng(n + len(fields))
    if exclusive:
        states = np.eye(len(fields), dtype=np.int64)[rng.integers(0, len(fields), n)]
    else:
        states = (rng.random((n, len(fields))) < 0.35).astype(np.int64)
        states[rng.random(states.shape) < 0.1] = -1
        states[rng.random(states.shape) < 0.05] = 2
        for name in rare:
            column = states[:, list(fields).index(name)]
            column[np.flatnonzero(column == 1)[3:]] = 0
    ids = np.array([f"{prefix}image-{i:05d}" for i in range(n)])
    patients = np.array([f"patient-{i // 2}" for i in range(n)])
    test = Features(np.zeros((n, 1), np.float32), states, patients, ids)
    scores = {name: _scores(states, skill, seeds, exclusive, seed) for name, skill in encoders.items()}
    scored = {name: Scored(one, one, _described(name), [_probe(s) for s in seeds]) for name, one in scores.items()}
    results = measure(
        scored,
        task="phantom-findings",
        fields=fields,
        exclusive=exclusive,
        validation_states=states,
        test=test,
        seeds=seeds,
        n_resamples=100,
    )
    results = replace(results, **{"run": RUN, **changes})
    results.save(folder / "results.json")
    write_predictions(folder / "predictions.csv", test, fields, scores, seeds=seeds)
    if examples:
        pixels = rng.integers(0, 256, (examples, 28, 28)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
        attention = rng.random((examples, 4, 14, 14)).astype(np.float32) ** 8
        attention /= attention.sum((2, 3), keepdims=True) * 1.1
        names = np.array([key.removeprefix(prefix) for key in ids[:examples]])
        values = rng.normal(scale=0.4, size=(examples, 2, 7, 7)).astype(np.float32)
        values[0, 1] = -1  # no evidence
        shown = Heats(values, np.array([list(fields[:2])] * examples), rng.random((examples, 2)))
        kept = {"maps": attention if maps else None, "heats": shown if heats and len(fields) > 1 else None}
        Examples(pixels, names, **kept).save(folder / "examples.npz")
    return results


def _scores(states: np.ndarray, skill: float, seeds: Sequence[int], exclusive: bool, seed: int) -> np.ndarray:
    runs = []
    for probe_seed in seeds:
        noise = np.random.default_rng([seed, probe_seed]).normal(size=states.shape)
        logits = skill * (states == 1) + noise
        odds = np.exp(logits - (0 if exclusive else 1))
        runs.append(odds / odds.sum(1, keepdims=True) if exclusive else odds / (1 + odds))
    return np.stack(runs)


def _described(name: str) -> dict:
    return {
        "kind": "vivid",
        "source": f"runs/{name}.safetensors",
        "architecture": "vit-micro/16",
        "pool": "cls",
        "dim": 128,
        "n_parameters": 1234567,
        "preprocess": {"size": 112, "mean": [0.5], "std": [0.25], "window": None},
        "fingerprint": "cd" * 32,
    }


def _probe(seed: int) -> dict:
    return {
        "kind": "linear",
        "exclusive": False,
        "strength": 0.1**1.5,
        "tried": {"0.01": 0.5, "1": 0.6},
        "seed": seed,
        "warnings": [],
    }
