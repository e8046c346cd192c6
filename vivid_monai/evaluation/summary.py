"""The last words of a run: what came out, where it lies, what to do next."""

from pathlib import Path

from vivid_monai.evaluation.comparison import Comparison, EncoderResult


def print_summary(comparison: Comparison, output_dir: Path, model_path: Path) -> None:
    """Print the table of :func:`summary_table`, the files of the run and the next steps."""
    print("\n" + summary_table(comparison))
    files = {
        "pretrained_vit.safetensors": "the encoder, with its preprocessing; no LLM, no optimiser state",
        "model.pt": f"encoder and head, also at {model_path}",
        "metrics.json": "these numbers, the command and the versions",
        "predictions.csv": "states and probabilities of every test image",
        "curves.csv, curves.png": "loss, validation AUROC and NLL over the steps",
        "config.json": "the resolved config",
    }
    print(f"\nIn {output_dir}:")
    for name, words in files.items():
        print(f"  {name:28s} {words}")
    print("\nNext: tensorboard --logdir " + str(output_dir / "tensorboard"))
    print("      your own images and labels: vivid prepare table --help, then data/table.json as in the README")


def summary_table(comparison: Comparison) -> str:
    """A plain-text table: a row per field, AUROC with 95 % intervals per encoder, the macro average, the difference."""
    names = list(comparison.encoders)
    width = max(len(field) for field in [*comparison.n_present, "macro average"]) + 2
    head = f"{'held-out AUROC (95 % CI)':{width}s} {'n+':>6s} {'n-':>6s}  " + "  ".join(
        f"{name:>20s}" for name in names
    )
    lines = [head, "-" * len(head)]
    for field in comparison.n_present:
        mark = "" if field in comparison.macro_fields else " *"
        cells = "  ".join(f"{_cell(comparison.encoders[name], field):>20s}" for name in names)
        lines.append(
            f"{field + mark:{width}s} {comparison.n_present[field]:6d} {comparison.n_absent[field]:6d}  {cells}"
        )
    macros = [(comparison.encoders[name].macro_auroc, comparison.encoders[name].macro_interval) for name in names]
    lines += [
        "-" * len(head),
        f"{'macro average':{width}s} {'':6s} {'':6s}  " + "  ".join(f"{_format(*m):>20s}" for m in macros),
    ]
    difference, interval = comparison.difference
    lines.append(
        f"{names[0]} - {names[1]}: {difference:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f}), paired bootstrap over "
        f"{comparison.n_patients} patients, {comparison.n_images} images"
    )
    if comparison.excluded:
        lines.append(
            f"* too few test records of one state, left out of the macro average: {', '.join(comparison.excluded)}"
        )
    for name in names:
        if comparison.encoders[name].untrained_fields:
            lines.append(
                f"{name}: no head (one class in training) for {', '.join(comparison.encoders[name].untrained_fields)}"
            )
    if comparison.skipped:
        lines.append(f"{len(comparison.skipped)} unreadable images left out; see metrics.json")
    return "\n".join(lines)


def _cell(result: EncoderResult, field: str) -> str:
    return _format(result.auroc[field], result.interval[field])


def _format(value: float | None, interval: tuple[float | None, float | None]) -> str:
    if value is None:
        return "-"
    low, high = interval
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f}-{high:.3f})"
