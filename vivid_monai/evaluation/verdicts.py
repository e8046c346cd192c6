"""Verdicts on claims "A is better than B", from the predictions of one evaluation with a run of each for every seed."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vivid_monai.evaluation.figures import Line, forest
from vivid_monai.evaluation.measure import LEVEL, resample
from vivid_monai.evaluation.report import environment, load_run
from vivid_monai.evaluation.results import MACRO, Predictions, Results, Row
from vivid_monai.metrics.intervals import Patients, Resampled, difference_over_runs
from vivid_monai.storage.files import whole_file

MARGIN = 0.01
SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"


def rule(margin: float = MARGIN) -> str:
    """What the verdicts mean, in words that come before them."""
    return (
        f"The claim is that an arm is better than its reference. It is supported where the {100 * LEVEL:g} % interval "
        "of the paired difference in macro AUROC, over seeds and patients, lies above 0 and the difference is at least "
        f"{margin:g}; refuted where the interval lies below {margin:g}, which excludes an "
        "advantage worth the name; undecided otherwise, and always with a single seed. Each interval stands for "
        "itself: of forty claims without any difference, one may look supported."
    )


class Verdict(NamedTuple):
    """A claim and what became of it.

    Attributes:
        arm, reference: names of encoders; the claim is that the first is better.
        value, low, high: difference in macro AUROC, first less second, and its interval over seeds and patients; None
            where not defined.
        seeds, patients: how many it rests on.
        verdict: "supported", "refuted" or "undecided".
    """

    arm: str
    reference: str
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    patients: int
    verdict: str


class Tried(NamedTuple):
    """A setting of an arm that was tried.

    Attributes:
        arm, setting: what they are called.
        validation: macro AUROC on the validation images of each seed's run; empty where one of them failed.
        chosen: whether it is the one that was tested.
    """

    arm: str
    setting: str
    validation: tuple[float, ...]
    chosen: bool

    @property
    def mean(self) -> float | None:
        """Over the seeds."""
        return sum(self.validation) / len(self.validation) if self.validation else None


def judge(value: float | None, low: float | None, high: float | None, *, margin: float = MARGIN) -> str:
    """The verdict that :func:`rule` gives."""
    if value is None or low is None or high is None:
        return UNDECIDED
    if low > 0 and value >= margin:
        return SUPPORTED
    return REFUTED if high < margin else UNDECIDED


def verdicts(
    results: Results, predictions: Predictions, claims: Sequence[tuple[str, str]], *, margin: float = MARGIN
) -> list[Verdict]:
    """Judge claims (arm, reference) about the encoders of an evaluation."""
    kept = [results.fields.index(field) for field in results.macro_fields]
    how = results.intervals
    patients = Patients(predictions.patients, n_resamples=how["resamples"], seed=how["seed"])
    runs: dict[str, list[Resampled]] = {}
    for name in dict.fromkeys(name for claim in claims for name in claim):
        of_fields = resample(predictions.scores[name], predictions.states, patients, ["auroc"])["auroc"]
        runs[name] = [run.macro(kept) for run in of_fields]
    judged = []
    for arm, reference in claims:
        found = difference_over_runs(runs[arm], runs[reference], LEVEL)
        value, low, high = (None if math.isnan(number) else number for number in found)
        verdict = judge(value, low, high, margin=margin)
        judged.append(Verdict(arm, reference, value, low, high, len(results.seeds), patients.n, verdict))
    return judged


def write_verdicts(
    evaluation: Path,
    out: Path,
    claims: Sequence[tuple[str, str]],
    arms: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    equal: str,
    failed: Mapping[str, str],
    margin: float = MARGIN,
    tried: Sequence[Tried] = (),
) -> list[Verdict]:
    """Judge claims, and write them as a page and, beside it, as JSON.

    Args:
        evaluation: folder of the evaluation.
        out: the page; ends in .html.
        claims: (arm, reference).
        arms: encoder → what is told of it: "says", "images" (seen in training), "minutes" (of training) and "settings".
        title: of the page.
        equal: what the arms have in common, in words.
        failed: runs that failed, with the reason.
        tried: settings of arms, of which validation chose.

    Raises:
        VividError: a file of the evaluation is missing or broken, or the page cannot be written.
    """
    results, predictions = load_run(evaluation)
    judged = verdicts(results, predictions, claims, margin=margin)
    lines = [Line(f"{one.arm} − {one.reference}", [as_row(one)], one.verdict) for one in judged]
    page = (
        environment()
        .get_template("verdicts.html.j2")
        .render(
            title=title,
            rule=rule(margin),
            equal=equal,
            r=results,
            verdicts=[(one, as_row(one)) for one in judged],
            differences=forest(lines, "verdicts", "Paired differences in macro AUROC", differences=True),
            arms=arms,
            macro={name: results.get("auroc", MACRO, name) for name in results.encoders},
            failed=failed,
            tried=tried,
        )
    )
    with whole_file(out) as part:
        part.write_text(page, encoding="utf-8")
    content = {
        "format": "vivid-verdicts",
        "version": 1,
        "title": title,
        "rule": rule(margin),
        "equal": equal,
        "margin": margin,
        "level": LEVEL,
        "test": {key: results.test[key] for key in ("n_images", "n_patients", "images_sha256")},
        "macro_fields": results.macro_fields,
        "arms": {
            name: {
                **told,
                "macro_auroc": results.get("auroc", MACRO, name).value,
                "per_seed": results.per_seed("auroc", MACRO, name),
            }
            for name, told in arms.items()
        },
        "verdicts": [one._asdict() for one in judged],
        "failed": dict(failed),
        **({"tried": [one._asdict() for one in tried]} if tried else {}),
    }
    with whole_file(out.with_suffix(".json")) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return judged


def as_row(one: Verdict) -> Row:
    """A verdict's numbers as a row of results."""
    return Row("auroc", MACRO, one.arm, None, one.value, one.low, one.high, minus=one.reference)
