"""What a run shows and records of itself: progress, images left out, a table and a picture of its curves."""

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from vivid_monai.engines.speed import Pace, product_rate
from vivid_monai.logs import progress
from vivid_monai.storage.curves import CURVES, PICTURE, TIMES, panels, write_rows
from vivid_monai.storage.files import whole_file
from vivid_monai.storage.skipped import SkipReport

logger = logging.getLogger(__name__)


class Progress:
    """Trainer handler: one bar over all steps with images per second, MFU, the loss and its terms; one line per
    validation, and one with the speed at the end.

    Images per second are those of the epoch so far, validation apart. MFU is what a step computes, as
    :class:`~vivid_monai.engines.step.PretrainStep` counts it, as a share of what a matrix product makes in the same
    process; there is none where nothing was counted.

    Main process only. (Ignite's ProgressBar draws a line for every step into a log file.)

    Args:
        validator: the evaluator whose metrics are shown after each validation.
        title: what the bar says.
    """

    def __init__(self, *, validator: Engine, title: str = "pretraining") -> None:
        self._validator, self._title = validator, title
        self._bar: Any = None
        self._epoch, self._run, self._rate = Pace(), Pace(), 0.0

    def attach(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._open)
            engine.add_event_handler(Events.EPOCH_STARTED, self._epoch.restart)
            for pace in (self._epoch, self._run):
                pace.attach(engine)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
            engine.add_event_handler(Events.COMPLETED, self._close)
            self._validator.add_event_handler(Events.COMPLETED, self._show, engine)

    def _open(self, engine: Any) -> None:
        state = engine.state
        if hasattr(engine, "amp"):  # MONAI's; measured before the clock of the first step runs
            dtype = engine.amp_kwargs.get("dtype", torch.bfloat16) if engine.amp else torch.float32
            self._rate = product_rate(state.device, dtype)
        steps = (state.max_epochs or 0) * (state.epoch_length or 0)
        self._bar = progress(total=steps, initial=state.iteration, desc=self._title, unit="step")

    def _step(self, engine: Engine) -> None:
        shown = {name: f"{value:.3f}" for name, value in training_numbers(engine).items() if name != "grad_norm"}
        if (share := self._share(engine, self._epoch.images_per_s)) is not None:
            shown = {"MFU": f"{share:.1%}", **shown}
        self._bar.set_postfix({"images/s": f"{self._epoch.images_per_s:.3g}", **shown}, refresh=False)
        self._bar.update()

    def _share(self, engine: Any, images_per_s: float) -> float | None:
        flop = getattr(engine.state, "flop_per_image", None)
        return flop * images_per_s / idist.get_world_size() / self._rate if flop and self._rate else None

    def _close(self, engine: Engine) -> None:
        self._bar.close()
        run = self._run
        share = self._share(engine, run.images_per_s)
        mfu = f", MFU {share:.1%} of {self._rate / 1e9:,.0f} GFLOP/s" if share is not None else ""
        logger.info("%d images in %.1f s: %.4g images/s%s", run.images, run.seconds, run.images_per_s, mfu)

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
    """Trainer handler that writes ``curves.csv``, ``times.csv`` and ``progress.png`` at the end of every epoch.

    A row of curves.csv holds the step, the means of the training numbers since the row before, the learning rates and,
    where this epoch was validated, every number the validator measured; there is one of step 0 where a handler before
    this one has validated then. One of times.csv, which differs from run to run as curves.csv does not, holds the step,
    the seconds of the run so far, and the images per second of all processes since the row before, validation apart.
    The rows travel with the checkpoint, so a resumed run has unbroken tables; the time between its parts does not
    count.

    Args:
        directory: where the files go.
        validator: the evaluator whose ``state.metrics`` are recorded; attach this handler after the validation handler.
        optimizer: whose learning rates are recorded, by the ``name`` of its groups.
    """

    def __init__(self, directory: str | Path, *, validator: Engine, optimizer: Any) -> None:
        self.directory = Path(directory)
        self._validator, self._optimizer = validator, optimizer
        self.rows: list[dict[str, float]] = []
        self.times: list[dict[str, float]] = []
        self._pace, self._started, self._before = Pace(), time.perf_counter(), 0.0
        self._measured: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps = 0

    def attach(self, engine: Engine) -> None:
        self._validator.add_event_handler(Events.COMPLETED, self._measure)
        engine.add_event_handler(Events.STARTED, self._first)
        engine.add_event_handler(Events.STARTED, self._start)
        self._pace.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._row)

    def state_dict(self) -> dict[str, Any]:
        rows, times = ([dict(row) for row in table] for table in (self.rows, self.times))
        state = {"rows": rows, "sums": dict(self._sums), "steps": self._steps}
        return {**state, "times": {"rows": times, "seconds": self._seconds()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self._sums, self._steps = dict(state["sums"]), state["steps"]
        times = state.get("times", {"rows": [], "seconds": 0.0})  # checkpoints of before have none
        self.times, self._before = [dict(row) for row in times["rows"]], times["seconds"]
        self._started = time.perf_counter()

    def _start(self) -> None:
        self._started = time.perf_counter()

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

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
        if self._pace.images:
            speed = {"seconds": round(self._seconds(), 2), "images_per_s": round(self._pace.images_per_s, 2)}
            self.times.append({"step": engine.state.iteration, **speed})
            self._pace.restart()
        if idist.get_rank() == 0:
            write_rows(self.directory / CURVES, self.rows)
            write_rows(self.directory / TIMES, self.times)
            _draw([*self.rows, *self.times], self.directory / PICTURE)


def _draw(rows: list[dict[str, float]], path: Path) -> None:
    """A small plot over steps for each panel that has anything to show."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(rows)
    figure = Figure(figsize=(15, 3.3 * -(-len(shown) // 3)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, lines) in enumerate(shown.items(), 1):
        axis = figure.add_subplot(-(-len(shown) // 3), 3, number)
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with whole_file(path) as part:
        figure.savefig(part, dpi=110, format="png")
