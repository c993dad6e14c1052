"""The figures, tables and pictures of `bench --case paper`, made from rows that a run has left."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import pytest

from mpiserve.bench import job, plots, report
from mpiserve.bench.paper import figures, pilot, tables
from mpiserve.bench.paper.loop import closed_loop, merged
from mpiserve.observe.parts import STAGES

RECORDED = Path(__file__).with_name("paper.json")


@pytest.fixture
def recorded():
    return json.loads(RECORDED.read_text())


def measured(rows, **wanted):
    return [row for row in rows if wanted.items() <= row.items()]


# ---- what clients measure


def test_a_loop_sends_until_its_time_is_over():
    begin = time.monotonic()
    found = closed_loop(lambda: time.sleep(0.001), 0.02)
    assert time.monotonic() - begin >= 0.02
    assert sum(found["times"]) == found["end"] - found["begin"]
    assert min(found["times"]) >= 1_000_000


def test_a_loop_sends_once_at_least():
    assert len(closed_loop(lambda: None, 0.0)["times"]) == 1


def test_what_a_service_says_of_its_time_splits_a_request():
    def call():
        time.sleep(0.002)
        begin = time.monotonic_ns()
        time.sleep(0.001)
        return begin, time.monotonic_ns()

    found = merged([closed_loop(call, 0.02)])
    assert found["before_us"] >= 2000 and found["inside_us"] >= 1000 and found["after_us"] >= 0
    parts = [found[part] for part in ("before_us", "inside_us", "after_us")]
    assert sum(parts) == pytest.approx(found["mean_us"])


def test_loops_of_clients_are_summed_from_the_first_begin_to_the_last_end():
    loops = [
        {"begin": 10**9, "end": 3 * 10**9, "times": [4000, 2000], "before": 0, "inside": 0},
        {"begin": 2 * 10**9, "end": 5 * 10**9, "times": [6000, 8000], "before": 0, "inside": 8000},
    ]
    found = merged(loops)
    assert (found["requests"], found["rate"], found["mean_us"]) == (4, 1.0, 5.0)
    assert (found["p50_us"], found["p99_us"], found["inside_us"]) == (6.0, 8.0, 2.0)


# ---- the parts of RT


def test_each_stage_belongs_to_one_part():
    assert sorted(itertools.chain(*figures.PARTS.values())) == sorted(STAGES)


def test_the_parts_of_a_profile_are_all_of_it():
    stages = {stage: 2.0**i for i, stage in enumerate(STAGES)}
    parts = figures.parts_of_stages({"requests": 4, "stages": stages})
    assert sum(parts.values()) == pytest.approx(sum(stages.values()) * 1e6 / 4)
    assert parts["inference"] == pytest.approx(stages["engine"] * 1e6 / 4)


def test_the_parts_of_every_recorded_row_add_up(recorded):
    rows = measured(recorded["rows"], case="paper")
    assert {row["system"] for row in rows} == {"mpiserve", "zeromq", "radical"}
    for row in rows:
        assert sum(row["parts_us"].values()) == pytest.approx(row["rt_us"], rel=0.02), row
        assert sum(figures.in_three(row).values()) == pytest.approx(row["rt_us"], rel=0.02), row


def test_the_phases_of_every_recorded_bootstrap_add_up(recorded):
    rows = measured(recorded["rows"], case="paper_bootstrap")
    assert {row["system"] for row in rows} == {"mpiserve", "radical"}
    for row in rows:
        assert sum(row[f"{phase}_s"] for phase in figures.PHASES) == pytest.approx(row["value"])


def test_a_bootstrap_ends_when_the_last_client_can_use_the_last_replica():
    states = [{"launched": 11.0, "ready": 12.0}, {"launched": 10.5, "ready": 14.0}]
    row = figures.bootstrap({"states": states, "usable": 14.5}, 10.0)
    assert [row[f"{phase}_s"] for phase in figures.PHASES] == [1.0, 3.0, 0.5]
    assert row["value"] == 4.5


# ---- rows


def test_a_row_is_the_turn_in_the_middle():
    turns = [{"value": value, "rt_us": 1 / value} for value in (5.0, 1.0, 3.0)]
    assert figures.middle(turns) == {"value": 3.0, "rt_us": 1 / 3, "turns": [5.0, 1.0, 3.0]}


def turn_rows(system, *values, **labels):
    named = {"model": "noop", "services": 1, "clients": 1, "tensor_parallel": 1, "hosts": 1}
    turns = [{"value": value} for value in values]
    return figures.rows_of("paper", system, named | labels, turns)


def test_systems_are_compared_turn_by_turn():
    rows = turn_rows("mpiserve", 100, 900, 400) + turn_rows("radical", 10, 30, 10)
    (ratio,) = figures.ratios(rows)
    assert ratio["value"] == 30.0 and ratio["rival"] == "radical" and ratio["bar"] == 10


def test_only_the_same_experiments_are_compared():
    rows = turn_rows("mpiserve", 100.0) + turn_rows("zeromq", 10.0, clients=16)
    assert figures.ratios(rows) == []


# ---- tables and pictures


def test_the_tables_show_every_recorded_row(recorded, capsys):
    tables.show(recorded["rows"])
    printed = capsys.readouterr().out
    for title in ("requests/s", "RT by part", "a small Llama", "BT by phase"):
        assert title in printed
    for row in measured(recorded["rows"], case="paper", model="noop"):
        assert f"{row['value']:,.0f}" in printed


def test_the_general_table_leaves_these_rows_out(recorded, capsys):
    report.show(recorded)
    printed = capsys.readouterr().out
    assert "paper_ratio" in printed and "parts_us" not in printed


def test_tables_are_written_as_markdown(recorded, tmp_path):
    text = tables.write(recorded["rows"], tmp_path / "paper.md").read_text()
    for table in text.split("\n\n*"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2


def test_pictures_are_drawn_of_the_recorded_rows(recorded, tmp_path):
    drawn = plots.draw(recorded, tmp_path)
    names = ["paper_rates.png", "paper_rt.png", "paper_llama.png", "paper_bt.png", "paper.md"]
    assert [path.name for path in drawn] == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn[:-1])


# ---- jobs and RADICAL-Pilot


@pytest.mark.parametrize(
    ("said", "flag"), [("mpiexec (Open MPI) 5.0.11", "--host"), ("HYDRA build details", "-hosts")]
)
def test_ranks_are_placed_as_the_launcher_wants_it(monkeypatch, tmp_path, said, flag):
    launcher = tmp_path / "mpiexec"
    launcher.write_text(f"#!/bin/sh\necho '{said}'\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("MPIEXEC", str(launcher))
    assert job.placed({"one": 16, "two": 4}) == [flag, "one:16,two:4"]
    assert job.placed({}) == []


def test_radical_pilot_is_left_out_with_a_reason(monkeypatch):
    monkeypatch.delenv("MPISERVE_RADICAL", raising=False)
    assert "set MPISERVE_RADICAL" in pilot.missing()
    monkeypatch.setenv("MPISERVE_RADICAL", "/no/python")
    assert pilot.missing().startswith("MPISERVE_RADICAL=/no/python: ")


def test_a_session_that_ends_is_an_error_with_its_last_line(monkeypatch):
    monkeypatch.setenv("MPISERVE_RADICAL", sys.executable)
    monkeypatch.setattr(pilot, "apart", lambda command: ["sh", "-c", "echo no pilot >&2"])
    with pytest.raises(pilot.Error, match="RADICAL-Pilot ended: no pilot"):
        pilot.Pilot(1, report.Progress(shown=False)).__enter__()
