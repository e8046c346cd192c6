"""Fixtures shared by the suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of small real data sets, or a skip that says where it was looked for."""
    candidates = [os.environ.get("VIVID_TEST_DATA"), Path(__file__).parents[2] / "shared" / "data"]
    for candidate in candidates:
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    pytest.skip("no real data: neither $VIVID_TEST_DATA nor ../shared/data exists")
