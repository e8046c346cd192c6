"""Docs of a bundle: README.md with the zoo's headings, the data licence, reliability curves."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vivid_monai.deploy.calibration import CalibratedModel
from vivid_monai.evaluation.figures import reliability_bins
from vivid_monai.evaluation.format import estimate
from vivid_monai.evaluation.results import MACRO
from vivid_monai.images.preprocess import Preprocess


def render(template: str, **values: Any) -> str:
    """The text of a template of this package."""
    loader = PackageLoader("vivid_monai.deploy")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals |= {"interval": estimate, "pair": _pair, "step": _step}
    return environment.get_template(template).render(**values)


def bundle_docs(
    model: CalibratedModel,
    metadata: Mapping[str, Any],
    tested: Sequence[Mapping[str, Any]],
    *,
    name: str,
    about: str,
    change: Mapping[str, Any] | None,
    data_license: str,
) -> dict[str, bytes]:
    """Content of README.md, data_license.txt and reliability.png.

    `tested` is of ``operating_points``, `change` of ``write_int8`` (None: nothing is in 8 bits), `about` the kind of
    image, as "chest X-ray". Without a licence, a text refers to the data's providers.
    """
    parts = {"train": model.train, "validation": model.validation, "test": model.test}
    text = render(
        "README.md.j2",
        m=metadata,
        r=model.results,
        name=name,
        about=about,
        architecture=model.classifier.encoder.architecture,
        parameters=f"{sum(one.numel() for one in model.classifier.parameters()):,}",
        dim=model.classifier.head.in_features,
        size=model.preprocess.size,
        fields=model.fields,
        preprocessing=describe_preprocess(model.preprocess),
        n={split: f"{len(part.ids):,}" for split, part in parts.items()}
        | {"patients": f"{len(set(model.test.patients)):,}"},
        tested=tested,
        change=change,
        auroc={field: model.results.get("auroc", field, model.name) for field in model.results.fields},
        macro=model.results.get("auroc", MACRO, model.name),
        beside=model.beside
        and (
            model.results.get("auroc", MACRO, model.beside),
            next(
                r for r in model.results.differences if (r.metric, r.field, r.minus) == ("auroc", MACRO, model.beside)
            ),
        ),
        answered=[one for one in model.calibrations if not one.unanswered],
        unanswered=[one for one in model.calibrations if one.unanswered],
        ood=model.ood,
        refused=model.ood.refused(),
        refused_test=int((~model.ood.accepts(model.thumbnails["test"])).sum()),
    )
    data_license = data_license or (
        f"The weights of this bundle were learned from: {metadata['data_source']}.\n\n"
        "No image of it is part of the bundle. The conditions under which these data may be used are those of their "
        "providers;\nwhoever trains on or publishes results from them has to follow these conditions.\n"
    )
    return {
        "README.md": text.encode(),
        "data_license.txt": data_license.encode(),
        "reliability.png": _reliability(model),
    }


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


def _reliability(model: CalibratedModel) -> bytes:
    probabilities, states = model.probabilities(model.test.x), model.test.states
    columns = 4
    rows = -(-len(model.fields) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, field in enumerate(model.fields):
        axes = figure.add_subplot(rows, columns, place + 1)
        counts, probability, present = reliability_bins(probabilities[None, :, place], states[:, place])
        filled = counts > 0
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axes.plot(probability[filled], present[filled], color="C0", linewidth=1)
        axes.scatter(probability[filled], present[filled], s=4 + counts[filled], color="C0", alpha=0.6)
        axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_title(f"{field} (n = {counts.sum()})", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.supxlabel("calibrated probability; the size of a point is its number of images", fontsize=8)
    figure.supylabel("share of test images present", fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    return content.getvalue()


def _pair(first: float | None, second: float | None) -> str:
    return " / ".join("–" if one is None else f"{one:.0%}" for one in (first, second))


def _step(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.3f} → {after:.3f}"
