"""`python -m mpiserve bench` in its quick form: every case is measured, whatever the figures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from itertools import product

import pytest
from jobs import ROOT

from mpiserve.bench.deaths import DEATHS
from mpiserve.bench.machine import version

BENCH = (sys.executable, "-m", "mpiserve", "bench")
SIZES = {8, 2**10, 2**20}


def expected():
    """The cases with round trips, as their labels."""
    cases = [("floor_rma",), ("floor_flag",), ("send_recv_c",), ("send_recv_mpi4py",)]
    if version("pyzmq"):
        cases.append(("zeromq",))
    if version("redis") and shutil.which("redis-server"):
        cases.append(("redis",))
    ways = product(("c", "python"), ("echo", "torch"), ("shared", "rma"), ("user", "in_place"))
    return {*cases, *(("mpiserve", *way) for way in ways)}


def engines():
    """Whether models can be compiled here."""
    return shutil.which("c++")


def labels(row):
    names = ("case", "client", "backend", "transport", "memory")
    return tuple(row[name] for name in names if name in row)


def check_round_trips(rows):
    found = {}
    for row in rows:
        assert 0 < row["p50_us"] <= row["p99_us"] <= row["max_us"] < math.inf
        if "model" not in row:
            found.setdefault(labels(row), {})[row["bytes"]] = row["p50_us"]
    assert set(found) == expected()
    for case, medians in found.items():
        assert set(medians) == ({8} if case == ("floor_flag",) else SIZES)
        for size, p50 in medians.items():
            assert math.isfinite(p50 / found["floor_rma",][size])
    networks = [labels(row) for row in rows if row.get("model") == "mlp"]
    ours = [("mpiserve", "python", "torch", name, "user") for name in ("shared", "rma")]
    assert networks == [("in_process",), *ours]
    assert len([row for row in rows if "engine" in row]) == (10 if engines() else 0)


def check_others(rows):
    cases = {}
    for row in rows:
        # A difference of two times may be of any sign on a busy machine.
        least = -math.inf if row["case"] == "served_beyond_engine" else 0
        assert least < row["value"] < math.inf
        assert row["unit"]
        cases.setdefault(row["case"], []).append(row)
    assert len(cases["overlap"]) == 4
    if engines():
        names = ("served_beyond_engine", "eager_over_compiled", "eager_over_kept")
        assert [len(cases[name]) for name in names] == [2, 2, 2]
    assert [row["bind"] for row in cases["batch_efficiency"]] == [False, True]
    assert len(cases["census_wait"]) == 1
    assert 1 <= cases["census_wait"][0]["batch_requests_min"] <= 3
    assert [row["clients"] for row in cases["scale_memory"]] == [64, 1024, 8192]
    if shutil.which("valgrind"):
        assert [row["clients"] for row in cases["scale_instructions"]] == [1, 64, 1024, 8192]
    assert {1, 2, 3} == {row["clients"] for row in cases["throughput"]}
    check_strong_scaling(cases["strong_scaling"])


def check_strong_scaling(rows):
    assert [(row["services"], row["clients"]) for row in rows] == [(1, 16), (2, 16), (4, 16)]
    assert all(row["unit"] == "requests/s" and row["authors_peak"] == 25279 for row in rows)


@pytest.mark.takes_long
def test_the_quick_bench_measures_every_case(mpiexec, tmp_path):
    done = mpiexec(["-n", 2, *BENCH, "--quick", "--json", "rows.json", "--plots", "."], timeout=170)
    assert done.returncode == 0
    report = json.loads((tmp_path / "rows.json").read_text())
    assert set(report) == {"machine", "mpi", "rows"}
    assert {"cpu", "cores", "python", "packages"} <= set(report["machine"])
    assert "MPI" in report["mpi"]
    check_round_trips([row for row in report["rows"] if "p50_us" in row])
    check_others([row for row in report["rows"] if "p50_us" not in row])
    assert (tmp_path / "latency.png").exists() and (tmp_path / "throughput.png").exists()


def measured(mpiexec, folder, *cases):
    chosen = [word for case in cases for word in ("--case", case)]
    done = mpiexec(["-n", 2, *BENCH, "--quick", *chosen, "--json", "rows.json"])
    assert done.returncode == 0
    return json.loads((folder / "rows.json").read_text())["rows"]


@pytest.mark.takes_long
def test_chosen_cases_are_measured(mpiexec, tmp_path):
    rows = measured(mpiexec, tmp_path, "overlap", "restart")
    assert {row["case"] for row in rows} == {"overlap", "restart"}
    restarts = {row["kind"]: row for row in rows if row["case"] == "restart"}
    assert set(restarts) == {*(death.__name__ for death in DEATHS), "all"}
    for row in restarts.values():
        assert row["deaths"] and 0 < row["value"] <= row["max_ms"] + 0.1 < math.inf


@pytest.mark.takes_long
def test_the_process_of_a_model_is_measured(mpiexec, tmp_path):
    rows = measured(mpiexec, tmp_path, "isolation")
    found = {}
    for row in rows:
        if "p50_us" in row:
            assert 0 < row["p50_us"] <= row["p99_us"] <= row["max_us"] < math.inf
            how = row["case"], row.get("engine"), row.get("place")
            found.setdefault(how, set()).add(row["bytes"])
    for way, place in product(("in the rank", "in a child"), ("free", "bound")):
        assert found["identity", way, place] == SIZES
    judged = {row["case"] for row in rows if "bar" in row}
    handovers = {f"handover_{how}" for how in ("spinning", "asleep", "both_asleep", "one_core")}
    assert judged >= {*handovers, "isolated_copies", "over_floor_rma"}
    assert {row["of"] for row in rows if row["case"] == "over_floor_wake"} == {*handovers} - {
        "handover_spinning"
    }


@pytest.mark.takes_long
def test_what_a_scrape_costs_is_measured(mpiexec, tmp_path):
    (row,) = measured(mpiexec, tmp_path, "scrape")
    assert row["case"] == "scrape" and 0 < row["value"] < math.inf


@pytest.mark.takes_long
def test_what_a_capture_costs_is_measured_and_how_fast_it_is_read(mpiexec, tmp_path):
    price, *reads = measured(mpiexec, tmp_path, "capture")
    assert price["case"] == "capture" and 0 < price["kept"] <= 1
    assert [row["order"] for row in reads] == ["in order", "at random"]
    for row in (price, *reads):
        assert 0 < row["value"] < math.inf


@pytest.mark.takes_long
def test_derivatives_are_compared_with_the_forward_call(mpiexec, tmp_path):
    rows = measured(mpiexec, tmp_path, "derivatives")
    assert all(0 < row["value"] < math.inf for row in rows)
    ratios = [row for row in rows if row["case"] == "vjp_over_forward"]
    assert len({(row["net"], row["engine"]) for row in ratios}) == len(ratios) == 4
    assert all(row["bar"] == "<= 4.5" for row in ratios)


@pytest.mark.takes_long
def test_a_reproducible_service_is_compared_with_the_usual_one(mpiexec, tmp_path):
    rows = measured(mpiexec, tmp_path, "reproducible")
    settings = [(row["rows"], row["late_ms"], row["answered"]) for row in rows]
    every, one = "all clients", "a client in time"
    late = [(rows, *other) for rows in (8, 1024) for other in ((0, every), (2, every), (2, one))]
    assert settings == late
    for row in rows:
        assert math.isclose(row["value"], row["reproducible_us"] / row["usual_us"], rel_tol=0.05)


@pytest.mark.takes_long
def test_starts_are_measured(mpiexec, tmp_path):
    rows = measured(mpiexec, tmp_path, "starts")
    assert [row["net"] for row in rows if row["case"] == "auto_is_fastest"] == [
        "8-32-32-8",
        "64-256-256-64",
    ]
    assert all(row["value"] in (0, 1) for row in rows if row["case"] == "auto_is_fastest")
    assert all(row["unit"] == "s" for row in rows if row["case"] == "auto_starts_longer")


RADICAL = ROOT / ".venv-rp/bin/python"


@pytest.mark.takes_long
@pytest.mark.timeout(600)
def test_the_papers_experiments_are_measured(mpiexec, tmp_path):
    env = {"MPISERVE_RADICAL": str(RADICAL)} if RADICAL.exists() else {}
    words = ["-n", 1, *BENCH, "--quick", "--case", "paper", "--json", "rows.json", "--plots", "."]
    done = mpiexec(words, env=env, timeout=550)
    assert done.returncode == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    systems = {"mpiserve", *["zeromq"] * bool(version("pyzmq")), *["radical"] * RADICAL.exists()}
    for services in (1, 2):
        found = {"case": "paper", "model": "noop", "services": services, "clients": services}
        found = [row for row in rows if found.items() <= row.items()]
        assert {row["system"] for row in found} == systems
    for row in rows:
        assert 0 < row["value"] < math.inf
        if "parts_us" in row:
            assert math.isclose(sum(row["parts_us"].values()), row["rt_us"], rel_tol=0.02)
    assert (tmp_path / "paper_rt.png").exists() and (tmp_path / "paper.md").exists()


def test_a_world_of_another_size_is_refused_in_one_line(mpiexec):
    done = mpiexec(["-n", 3, *BENCH])
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("mpiserve: ")]
    alone = "4 for --case restart, 4 for --case lockstep, 4 for --case reproducible"
    alone += ", 20 for --case strong_scaling alone"
    assert said == [f"mpiserve: bench takes 2 ranks (or {alone}), not 3"]
