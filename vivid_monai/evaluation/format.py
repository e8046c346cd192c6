"""Numbers as text, and results as sentences and as the table of the terminal."""

from collections.abc import Iterable
from typing import Any

from vivid_monai.evaluation.results import ALL, CLASS_METRICS, MACRO, METRICS, Results, Row

NAMES = {
    "auroc": "AUROC",
    "ap": "average precision",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "calibration error",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
}
SHORT = NAMES | {"ap": "AP", "brier": "Brier", "ece": "ECE"}
EXPLAINED = {
    "auroc": "The probability that an image with the finding gets a higher probability than one without it; "
    "0.5 is chance, 1 is perfect.",
    "ap": "Precision averaged over recall; by chance it is the share of images with the finding, 1 is perfect.",
    "f1": "At the threshold chosen on the validation images; 1 is perfect.",
    "brier": "Mean squared error of the probabilities; 0 is perfect, less is better.",
    "ece": "Mean distance of the probabilities from the share that is present, over 15 bins; "
    "0 is perfect, less is better. Chance alone raises it, so that its interval is not one for the true error.",
}


def number(value: float | None, digits: int = 3) -> str:
    """0.842, or an en dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """+0.140."""
    return "–" if value is None else f"{value:+.3f}"


def interval(row: Row) -> str:
    """0.820–0.861, of a difference -0.003 to +0.027; nothing where there is none."""
    if not row.has_interval:
        return ""
    return f"{signed(row.low)} to {signed(row.high)}" if row.minus else f"{number(row.low)}–{number(row.high)}"


def estimate(row: Row) -> str:
    """0.842 (0.820–0.861), of a difference +0.012 (-0.003 to +0.027)."""
    value = signed(row.value) if row.minus else number(row.value)
    return f"{value} ({ends})" if (ends := interval(row)) else value


def count(value: Any) -> str:
    """A number or word of a description: 1,234, 0.316228, yes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else str(value)


def metric_name(row: Row, names: dict[str, str] = NAMES) -> str:
    """The name of a metric, "macro" before it where it is a mean over fields."""
    return f"macro {names[row.metric]}" if row.field == MACRO else names[row.metric]


def difference_words(row: Row) -> str:
    """Which encoder is better by how much, and whether that is shown."""
    what = f"Paired difference in {metric_name(row)}, {row.encoder} − {row.minus},"
    if row.value is None:
        return f"{what} is not defined."
    if not row.has_interval:
        return f"{what} is {estimate(row)}, without an interval: no difference is shown."
    if row.holds_zero:
        return f"{what} is {estimate(row)}: the interval holds 0; no difference is shown."
    better = row.encoder if row.value > 0 else row.minus
    return f"{what} is {estimate(row)}: the interval does not hold 0; {better} is better."


def headline(results: Results) -> list[str]:
    """What was found, in sentences that can be read aloud."""
    test = results.test
    rows = [results.get("auroc", MACRO, name) for name in results.encoders]
    values = [f"{estimate(row)} for {row.encoder}" for row in rows if row.value is not None]
    images = f"{_plural(test['n_images'], 'test image')} of {_plural(test['n_patients'], 'patient')}"
    n, fields = len(results.macro_fields), _plural(len(results.fields), "field")
    over = fields if n == len(results.fields) else f"{n} of {fields}"
    if values:
        sentences = [f"On {images}, macro AUROC over {over} is {_listed(values)}."]
    else:
        sentences = [f"On {images}, macro AUROC is not defined: no field has enough images of both kinds."]
    if results.kind == "classes":
        right = [f"{estimate(results.get('accuracy', ALL, name))} for {name}" for name in results.encoders]
        sentences.append(f"Accuracy over {len(results.fields)} classes is {_listed(right)}.")
    return sentences


def run_title(results: Results) -> str:
    """A run by its name, its first encoder and its data set: phantom: vit-nano/16 on phantom."""
    described = next(iter(results.encoders.values()))["encoder"]
    data = results.run.get("data", {}).get("dataset")
    return f"{results.task}: {described.get('architecture') or described['kind']}" + (f" on {data}" if data else "")


def duration(seconds: float) -> str:
    """41 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def interval_words(results: Results, *, seeds: bool = True) -> str:
    """How the intervals were made, and what ``seeds`` mean for them."""
    how = results.intervals
    words = (
        f"Intervals cover {100 * how['level']:g} %: {how['method']}, {how['resamples']:,} resamples of the "
        f"{how['over']} (seed {how['seed']}), since images of one patient are not independent. Differences are paired: "
        "both encoders see the same resamples of the same images."
    )
    if seeds and len(results.seeds) > 1:
        words += (
            f" Every value is the mean over the seeds {', '.join(map(str, results.seeds))}, and the interval is that "
            "of this mean over patients; the seeds themselves show what another seed would give."
        )
    return words


def summary_table(results: Results) -> str:
    """A row per field with its AUROC and 95 % interval for each encoder, the macro averages, the paired differences,
    what was left out and what to be wary of."""
    names = list(results.encoders)
    first = max(len(field) for field in [*results.fields, "balanced accuracy"]) + 3
    width = max(20, *(len(name) for name in names))

    def line(label: str, cells: list[str], counts: tuple[Any, Any] = ("", "")) -> str:
        numbers = "  ".join(f"{cell:>{width}s}" for cell in cells)
        return f"{label:{first}s} {counts[0]!s:>6s} {counts[1]!s:>6s}  {numbers}".rstrip()

    def cells(metric: str, field: str) -> list[str]:
        return [estimate(results.get(metric, field, name)) for name in names]

    head = line("test AUROC (95 % CI)", names, ("n+", "n-"))
    rule = "-" * len(head)
    lines = [head, rule]
    for field in results.fields:
        counts = results.test["n_present"][field], results.test["n_absent"][field]
        lines.append(line(field + (" *" if field in results.excluded else ""), cells("auroc", field), counts))
    lines.append(rule)
    lines += [line(f"macro {SHORT[metric]}", cells(metric, MACRO)) for metric in METRICS]
    if results.kind == "classes":
        lines += [line(NAMES[metric], cells(metric, ALL)) for metric in CLASS_METRICS]
    if len(results.seeds) > 1:
        seeds = {name: ", ".join(map(number, results.per_seed("auroc", MACRO, name))) for name in names}
        lines.append("macro AUROC of each seed: " + "; ".join(f"{name} {values}" for name, values in seeds.items()))
    for row in results.differences:
        if row.value is not None:
            shown = "" if not row.has_interval else ", the interval holds 0" if row.holds_zero else ", shown"
            lines.append(f"{row.encoder} - {row.minus}, {metric_name(row, SHORT)}: {estimate(row)}{shown}")
    lines.append(
        f"{results.test['n_images']} test images of {results.test['n_patients']} patients; intervals and differences: "
        f"{results.intervals['resamples']} resamples of the patients"
    )
    if results.excluded:
        reasons = "; ".join(f"{field} ({reason})" for field, reason in results.excluded.items())
        lines.append(f"* not in the macro averages: {reasons}")
    lines += [f"WARNING: {warning}" for warning in results.warnings]
    return "\n".join(lines)


def datasets_table(datasets: Iterable[Results]) -> str:
    """A row per data set with the macro AUROC and 95 % interval of each encoder on its test images alone."""
    lines: list[str] = []
    for one in datasets:
        names = list(one.encoders)
        if not lines:
            head = ["macro AUROC, each data set alone", "images", "fields", *names]
            lines = [
                "  ".join([f"{head[0]:32s}", *(f"{word:>6s}" for word in head[1:3]), *(f"{n:>20s}" for n in names)])
            ]
            lines.append("-" * len(lines[0]))
        cells = [f"{estimate(one.get('auroc', MACRO, name)):>20s}" for name in names]
        counts = (one.test["n_images"], len(one.macro_fields))
        lines.append("  ".join([f"{one.run['data']['dataset']:32s}", *(f"{n:>6d}" for n in counts), *cells]))
    return "\n".join(lines)


def _plural(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
