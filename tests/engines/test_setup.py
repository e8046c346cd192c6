"""Set-up of a run: errors and messages for the user, processes with unequally many batches, indices evenly spread."""

import logging
import sys

import pytest
import torch

from vivid_monai.engines.setup import InStep, evenly, setup
from vivid_monai.engines.step import ValidationStep
from vivid_monai.errors import VividError, find_cause, show_errors_plainly
from vivid_monai.logs import show_messages

from .test_step import make_batch, make_engine, make_pretrainer


def wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        return outer


def test_the_outermost_user_error_is_found():
    assert str(find_cause(wrapped(VividError("row 7")))) == "row 7"
    assert find_cause(wrapped(KeyError("row 7"))) is None
    assert find_cause(None) is None


def test_user_errors_are_one_line_and_others_keep_their_traceback(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda *details: seen.append(details))
    show_errors_plainly()
    error = wrapped(VividError("row 7: mend it"))
    sys.excepthook(type(error), error, None)
    assert capsys.readouterr().err.strip() == "vivid: row 7: mend it"
    assert not seen
    disk = wrapped(PermissionError(13, "Permission denied", "runs"))
    sys.excepthook(type(disk), disk, None)
    assert capsys.readouterr().err.strip() == "vivid: [Errno 13] Permission denied: 'runs'"
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err.strip().startswith("vivid: interrupted")
    meanwhile = KeyboardInterrupt()
    meanwhile.__context__ = FileNotFoundError(2, "No such file", "entry.json")  # that the program was dealing with
    sys.excepthook(KeyboardInterrupt, meanwhile, None)
    assert capsys.readouterr().err.strip().startswith("vivid: interrupted")
    assert not seen
    other = wrapped(KeyError("x"))
    sys.excepthook(type(other), other, None)
    assert len(seen) == 1


def test_several_processes_need_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(VividError, match="torchrun"):
        setup(seed=0, distributed=True)


def test_messages_are_plain_lines_on_stderr_once(capsys):
    for _ in range(2):
        show_messages()
    logging.getLogger("vivid_monai.engines.run").info("step 3: saved")
    logging.getLogger("vivid_monai.engines.run").debug("unseen")
    assert capsys.readouterr().err == "step 3: saved\n"


@pytest.mark.parametrize(
    ("datasets", "most", "expected"),
    [
        ("aaa", 5, [0, 1, 2]),
        ("aaaa", 4, [0, 1, 2, 3]),
        ("a" * 10, 3, [0, 3, 6]),
        ("a" * 10 + "bb", 3, [0, 3, 6, 10, 11]),
        ("abababab", 2, [0, 1, 4, 5]),
        ("", 3, []),
    ],
)
def test_images_of_each_data_set_are_spread_evenly(datasets, most, expected):
    assert evenly(list(datasets), most) == expected


def padded(loader: list[dict], most: int, monkeypatch: pytest.MonkeyPatch) -> InStep:
    monkeypatch.setattr("vivid_monai.engines.setup.idist.all_reduce", lambda own, how: max(own, most))
    return InStep(loader)  # type: ignore[arg-type]


def test_alone_it_is_the_loader():
    loader = [make_batch(seed=1), make_batch(seed=2)]
    batches = InStep(loader)
    assert len(batches) == 2
    assert all(one is other for one, other in zip(batches, loader, strict=True))


def test_a_process_with_fewer_batches_repeats_its_last(monkeypatch):
    loader = [make_batch(seed=1), make_batch(seed=2) | {"skipped": ["a file"]}]
    batches = list(padded(loader, 4, monkeypatch))
    assert len(batches) == len(padded(loader, 4, monkeypatch)) == 4
    assert [batch.get("padding", False) for batch in batches] == [False, False, True, True]
    assert all(batch["image"] is loader[1]["image"] for batch in batches[1:])
    assert [len(batch["skipped"]) for batch in batches] == [0, 1, 0, 0]


def test_padding_runs_the_network_and_counts_for_nothing(monkeypatch):
    network = make_pretrainer()
    runs = []
    network.encoder.register_forward_hook(lambda *_: runs.append(1))
    step = ValidationStep()
    outputs = [step(make_engine(network), batch)["states"] for batch in padded([make_batch()], 2, monkeypatch)]
    assert len(runs) == 4
    assert [len(output["states"]) for output in outputs] == [len(output["log_probs"]) for output in outputs] == [6, 0]
    torch.testing.assert_close(outputs[0]["blank"]["log_probs"], outputs[1]["blank"]["log_probs"])


def test_a_process_without_a_batch_is_told(monkeypatch):
    with pytest.raises(VividError, match="no validation image"):
        next(iter(padded([], 1, monkeypatch)))
