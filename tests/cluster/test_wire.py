"""`python -m mpiserve bench --hosts`: what the wire between two hosts gives, and what remains."""

from __future__ import annotations

import json

import pytest
from coupling import PYTHON

BENCH = (PYTHON, "-m", "mpiserve", "bench", "--hosts")
FLOORS = {"floor_rma", "floor_put_get", "send_recv_c"}


@pytest.mark.timeout(120)
@pytest.mark.takes_long
def test_every_case_is_measured_on_the_same_wire(on_hosts, tmp_path):
    command = ["-n", 2, *BENCH, "--quick", "--json", "rows.json"]
    done = on_hosts({"n1": 1, "n2": 1}, command, timeout=100)
    assert done.returncode == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    trips = [row for row in rows if "p50_us" in row]
    assert {row["case"] for row in trips} == FLOORS | {"mpiserve"}
    assert {row["transport"] for row in trips if row["case"] == "mpiserve"} == {"rma"}
    ratios = [row for row in rows if row["case"] == "over_floor_put_get"]
    assert len(ratios) == len([row for row in trips if row["case"] == "mpiserve"])
    assert all(row["value"] > 0 for row in ratios)


def test_hosts_are_required(mpiexec):
    done = mpiexec(["-n", 2, *BENCH, "--quick"])
    assert done.returncode != 0
    assert "bench --hosts takes ranks of two nodes" in done.stderr
