"""What a run shows and records of itself: progress, images left out, a table and a picture of its curves."""

import csv
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from vivid_monai.logs import progress
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import SkipReport

logger = logging.getLogger(__name__)


class Progress:
    """Trainer handler: one bar over all steps with the loss and its terms, and one line per validation.

    Main process only. (Ignite's ProgressBar draws a line for every step into a log file.)

    Args:
        validator: the evaluator whose metrics are shown after each validation.
        title: what the bar says.
    """

    def __init__(self, *, validator: Engine, title: str = "pretraining") -> None:
        self._validator, self._title = validator, title
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
            engine.add_event_handler(Events.COMPLETED, lambda: self._bar.close())
            self._validator.add_event_handler(Events.COMPLETED, self._show, engine)

    def _open(self, engine: Engine) -> None:
        state = engine.state
        steps = (state.max_epochs or 0) * (state.epoch_length or 0)
        self._bar = progress(total=steps, initial=state.iteration, desc=self._title, unit="step")

    def _step(self, engine: Engine) -> None:
        shown = {name: f"{value:.3f}" for name, value in training_numbers(engine).items() if name != "grad_norm"}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def _show(self, validator: Engine, engine: Engine) -> None:
        measured = {name: value for name, value in numbers(validator.state.metrics).items() if not PER_FIELD(name)}
        shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        logger.info("step %d: validation %s", engine.state.iteration, shown)


PER_FIELD = re.compile(r"(^|/)(auroc|ap)/").search


def training_numbers(engine: Engine) -> dict[str, float]:
    """Loss, terms and gradient norm of the trainer's last step, without the counts."""
    return {name: value for name, value in engine.state.output[0].items() if not name.startswith("count/")}  # type: ignore[index, call-overload]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    return {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))}


class SkipList:
    """Handler that lists images which could not be read in ``path`` (CSV), each once, and says how many they are.

    Args:
        path: the list; written only when there is something to list. Other processes than the first add their rank.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._report = SkipReport()

    def attach(self, engine: Engine) -> None:
        if rank := idist.get_rank():
            self._path = self._path.with_stem(f"{self._path.stem}_rank{rank}")
        engine.add_event_handler(
            Events.ITERATION_COMPLETED,
            lambda: self._report.add(engine.state.batch["skipped"]),  # type: ignore[index, call-overload]
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._tell)

    def _write(self) -> None:
        if len(self._report):
            self._report.write(self._path)

    def _tell(self) -> None:
        if count := len(self._report):
            logger.warning("%d images could not be read and were left out; they are listed in %s", count, self._path)


class History:
    """Trainer handler that writes ``curves.csv`` and ``curves.png`` at the end of every epoch.

    A row holds the step, the means of the training numbers since the row before, the learning rates and, where this
    epoch was validated, every number the validator measured; there is one of step 0 where a handler before this one has
    validated then. The rows travel with the checkpoint, so a resumed run has one unbroken table.

    Args:
        directory: where the two files go.
        validator: the evaluator whose ``state.metrics`` are recorded; attach this handler after the validation handler.
        optimizer: whose learning rates are recorded, by the ``name`` of its groups.
    """

    def __init__(self, directory: str | Path, *, validator: Engine, optimizer: Any) -> None:
        self.directory = Path(directory)
        self._validator, self._optimizer = validator, optimizer
        self.rows: list[dict[str, float]] = []
        self._measured: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        self._validator.add_event_handler(Events.COMPLETED, self._measure)
        engine.add_event_handler(Events.STARTED, self._first)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows], "sums": dict(self._sums), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._sums, self._steps = dict(state["sums"]), state["steps"]

    def _add(self, engine: Engine) -> None:
        for name, value in training_numbers(engine).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps += 1

    def _measure(self, validator: Engine) -> None:
        self._measured = numbers(validator.state.metrics)

    def _first(self, engine: Engine) -> None:
        if self._measured:
            self._row(engine)

    def _row(self, engine: Engine) -> None:
        rates = {f"lr/{g.get('name', i)}": float(g["lr"]) for i, g in enumerate(self._optimizer.param_groups)}
        means = {f"train/{name}": total / max(self._steps, 1) for name, total in self._sums.items()}
        measured = {f"val/{name}": value for name, value in self._measured.items()}
        self.rows.append({"step": engine.state.iteration, **means, **rates, **measured})
        self._sums, self._steps, self._measured = {}, 0, {}
        if idist.get_rank() == 0:
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            with whole_file(self.directory / "curves.csv") as part, part.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)
            _draw_curves(self.rows, self.directory / "curves.png")


def _draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Four small plots over steps: training loss, validation AUROC, the image's part in the NLL, the SPD penalty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "training loss (nats)": r"train/(?!.*(penalty|grad_norm)$)",
        "validation macro AUROC": r"val/.*macro_auroc(/|$)",
        "validation state NLL (nats)": r"val/.*nll_(own|shuffled|blank)$",
        "SPD overlap (mean |cos|)": r"train/.*penalty$",
    }
    names = dict.fromkeys(name for row in rows for name in row)
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, pattern) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name in filter(re.compile(pattern).match, names):
            points = [(row["step"], row[name]) for row in rows if not math.isnan(row.get(name, math.nan))]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel="step", visible=bool(axis.lines))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
