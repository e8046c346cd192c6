"""How often do the 95 % intervals hold the truth? Simulated test sets of known AUROC, as a table.

    python scripts/measure_coverage.py --trials 1000

Patients have 1 to 4 images that are alike; a finding is a matter of the patient. "percentile" is the plain bootstrap
interval, for comparison. The second table is about the other metrics. Runs for about half an hour with 1,000 trials on
one core; ``--table other`` for a few minutes.
"""

import argparse

import numpy as np
from scipy.special import expit, logit
from scipy.stats import norm
from tqdm import tqdm

from vivid_monai.metrics import statistics as sums
from vivid_monai.metrics.intervals import Patients, Resampled, auroc_resamples

PREVALENCES = (0.1, 0.2, 0.3, 0.4, 0.5)
SURENESS = {"Brier": 1.0, "ECE, calibrated": 1.0, "ECE, twice too sure": 2.0}


def made(n_patients: int, auroc: float, prevalence: float, rng: np.random.Generator, patients=None, common=None):
    """Scores (N, 1), states (N, 1) and patients (N,) of a population in which the AUROC is known.

    Half of the scores' variance within a state is the patient's, half the image's; ``common`` (N,), where it is given,
    takes the place of half of it.
    """
    if patients is None:
        patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    states = (rng.random(n_patients) < prevalence)[patients].astype(int)
    return (shift(auroc) * states + noise(patients, rng, common))[:, None], states[:, None], patients


def shift(auroc: float) -> float:
    """Distance of two unit normals whose AUROC is given."""
    return np.sqrt(2) * norm.ppf(auroc)


def noise(patients: np.ndarray, rng: np.random.Generator, common: np.ndarray | None = None) -> np.ndarray:
    """Unit variance, half of it the patient's."""
    own = np.sqrt(0.5) * (rng.standard_normal(patients.max() + 1)[patients] + rng.standard_normal(len(patients)))
    return own if common is None else np.sqrt(0.5) * (own + common)


def holds(resampled: Resampled, truth: float, *, bounded: bool = True) -> tuple[bool, bool] | None:
    """Whether our interval and the percentile one hold the truth; None where there is none."""
    low, high = resampled.interval(bounded=bounded)[0]
    ends = np.nanquantile(resampled.draws[:, 0], (0.025, 0.975))
    return None if np.isnan(low) else (low <= truth <= high, ends[0] <= truth <= ends[1])


def one_field(n_patients: int, auroc: float, prevalence: float, rng: np.random.Generator, n_resamples: int):
    """One test set with one finding."""
    scores, states, patients = made(n_patients, auroc, prevalence, rng)
    resampled = auroc_resamples(
        Patients(patients, n_resamples=n_resamples, seed=int(rng.integers(1 << 30))), scores, states
    )
    return holds(resampled, auroc)


def macro_and_difference(n_patients: int, auroc: float, rng: np.random.Generator, n_resamples: int):
    """One test set with five findings, seen by two encoders that are equally good."""
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    first, second, truths = [], [], []
    for prevalence in PREVALENCES:
        common = noise(patients, rng)
        scores, states, _ = made(n_patients, auroc, prevalence, rng, patients, common)
        first.append(scores)
        second.append((shift(auroc) * states[:, 0] + noise(patients, rng, common))[:, None])
        truths.append(states)
    drawn = Patients(patients, n_resamples=n_resamples, seed=int(rng.integers(1 << 30)))
    states = np.concatenate(truths, axis=1)
    a, b = (auroc_resamples(drawn, np.concatenate(s, axis=1), states).macro(range(5)) for s in (first, second))
    return holds(a, auroc), holds(a - b, 0.0, bounded=False)


def other_metrics(patients: Patients, scores, states, auroc: float, prevalence: float) -> dict[str, Resampled]:
    """AP, F1, accuracy, Brier and ECE of one finding whose scores are those of :func:`made`.

    The probability is the one that Bayes' rule gives to the score alone, so that it is calibrated; for one line its
    logit is doubled. The threshold of F1 is the prevalence, that of the accuracy is 0.5.
    """
    log_odds = shift(auroc) * (scores[:, 0] - shift(auroc) / 2) + logit(prevalence)
    truth, groups = states[:, 0], patients.ids
    p = {name: expit(factor * log_odds) for name, factor in SURENESS.items()}
    rare, everyone = patients.cases(states), [patients.n]
    of = {
        "AP": (sums.ap(scores[:, 0], truth, groups), rare),
        "F1": (sums.f1(p["Brier"], truth, groups, prevalence), rare),
        "accuracy": (sums.accuracy(log_odds > 0, truth == 1, groups), everyone),
        "Brier": (sums.brier(p["Brier"], truth, groups), everyone),
    } | {name: (sums.ece(p[name], truth, groups), everyone) for name in SURENESS if name.startswith("ECE")}
    return {name: patients.resample([statistic], cases) for name, (statistic, cases) in of.items()}


def print_auroc(trials: int, n_resamples: int) -> None:
    """One field, the mean of five, and the difference of two encoders."""
    rng = np.random.default_rng(0)
    head("AUROC", "patients", "prevalence .1", "prevalence .3", "prevalence .5")
    for n_patients in (60, 100, 300):
        for auroc in (0.6, 0.75, 0.9, 0.95):
            held = [[one_field(n_patients, auroc, p, rng, n_resamples) for _ in bar(trials)] for p in (0.1, 0.3, 0.5)]
            row(auroc, n_patients, *map(cell, held))
    head("AUROC of each", "patients", "macro of five", "difference of two encoders")
    for n_patients in (60, 100, 300):
        for auroc in (0.6, 0.75, 0.9, 0.95):
            both = [macro_and_difference(n_patients, auroc, rng, n_resamples) for _ in bar(trials // 2)]
            row(auroc, n_patients, *(cell(list(one)) for one in zip(*both, strict=True)))


def print_other(trials: int, n_resamples: int) -> None:
    """The other metrics; the truth is the metric of 200,000 patients."""
    rng = np.random.default_rng(1)
    for first, (auroc, prevalence) in enumerate(((0.75, 0.1), (0.75, 0.3), (0.9, 0.1), (0.9, 0.3))):
        scores, states, groups = made(200_000, auroc, prevalence, rng)
        everyone = Patients(groups, n_resamples=2, seed=0)
        truths = {key: one.value[0] for key, one in other_metrics(everyone, scores, states, auroc, prevalence).items()}
        if not first:
            head("AUROC", "prevalence", "patients", *truths)
        for n_patients in (100, 300):
            held: dict[str, list] = {key: [] for key in truths}
            for _ in bar(trials):
                scores, states, groups = made(n_patients, auroc, prevalence, rng)
                patients = Patients(groups, n_resamples=n_resamples, seed=int(rng.integers(1 << 30)))
                for key, one in other_metrics(patients, scores, states, auroc, prevalence).items():
                    held[key].append(holds(one, truths[key]))
            row(auroc, prevalence, n_patients, *map(cell, held.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--table", choices=("auroc", "other", "all"), default="all")
    args = parser.parse_args()
    if args.table != "other":
        print_auroc(args.trials, args.resamples)
    if args.table != "auroc":
        print_other(args.trials, args.resamples)


def bar(n: int) -> tqdm:
    return tqdm(range(n), leave=False)


def cell(held: list) -> str:
    """Share of the test sets whose interval holds the truth, in percent; in brackets that of the percentile interval.
    Test sets without an interval are left out and counted."""
    counted = [one for one in held if one is not None]
    ours, percentile = 100 * np.mean(counted or [(np.nan, np.nan)], axis=0)
    without = len(held) - len(counted)
    return f"{ours:.1f} ({percentile:.1f})" + (f"; {without} without" if without else "")


def head(*names: str) -> None:
    print()
    row(*names)
    row(*["---"] * len(names))


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
