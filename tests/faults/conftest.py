"""The marker of the tests of faults that `make test` runs."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: also where time is saved, see tests/run.py")
