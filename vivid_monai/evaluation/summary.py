"""Results as plain text, for the terminal."""

from vivid_monai.evaluation.results import Estimate, Results

MACRO = {"auroc": "macro AUROC", "ap": "macro AP", "f1": "macro F1", "brier": "macro Brier", "ece": "macro ECE"}


def summary_table(results: Results) -> str:
    """A row per field with its AUROC and 95 % interval for each encoder, the macro averages, the paired differences,
    what was left out and what to be wary of."""
    names = list(results.encoders)
    first = max(len(field) for field in [*results.fields, "balanced accuracy"]) + 3
    width = max(20, *(len(name) for name in names))
    title = "test AUROC (95 % CI)"
    head = f"{title:{first}s} {'n+':>6s} {'n-':>6s}  " + "  ".join(f"{name:>{width}s}" for name in names)
    rule = "-" * len(head)

    def row(label: str, cells: list[Estimate | None], counts: tuple[str, str] = ("", "")) -> str:
        numbers = "  ".join(f"{_format(cell):>{width}s}" for cell in cells)
        return f"{label:{first}s} {counts[0]:>6s} {counts[1]:>6s}  {numbers}".rstrip()

    lines = [head, rule]
    for field in results.fields:
        counts = str(results.test["n_present"][field]), str(results.test["n_absent"][field])
        cells: list[Estimate | None] = [results.encoders[name].fields[field]["auroc"] for name in names]
        lines.append(row(field + (" *" if field in results.excluded else ""), cells, counts))
    lines.append(rule)
    lines += [row(words, [results.encoders[name].macro[key] for name in names]) for key, words in MACRO.items()]
    if results.kind == "classes":
        for key in ("accuracy", "balanced_accuracy"):
            cells = [getattr(results.encoders[name].classes, key) for name in names]
            lines.append(row(key.replace("_", " "), cells))
    if len(results.seeds) > 1:
        lines.append("macro AUROC of each seed: " + "; ".join(_seeds(results, name) for name in names))
    lines += [
        f"{one.first} - {one.second}, {MACRO.get(one.metric, one.metric)}: {_signed(one.estimate)}"
        for one in results.differences
        if one.estimate.value is not None
    ]
    lines.append(
        f"{results.test['n_images']} test images of {results.test['n_patients']} patients; intervals and differences: "
        f"{results.intervals['resamples']} resamples of the patients"
    )
    if results.excluded:
        told = "; ".join(f"{field} ({reason})" for field, reason in results.excluded.items())
        lines.append(f"* not in the macro averages: {told}")
    lines += [f"WARNING: {warning}" for warning in results.warnings]
    return "\n".join(lines)


def _seeds(results: Results, name: str) -> str:
    values = results.encoders[name].macro["auroc"].per_seed
    return f"{name} {', '.join('-' if value is None else f'{value:.3f}' for value in values)}"


def _format(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def _signed(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f}"
    shown = "the interval holds 0" if estimate.holds_zero else "shown"
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f}), {shown}"
