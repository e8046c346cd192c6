"""Numbers as text, and what was found as sentences."""

from typing import Any

from vivid_monai.evaluation.results import Difference, Estimate, Results

METRICS = {"auroc": "AUROC", "ap": "average precision", "f1": "F1", "brier": "Brier score", "ece": "calibration error"}
CLASS_METRICS = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
ALL_METRICS = METRICS | CLASS_METRICS
EXPLAINED = {
    "auroc": "The probability that an image with the finding gets a higher probability than one without it; "
    "0.5 is chance, 1 is perfect.",
    "ap": "Precision averaged over recall; by chance it is the share of images with the finding, 1 is perfect.",
    "f1": "At the threshold chosen on the validation images; 1 is perfect.",
    "brier": "Mean squared error of the probabilities; 0 is perfect, less is better.",
    "ece": "Mean distance of the probabilities from the share that is present, over 15 bins; "
    "0 is perfect, less is better. Chance alone raises it, so that its interval is not one for the true error.",
}
MINUS = "−"


def number(value: float | None, digits: int = 3) -> str:
    """0.842, or an en dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """+0.140."""
    return "–" if value is None else f"{value:+.3f}".replace("-", MINUS)


def count(value: Any) -> str:
    """A number or word of a description: 1,234, 0.316228, yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def tidy(value: float) -> str:
    """12 or 12.3: a mean of counts, with a digit more where it is none."""
    return f"{round(value, 1):g}"


def interval(estimate: Estimate) -> str:
    """ "0.820 to 0.861", or nothing where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low)} to {number(estimate.high)}"


def estimate_words(estimate: Estimate) -> str:
    """0.842 (0.820 to 0.861)."""
    ends = interval(estimate)
    return f"{number(estimate.value)} ({ends})" if ends else number(estimate.value)


def difference_words(one: Difference) -> str:
    """Which encoder is better by how much, and whether that is shown."""
    e = one.estimate
    what = f"Paired difference in {_macro(one.metric)}, {one.first} − {one.second},"
    if e.value is None:
        return f"{what} is not defined."
    if e.low is None or e.high is None:
        return f"{what} is {signed(e.value)}, without an interval: no difference is shown."
    told = f"{what} is {signed(e.value)} ({signed(e.low)} to {signed(e.high)})"
    if e.holds_zero:
        return f"{told}: the interval holds 0; no difference is shown."
    better = one.first if e.value > 0 else one.second
    return f"{told}: the interval does not hold 0; {better} is better."


def headline(results: Results) -> list[str]:
    """What was found, in sentences that can be read aloud."""
    test = results.test
    name = _macro("auroc")
    values = {one: result.macro["auroc"] for one, result in results.encoders.items()}
    told = [f"{estimate_words(e)} for {encoder}" for encoder, e in values.items() if e.value is not None]
    images = f"{_plural(test['n_images'], 'test image')} of {_plural(test['n_patients'], 'patient')}"
    n, fields = len(results.macro_fields), _plural(len(results.fields), "field")
    over = fields if n == len(results.fields) else f"{n} of {fields}"
    if told:
        sentences = [f"On {images}, {name} over {over} is {_listed(told)}."]
    else:
        sentences = [f"On {images}, {name} is not defined: no field has enough images of both kinds."]
    if results.kind == "classes":
        right = [
            f"{estimate_words(result.classes.accuracy)} for {encoder}"
            for encoder, result in results.encoders.items()
            if result.classes
        ]
        sentences.append(f"Accuracy over {len(results.fields)} classes is {_listed(right)}.")
    return sentences


def interval_words(results: Results, *, seeds: bool = True) -> str:
    """How the intervals were made, and what ``seeds`` mean for them."""
    how = results.intervals
    told = (
        f"Intervals cover {100 * how['level']:g} %: {how['method']}, {how['resamples']:,} resamples of the "
        f"{how['over']} (seed {how['seed']}), since images of one patient are not independent. Differences are paired: "
        "both encoders see the same resamples of the same images."
    )
    if seeds and len(results.seeds) > 1:
        told += (
            f" Every value is the mean over the seeds {', '.join(map(str, results.seeds))}, and the interval is that "
            "of this mean over patients; what another seed would give is told by the seeds themselves."
        )
    return told


def _macro(metric: str) -> str:
    return f"macro {METRICS[metric]}" if metric in METRICS else CLASS_METRICS[metric]


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _listed(told: list[str]) -> str:
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
