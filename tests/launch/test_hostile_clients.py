"""Clients of a gateway that mean no good, for some seconds: see tests/hostile_clients.py."""

from __future__ import annotations

import time

import hostile_clients
import pytest

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson"):
    pytest.importorskip(package)


@pytest.mark.timeout(200)
def test_nobody_notices_clients_that_mean_no_good(mpiexec, tmp_path):
    seed = int(time.time())
    print(f"again: python tests/hostile_clients.py --minutes 0.1 --seed {seed}")
    assert hostile_clients.run(mpiexec, tmp_path, seconds=6, seed=seed, count=2000) == []
