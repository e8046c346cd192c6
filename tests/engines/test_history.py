"""What a run records of itself: a row per epoch, with the validation of that epoch and of no other."""

import csv
from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events

from vivid_monai.engines.history import History, Progress


def run_with(tmp_path, *, val_interval=1, epochs=5):
    """A trainer whose validator measures the number of validations so far; returns the rows of its table."""
    validator = Engine(lambda engine, batch: None)
    validator.add_event_handler(
        Events.COMPLETED,
        lambda engine: engine.state.metrics.update(
            macro_auroc=engine.state.metrics.get("macro_auroc", 0) + 0.25, x="y"
        ),
    )
    trainer = Engine(lambda engine, batch: [{"loss": float(batch), "grad_norm": 1.0, "count/nll": 3.0}])
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=val_interval), lambda: validator.run([0]))
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1, "name": "vit"}])
    for handler in (Progress(validator=validator), History(tmp_path, validator=validator, optimizer=optimizer)):
        handler.attach(trainer)
    trainer.run([1, 2], max_epochs=epochs)
    with (tmp_path / "curves.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_per_epoch_with_means_and_rates(tmp_path, caplog):
    caplog.set_level("INFO", logger="vivid_monai")
    rows = run_with(tmp_path, epochs=2)
    assert list(rows[0]) == ["step", "train/loss", "train/grad_norm", "lr/vit", "val/macro_auroc"]
    assert [(row["step"], row["train/loss"], row["lr/vit"]) for row in rows] == [
        ("2", "1.5", "0.1"),
        ("4", "1.5", "0.1"),
    ]
    assert "step 4: validation macro_auroc 0.500" in caplog.text
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_an_epoch_without_validation_records_none(tmp_path):
    rows = run_with(tmp_path, val_interval=2)
    assert [row["val/macro_auroc"] for row in rows] == ["", "0.25", "", "0.5", ""]


def test_rows_and_means_travel_with_the_checkpoint(tmp_path):
    validator = Engine(lambda engine, batch: None)
    optimizer = SimpleNamespace(param_groups=[])
    first, second = (History(tmp_path, validator=validator, optimizer=optimizer) for _ in range(2))
    first.rows = [{"step": 2.0, "train/loss": 1.5}]
    first._sums, first._steps = {"loss": 3.0}, 2
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
