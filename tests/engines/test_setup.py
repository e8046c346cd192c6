"""Errors for the user are found however deep the bundle wraps them, and others are left alone."""

import sys

import pytest

from vivid_monai.engines.setup import find_cause, setup, show_errors_plainly
from vivid_monai.errors import VividError


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
    other = wrapped(KeyError("x"))
    sys.excepthook(type(other), other, None)
    assert len(seen) == 1


def test_several_processes_need_torchrun(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(VividError, match="torchrun"):
        setup(seed=0, distributed=True)
