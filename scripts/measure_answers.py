"""What a trained network itself answers on test images: about fields it was taught, and by name about those it was not.

    python scripts/measure_answers.py runs/evidence/phantom-hidden/images/lm/*

The runs are of one recipe, one for each seed; the current folder is that of their training. The network is built again
from the run's config and last save, teacher included: no probe is fitted. A field is unseen where no training image
answers it; it is measured against chance, and against the best stand-in: the seen field whose answers rank the unseen
one's validation images best. Controls: the answers to images of other patients, and to an even grey. Intervals are over
seeds and patients.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from tqdm import tqdm

from vivid_monai.data.dataset import ImageDataset
from vivid_monai.data.loader import ordered_loader
from vivid_monai.data.targets import StatesTarget
from vivid_monai.engines.run import saves
from vivid_monai.errors import VividError
from vivid_monai.evaluation.verdicts import judge
from vivid_monai.metrics.intervals import Patients, Resampled, auroc_resamples, difference_over_runs
from vivid_monai.metrics.masked import counts, masked_auroc
from vivid_monai.prepare.conditions import of_other_patients
from vivid_monai.ums.states import ABSENT, NULL, PRESENT


class Part(NamedTuple):
    """Answers to one split: log-probabilities (N, F, 3) of absent, present, uncertain; states (N, F); patients (N,)."""

    log_probs: np.ndarray
    states: np.ndarray
    patients: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        """Higher = more likely present, (N, F)."""
        return self.log_probs[..., PRESENT] - self.log_probs[..., ABSENT]


@dataclass(frozen=True)
class Answers:
    """Of one run. ``seen``: bool (F,), the fields that a training image answers; ``enough``: present and absent test
    images that a field needs; ``blank``: (F, 3), of an even grey."""

    fields: list[str]
    seen: np.ndarray
    enough: tuple[int, int]
    val: Part
    test: Part
    blank: np.ndarray


def ask(run: Path) -> Answers:
    """Ask the network of a finished run about every field of its validation and test images.

    Raises:
        VividError: no config or save of a run, or a network that answers no states.
    """
    found = sorted(saves(run / "checkpoints"))
    if not (run / "config.json").is_file() or not found:
        raise VividError(f"{run}: no config.json, or no checkpoints/step_N.pt: not a run of the training bundle")
    config = ConfigParser(json.loads((run / "config.json").read_text(encoding="utf-8")))
    config.update({"output_dir": str(run)})
    pretrainer, table, fields, device = map(config.get_parsed_content, ("pretrainer", "table", "fields", "device"))
    state = torch.load(found[-1][1], map_location="cpu", weights_only=True)
    pretrainer.load_state_dict(state["network"])
    pretrainer.eval().to(device)
    preprocess = config.get_parsed_content("preprocess")

    def predict(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = {key: one.to(device) if isinstance(one, torch.Tensor) else one for key, one in batch.items()}
        answers = [one for one in pretrainer.predict(batch).values() if "log_probs" in one]
        if not answers:
            raise VividError(f"{run}: no objective of it answers states")
        return answers[0]

    def part(split: str) -> Part:
        data = ImageDataset(table.select(split).items(fields), preprocess, targets=[StatesTarget()])
        found, patients = [], []
        for batch in tqdm(ordered_loader(data, batch_size=64), desc=f"{run}, {split}", leave=False):
            found.append(predict(batch))
            patients += batch["patient_id"]
        told = (torch.cat([one[name] for one in found]).cpu().numpy() for name in ("log_probs", "states"))
        return Part(*told, np.array(patients))

    with torch.no_grad():
        val, test = part("val"), part("test")
        grey = {"image": torch.zeros(1, *preprocess.shape), "states": torch.full((1, len(fields)), NULL)}
        blank = predict(grey | {"asked": torch.zeros(1, len(fields), dtype=torch.bool)})["log_probs"][0].cpu().numpy()
    seen = (table.select("train").states(fields) != NULL).any(axis=0)
    enough = (config.get_parsed_content("min_present"), config.get_parsed_content("min_absent"))
    return Answers(list(fields), seen, enough, val, test, blank)


def measure(runs: Sequence[Answers], *, n_resamples: int = 1000) -> dict[str, Any]:
    """Rows ("what", "field", "auroc", "value", "low", "high", "verdict") about runs of one recipe; value, low and high:
    AUROC less that of the reference, which is chance or the stand-in. And "nll", of the true states of seen fields.

    Raises:
        VividError: runs that were not asked the same.
    """
    first = runs[0]
    for one in runs[1:]:
        if one.fields != first.fields or (one.seen != first.seen).any() or (one.test[2] != first.test[2]).any():
            raise VividError("the runs are not of one recipe on the same images")
    patients = Patients(first.test.patients, n_resamples=n_resamples)
    present, absent = counts(first.test.states)
    kept = np.flatnonzero((present >= first.enough[0]) & (absent >= first.enough[1]))
    seen, unseen = ([place for place in kept if first.seen[place] == which] for which in (True, False))
    own = [auroc_resamples(patients, run.test.scores, run.test.states) for run in runs]
    others = of_other_patients(first.test.patients, images="test images")
    shuffled = [auroc_resamples(patients, run.test.scores[others], run.test.states) for run in runs]

    rows = [
        _row("seen fields", "(macro)", [one.macro(seen) for one in own]),
        _row("seen fields, images of other patients", "(macro)", [one.macro(seen) for one in shuffled]),
    ]
    rows += [_row("unseen field", first.fields[place], [one.macro([place]) for one in own]) for place in unseen]
    if unseen:
        rows.append(_row("unseen fields", "(macro)", [one.macro(unseen) for one in own]))
    stand_ins = {place: found for place in unseen if (found := _stand_in(runs, place)) is not None}
    if stand_ins:
        places, lenders = list(stand_ins), list(stand_ins.values())
        states = first.test.states[:, places]
        lent = [auroc_resamples(patients, run.test.scores[:, lenders], states) for run in runs]
        for number, (place, lender) in enumerate(stand_ins.items()):
            pair = ([one.macro([place]) for one in own], [one.macro([number]) for one in lent])
            rows.append(_row(f"unseen field against {first.fields[lender]}", first.fields[place], *pair))
        every = range(len(places))
        pair = ([one.macro(places) for one in own], [one.macro(every) for one in lent])
        rows.append(_row("unseen fields against their stand-ins", "(macro)", *pair))
    nll = {
        "own": [_nll(run.test.log_probs, run) for run in runs],
        "other patients": [_nll(run.test.log_probs[others], run) for run in runs],
        "grey": [_nll(np.broadcast_to(run.blank, run.test.log_probs.shape), run) for run in runs],
    }
    return {"seeds": len(runs), "patients": patients.n, "rows": rows, "nll": nll}


def _row(what: str, field: str, own: Sequence[Resampled], against: Sequence[Resampled] | None = None) -> dict[str, Any]:
    chance = [Resampled(np.full_like(one.value, 0.5), np.full_like(one.draws, 0.5), one.cases) for one in own]
    found = difference_over_runs(own, against or chance)
    value, low, high = (None if np.isnan(number) else float(number) for number in found)
    auroc = float(np.mean([one.value[0] for one in own]))
    told = {"value": value, "low": low, "high": high, "verdict": judge(value, low, high)}
    return {"what": what, "field": field, "auroc": None if np.isnan(auroc) else auroc, **told}


def _stand_in(runs: Sequence[Answers], place: int) -> int | None:
    """The seen field whose answers rank the validation images of an unseen one best, in the mean over runs; None where
    they do not have both states."""
    candidates = np.flatnonzero(runs[0].seen)
    ranked = [masked_auroc(run.val.scores[:, candidates], run.val.states[:, [place] * len(candidates)]) for run in runs]
    means = np.mean(ranked, axis=0)
    return None if np.isnan(means).all() else int(candidates[np.nanargmax(means)])


def _nll(log_probs: np.ndarray, run: Answers) -> float:
    """Nats of the true states of seen fields."""
    known = (run.test.states != NULL) & run.seen
    return float(-log_probs[known, run.test.states[known]].mean())


def table(measured: dict[str, Any]) -> str:
    """The rows as text."""
    lines = [f"{measured['seeds']} runs, {measured['patients']} test patients; difference to chance or stand-in"]
    for row in measured["rows"]:
        told = {key: "–" if row[key] is None else f"{row[key]:+.3f}" for key in ("value", "low", "high")}
        name = f"{row['what']}: {row['field']}"
        auroc = "–" if row["auroc"] is None else f"{row['auroc']:.3f}"
        lines.append(f"{name:70s} {auroc}  {told['value']} ({told['low']} to {told['high']})  {row['verdict']}")
    nll = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in measured["nll"].items())
    return "\n".join([*lines, f"nats of the true state of seen fields: {nll}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs, one for each seed")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    print(table(measure([ask(run) for run in args.runs])))


if __name__ == "__main__":
    try:
        main()
    except VividError as error:
        raise SystemExit(f"measure_answers: {error}") from None
