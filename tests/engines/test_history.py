"""What a run records of itself: a row per epoch, with the validation of that epoch and of no other."""

import csv
import math
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events

from vivid_monai.engines.history import History, Progress
from vivid_monai.storage.curves import panels, read_rows


def run_with(tmp_path, *, val_interval=1, epochs=5, before=lambda trainer: None):
    """A trainer whose validator measures the number of validations so far; returns the rows of its table."""
    validator = Engine(lambda engine, batch: None)
    validator.add_event_handler(
        Events.COMPLETED,
        lambda engine: engine.state.metrics.update(
            macro_auroc=engine.state.metrics.get("macro_auroc", 0) + 0.25, x="y"
        ),
    )
    trainer = Engine(lambda engine, batch: [{"loss": batch["loss"], "grad_norm": 1.0, "count/nll": 3.0}])
    trainer.add_event_handler(Events.EPOCH_COMPLETED(every=val_interval), lambda: validator.run([0]))
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.1, "name": "vit"}])
    for handler in (Progress(validator=validator), History(tmp_path, validator=validator, optimizer=optimizer)):
        handler.attach(trainer)
    before(trainer)
    trainer.run([{"loss": loss, "image": torch.zeros(6)} for loss in (1.0, 2.0)], max_epochs=epochs)
    with (tmp_path / "curves.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_a_row_per_epoch_with_means_and_rates(tmp_path, caplog):
    caplog.set_level("INFO", logger="vivid_monai")
    rows = run_with(tmp_path, epochs=2)
    assert list(rows[0]) == ["step", "train/loss", "train/grad_norm", "lr/vit", "val/macro_auroc"]
    assert [(row["step"], row["train/loss"], row["lr/vit"]) for row in rows] == [
        ("2", "1.5", "0.1"),
        ("4", "1.5", "0.1"),
    ]
    assert "step 4: validation macro_auroc 0.500" in caplog.text
    assert (tmp_path / "progress.png").stat().st_size > 5000


def test_an_epoch_without_validation_records_none(tmp_path):
    rows = run_with(tmp_path, val_interval=2)
    assert [row["val/macro_auroc"] for row in rows] == ["", "0.25", "", "0.5", ""]


def test_rows_and_means_travel_with_the_checkpoint(tmp_path):
    validator = Engine(lambda engine, batch: None)
    optimizer = SimpleNamespace(param_groups=[])
    first, second = (History(tmp_path, validator=validator, optimizer=optimizer) for _ in range(2))
    first.rows, first.times = [{"step": 2.0, "train/loss": 1.5}], [{"step": 2, "seconds": 3.0, "images_per_s": 4.0}]
    first._sums, first._steps = {"loss": 3.0}, 2
    second.load_state_dict(first.state_dict())
    one, other = first.state_dict(), second.state_dict()
    assert 0 <= one.pop("times")["seconds"] < 60
    assert other.pop("times")["rows"] == first.times == second.times
    assert one == other
    second.load_state_dict(one)  # of a checkpoint without times
    assert second.times == []


def test_times_are_those_of_the_steps_and_of_the_run(tmp_path, clock, caplog):
    """Steps of 2 s with 6 images each; 10 s of validation an epoch count for the run and not for the speed."""
    caplog.set_level("INFO", logger="vivid_monai")

    def validated(trainer):
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda engine: clock.__setitem__(0, clock[0] + 2))
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: clock.__setitem__(0, clock[0] + 10))

    run_with(tmp_path, epochs=3, before=validated)
    assert read_rows(tmp_path / "times.csv") == [
        {"step": 2, "seconds": 4, "images_per_s": 3},
        {"step": 4, "seconds": 18, "images_per_s": 3},
        {"step": 6, "seconds": 32, "images_per_s": 3},
    ]
    assert "36 images in 12.0 s: 3 images/s" in caplog.text
    assert "images_per_s" not in (tmp_path / "curves.csv").read_text()


def test_the_panels_are_what_is_there(tmp_path):
    rows = [
        {"step": 1, "train/loss": 2.0, "train/penalty": 0.1, "lr/vit": 0.1, "val/macro_auroc": math.nan},
        {"step": 2, "train/loss": 1.0, "train/penalty": 0.2, "lr/vit": 0.2, "val/macro_auroc": 0.7},
    ]
    shown = panels([*rows, {"step": 2, "seconds": 9.0, "images_per_s": 5.0}])
    assert {title: list(lines) for title, lines in shown.items()} == {
        "training loss (nats)": ["train/loss"],
        "validation macro AUROC": ["val/macro_auroc"],
        "SPD overlap (mean |cos|)": ["train/penalty"],
        "learning rate": ["lr/vit"],
        "images per second": ["images_per_s"],
    }
    assert shown["validation macro AUROC"]["val/macro_auroc"] == [(2, 0.7)]
