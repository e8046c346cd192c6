"""What a run tells while it runs: a bar over its steps, a line per validation, the images it had to leave out."""

import sys
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from tqdm import tqdm

from vivid_monai.data.skipped import SkipReport


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
