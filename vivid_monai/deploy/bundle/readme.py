"""The docs of a bundle: README.md in the zoo's headings, the conditions of the data, the reliability curves."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vivid_monai.deploy.bundle.onnx import Change
from vivid_monai.deploy.finished import ENCODER, Finished
from vivid_monai.deploy.performance import FieldPerformance
from vivid_monai.evaluation.figures import Bins
from vivid_monai.evaluation.results import MACRO, Row
from vivid_monai.images.preprocess import Preprocess
from vivid_monai.storage.files import whole_file


def write_docs(
    folder: Path,
    finished: Finished,
    metadata: dict[str, Any],
    tested: Sequence[FieldPerformance],
    *,
    change: Change | None = None,
    data_license: str = "",
) -> None:
    """Write docs/README.md, docs/data_license.txt and docs/reliability.png into the bundle."""
    docs = folder / "docs"
    environment = Environment(
        loader=PackageLoader("vivid_monai.deploy.bundle"), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.globals |= {"interval": _interval, "pair": _pair, "step": _step}
    text = environment.get_template("README.md.j2").render(
        m=metadata,
        r=finished.results,
        name=folder.name,
        vit=f"ViT-{finished.classifier.encoder.config['preset']}/{finished.classifier.encoder.config['patch_size']}",
        parameters=f"{sum(one.numel() for one in finished.classifier.parameters()):,}",
        dim=finished.classifier.head.in_features,
        size=finished.preprocess.size,
        fields=finished.fields,
        preprocessing=describe_preprocess(finished.preprocess),
        n={
            "train": f"{len(finished.train.ids):,}",
            "validation": f"{len(finished.validation.ids):,}",
            "test": f"{len(finished.test.ids):,}",
            "patients": f"{len(set(finished.test.patients)):,}",
        },
        tested=tested,
        change=change,
        auroc={field: finished.results.get("auroc", field, ENCODER) for field in finished.results.fields},
        macro=finished.results.get("auroc", MACRO, ENCODER),
        answered=[one for one in finished.calibrations if not one.unanswered],
        assessment=finished.assessment,
        refused=finished.assessment.refused(),
        refused_test=int((~finished.assessment.accepts(finished.appearance(finished.test))).sum()),
        unanswered=[asdict(one) for one in finished.calibrations if one.unanswered],
    )
    with whole_file(docs / "README.md") as part:
        part.write_text(text, encoding="utf-8")
    with whole_file(docs / "data_license.txt") as part:
        part.write_text(data_license or _default_license(metadata["data_source"]), encoding="utf-8")
    with whole_file(docs / "reliability.png") as part:
        _reliability(finished, part)


def describe_preprocess(preprocess: Preprocess) -> str:
    """The preprocessing in one sentence."""
    size, to = preprocess.size, preprocess.resize_to
    how = {
        "pad": f"the whole image is fitted into {size} x {size} pixels and filled up with black",
        "crop": f"the short side becomes {to} pixels and the middle {size} x {size} are cut out",
        "stretch": f"both sides become {to} pixels"
        + ("" if to == size else f" and the middle {size} x {size} are cut out"),
    }[preprocess.resize]
    mean, std = (", ".join(f"{number:g}" for number in np.atleast_1d(one)) for one in (preprocess.mean, preprocess.std))
    return (
        f"{how[0].upper()}{how[1:]} ({preprocess.interpolation}, antialiased), rounded to 256 grey levels, scaled to "
        f"[0, 1], less {mean}, divided by {std}."
    )


def _reliability(finished: Finished, path: Path) -> None:
    probabilities, states = finished.probabilities(finished.test), finished.test.states
    columns = 4
    rows = -(-len(finished.fields) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, field in enumerate(finished.fields):
        axes = figure.add_subplot(rows, columns, place + 1)
        bins = Bins(probabilities[None, :, place], states[:, place])
        filled = bins.counts > 0
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axes.plot(bins.probability[filled], bins.present[filled], color="C0", linewidth=1)
        axes.scatter(bins.probability[filled], bins.present[filled], s=4 + bins.counts[filled], color="C0", alpha=0.6)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_title(f"{field} (n = {bins.counts.sum()})", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("calibrated probability; the size of a point is its number of images", fontsize=8)
    figure.supylabel("share of test images present", fontsize=8)
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})


def _interval(estimate: Row) -> str:
    if estimate.value is None:
        return "–"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f} (no interval)"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _pair(first: float | None, second: float | None) -> str:
    return " / ".join("–" if one is None else f"{one:.0%}" for one in (first, second))


def _step(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.3f} → {after:.3f}"


def _default_license(source: str) -> str:
    return (
        f"The weights of this bundle were learned from: {source}.\n\n"
        "No image of it is part of the bundle. The conditions under which these data may be used are those of their "
        "providers;\nwhoever trains on or publishes results from them has to follow these conditions.\n"
    )
