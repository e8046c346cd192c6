"""Fixtures shared by the suite."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vivid_monai.logs import show_messages

if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)  # the workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"  # and so do the processes they start


def _declare_torchvision_operators() -> None:
    """Let a CUDA build of torchvision, the one kind that PyPI has, be imported beside a CPU build of PyTorch.

    Its compiled operators cannot be loaded there, and it expects two of them to be declared. No test calls them.
    """
    if importlib.util.find_spec("torchvision") is None or torch.cuda.is_available():
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _declared[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declared: list[torch.library.Library] = []
_declare_torchvision_operators()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets, or a skip that says where it was looked for."""
    candidates = [os.environ.get("VIVID_TEST_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data: neither $VIVID_TEST_DATA nor ../shared/data exists")


@pytest.fixture(autouse=True)
def _messages() -> Iterator[None]:
    """The package's messages on stderr, as programs show them."""
    logger = logging.getLogger("vivid_monai")
    before = logger.handlers[:], logger.level, logger.propagate
    show_messages()
    logger.propagate = True  # for caplog
    yield
    logger.handlers[:], logger.level, logger.propagate = before
