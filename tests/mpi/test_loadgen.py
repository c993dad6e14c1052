"""MLPerf LoadGen drives a service through the client of the benchmark, and judges it."""

import os
from pathlib import Path

import numpy as np
import pytest

from mpiserve.bench import _native, judge_build
from mpiserve.bench.coupled import config, serve, serves
from mpiserve.bench.judge import SCENARIOS, Judge, Trial

BUILD = Path(__file__).parents[2] / "build"
SOURCES = os.environ.get("MPISERVE_LOADGEN") or next((BUILD / "loadgen").glob("*.tar.gz"), None)
ROWS, WIDTH = 64, 8
ECHO = config("echo", [-1, WIDTH], "float32", max_batch_rows=ROWS)


def samples():
    return np.random.default_rng(1).standard_normal((1000, WIDTH), np.float32)


def ask(judge):
    x = samples()
    for scenario in SCENARIOS:
        found = judge.verdict(Trial(scenario, 1000.0, limit_us=1e7), x)
        assert found.valid and found.rate > 0 and found.p99_us > 0, (scenario, found)
    assert not judge.verdict(Trial("Server", 1000.0, limit_us=0.01), x).valid
    for scenario in SCENARIOS:
        answers = judge.answers(Trial(scenario, 1e4, accuracy=True), x)
        assert sorted(answers) == list(range(len(x)))
        assert all((answers[i] == row).all() for i, row in enumerate(x))


@pytest.mark.takes_long  # it compiles LoadGen
@pytest.mark.timeout(240)
@pytest.mark.skipif(not SOURCES, reason=f"{judge_build.HOW}; or make build/loadgen")
@pytest.mark.roles(simulation=1, inference=1)
def test_the_judge_finds_a_service_valid_and_its_answers_right(world, monkeypatch):
    monkeypatch.setenv("MPISERVE_LOADGEN", str(SOURCES))
    monkeypatch.setenv("MPISERVE_CACHE", str(BUILD / "test-loadgen"))
    if serves(world.comm):
        serve(world.comm, ECHO)
        return
    library = judge_build.library()
    client = _native.Client(world.comm)
    try:
        ask(Judge(library, client.handles(), ROWS))
    finally:
        client.close()
