"""What a reader of a result must be told before believing it."""

from collections import defaultdict

from vivid_monai.evaluation.results import Results

FEW_PATIENTS = 50


def warnings_of(results: Results) -> list[str]:
    """One sentence for each thing that is wrong or doubtful: an AUROC surely under chance or without an interval, heads
    that could not be fitted, fields without a threshold, few patients, fields left out of the macro averages, images
    that could not be read."""
    told, shared = [], defaultdict[str, list[str]](list)
    for name, encoder in results.encoders.items():
        for field, metrics in encoder.fields.items():
            auroc = metrics["auroc"]
            if auroc.value is not None and auroc.high is not None and auroc.high < 0.5:
                told.append(
                    f"{name}: AUROC of {field} is under chance, {auroc.value:.3f} ({auroc.low:.3f} to "
                    f"{auroc.high:.3f}): look for swapped labels, or for training images unlike the test images"
                )
        if sure := [field for field in results.macro_fields if encoder.fields[field]["auroc"].low is None]:
            shared[
                f"no interval for the AUROC of {', '.join(sure)}: perfectly separated, or one state in fewer "
                "than two patients; resampling cannot tell what more patients would show"
            ].append(name)
        if no_threshold := [field for field, thresholds in encoder.thresholds.items() if None in thresholds]:
            shared[
                f"no F1 for {', '.join(no_threshold)}: the validation images have one state only, which gives no "
                "threshold"
            ].append(name)
        if encoder.untrained_fields:
            shared[
                f"no head for {', '.join(encoder.untrained_fields)}: the training images have one state only"
            ].append(name)
        for seed, probe in zip(results.seeds, encoder.probes, strict=False):
            for warning in probe.get("warnings", ()):
                fields = ", ".join(results.fields[column] for column in warning["columns"])
                told.append(f"{name}, seed {seed}: {fields} {warning['message']}")
    for words, names in shared.items():
        everyone = len(names) == len(results.encoders) > 1
        told.append(f"{'every encoder' if everyone else ', '.join(names)}: {words}")
    if results.test["n_patients"] < FEW_PATIENTS:
        told.append(f"only {results.test['n_patients']} test patients: every number here may change with the next ones")
    if results.excluded:
        told.append(f"macro averages over {len(results.macro_fields)} of the {len(results.fields)} fields asked for")
    if results.skipped:
        told.append(f"{len(results.skipped)} images could not be read and are left out, listed in skipped.csv")
    return told
