"""What a run records of itself: a table and a picture of its curves."""

import csv
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import SkipReport


class Progress:
    """Trainer handler: one bar over all steps with the loss, and one line per validation. Main process only.

    Args:
        validator: the evaluator whose numbers are told after each validation; attach this handler after the validation
            handler.
    """

    def __init__(self, *, validator: Engine) -> None:
        self._validator = validator
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)
            engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        steps = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        interval = 0.2 if sys.stderr.isatty() else 15.0  # a log file wants few lines
        self._bar = tqdm(
            total=steps, initial=engine.state.iteration, desc="pretraining", unit="step", mininterval=interval
        )

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            output = engine.state.output[0]  # type: ignore[index]
            self._bar.set_postfix({k: f"{output[k]:.3f}" for k in ("loss", "penalty")}, refresh=False)  # type: ignore[index, call-overload]
            self._bar.update()

    def _tell(self, engine: Engine) -> None:
        measured = self._validator.state.metrics
        if "macro_auroc" in measured:
            tqdm.write(
                f"step {engine.state.iteration}: validation macro AUROC {measured['macro_auroc']:.3f}, state NLL "
                f"{measured['nll_own']:.3f} (shuffled images {measured['nll_shuffled']:.3f}, blank image "
                f"{measured['nll_blank']:.3f})",
                file=sys.stderr,
            )

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()


class SkipList:
    """Handler that lists images which could not be read in ``path`` (CSV), each once, and counts them on stderr.

    Args:
        path: the list; written only when there is something to list. Other processes than the first add their rank.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._report = SkipReport()

    def attach(self, engine: Engine) -> None:
        rank = idist.get_rank()
        path = self._path if rank == 0 else self._path.with_stem(f"{self._path.stem}_rank{rank}")
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda _: self._report.write(path) if len(self._report) else None
        )
        engine.add_event_handler(Events.COMPLETED, lambda _: self._tell(path))

    def _collect(self, engine: Engine) -> None:
        self._report.add(engine.state.batch["skipped"])  # type: ignore[index, call-overload]

    def _tell(self, path: Path) -> None:
        if len(self._report):
            print(
                f"{len(self._report)} images could not be read and were left out; they are listed in {path}",
                file=sys.stderr,
            )


TRAIN = ("loss", "nll", "penalty", "grad_norm")


class History:
    """Trainer handler that writes ``curves.csv`` and ``curves.png`` at the end of every epoch.

    A row holds the step, the means of the training numbers since the row before, the learning rates and every scalar
    the validator measured. The rows travel with the checkpoint, so a resumed run has one unbroken table.

    Args:
        directory: where the two files go.
        validator: the evaluator whose ``state.metrics`` are recorded; attach this handler after the validation handler.
        optimizer: whose learning rates are recorded, by the ``name`` of its groups.
    """

    def __init__(self, directory: str | Path, *, validator: Engine, optimizer: Any) -> None:
        self.directory = Path(directory)
        self._validator, self._optimizer = validator, optimizer
        self.rows: list[dict[str, float]] = []
        self._sums: dict[str, float] = dict.fromkeys(TRAIN, 0.0)
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._row)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows], "sums": dict(self._sums), "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._sums, self._steps = dict(state["sums"]), state["steps"]

    def _add(self, engine: Engine) -> None:
        for name in TRAIN:
            self._sums[name] += engine.state.output[0][name]  # type: ignore[index, call-overload]
        self._steps += 1

    def _row(self, engine: Engine) -> None:
        row: dict[str, float] = {"step": engine.state.iteration}
        row |= {f"train/{name}": total / max(self._steps, 1) for name, total in self._sums.items()}
        row |= {
            f"lr/{group.get('name', i)}": float(group["lr"]) for i, group in enumerate(self._optimizer.param_groups)
        }
        row |= {f"val/{k}": float(v) for k, v in self._validator.state.metrics.items() if isinstance(v, (int, float))}
        self.rows.append(row)
        self._sums, self._steps = dict.fromkeys(TRAIN, 0.0), 0
        if idist.get_rank() == 0:
            self.write()

    def write(self) -> None:
        """Write both files, whole."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        with whole_file(self.directory / "curves.csv") as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        draw_curves(self.rows, self.directory / "curves.png")


def draw_curves(rows: list[dict[str, float]], path: Path) -> None:
    """Four small plots over steps: training loss, validation AUROC, the image's part in the NLL, the SPD penalty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {
        "training loss (nats)": ["train/loss", "train/nll"],
        "validation macro AUROC": ["val/macro_auroc"],
        "validation state NLL (nats)": ["val/nll_own", "val/nll_shuffled", "val/nll_blank"],
        "SPD overlap (mean |cos|)": ["train/penalty"],
    }
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, keys) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if not math.isnan(row.get(key, math.nan))]
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=key)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
