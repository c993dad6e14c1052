"""The benchmark's own arithmetic: plans, statistics, the second job's environment, pictures."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

from mpiserve.bench import job, judge, judge_build, loadgen, plots, report, scale, stats
from mpiserve.bench.plan import FULL, plan
from mpiserve.errors import Error

MACHINE = {"cpu": "a processor", "cores": 2, "python": "3.11", "packages": {}}


def round_trip(case, size, p50, **labels):
    return {"case": case, **labels, "bytes": size, "p50_us": p50, "p99_us": p50, "max_us": p50}


def whole_report():
    rows = [round_trip("floor_flag", 8, 0.2)]
    for case in ("floor_rma", "send_recv_c", "send_recv_mpi4py", "zeromq"):
        rows += [round_trip(case, size, size / 100) for size in FULL]
    for transport in ("shared", "rma"):
        labels = {"client": "c", "backend": "echo", "transport": transport, "memory": "user"}
        rows += [round_trip("mpiserve", size, size / 50, **labels) for size in FULL]
    rows.append(round_trip("in_process", 256, 50.0, model="mlp"))
    for clients in (1, 2, 3):
        for system in ("mpiserve", "zeromq"):
            row = {"case": "throughput", "system": system, "clients": clients, "rows": 1024}
            rows.append({**row, "value": 1000 * clients, "unit": "rows/s"})
    efficiency = {
        "case": "batch_efficiency",
        "bind": False,
        "clients": 3,
        "value": 0.9,
        "unit": "ratio",
    }
    speeds = {"in_process_rows_per_s": 4000, "in_process_naive_rows_per_s": 3000}
    rows.append({**efficiency, **speeds, "in_process_chunk": 512})
    return {"machine": MACHINE, "mpi": "Some MPI 1.0", "rows": rows}


# ---- plans and statistics


@pytest.mark.parametrize("quick", [False, True])
def test_a_plan_measures_every_size_after_a_warm_up(quick):
    chosen = plan(quick)
    for size in chosen.sizes:
        for part in (1.0, 0.05):
            warm, rounds = chosen.share(size, part)
            assert warm >= 5 and rounds >= 4


def test_repetitions_share_the_rounds():
    _, rounds = plan(False).share(8)
    assert rounds * plan(False).repetitions == FULL[8]


def test_summary_is_over_all_pieces_and_in_microseconds():
    pieces = [np.arange(1, 51) * 1000, np.arange(51, 102) * 1000]
    assert stats.summary(pieces) == {"p50_us": 51.0, "p99_us": 100.0, "max_us": 101.0}


def test_timed_leaves_the_warm_up_out():
    calls = []
    samples = stats.timed(lambda: calls.append(1), 3, 7)
    assert len(calls) == 10
    assert len(samples) == 7 and (samples > 0).all()


# ---- the second job


MARKS = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_UNIVERSE_SIZE",
    "OMPI_ARGV",
    "OMPI_FILE_LOCATION",
    "OMPI_MCA_num_procs",
    "OMPI_MCA_ess_base_jobid",
    "OMPI_MCA_orte_hnp_uri",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "PRTE_LAUNCHED",
    "PMI_FD",
    "PMI_RANK",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE",
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE",
    "PMI2_RANK",
    "HYDI_CONTROL_FD",
    "MPI_LOCALRANKID",
    "MPI_LOCALNRANKS",
    "OPAL_USER_PARAMS_GIVEN",
]
SETTINGS = [
    "PATH",
    "HOME",
    "OMPI_MCA_osc",
    "OMPI_MCA_btl",
    "OMPI_ALLOW_RUN_AS_ROOT",
    "PMIX_MCA_gds",
    "PRTE_MCA_plm_ssh_agent",
    "PRTE_MCA_rmaps_default_mapping_policy",
    "MPIR_CVAR_CH4_OFI_ENABLE_ATOMICS",
    "HYDRA_LAUNCHER",
    "MPIEXEC",
    "MPISERVE_TRANSPORT",
]


@pytest.mark.parametrize("name", MARKS)
def test_what_marks_a_rank_is_not_handed_on(name):
    assert job.scrubbed({name: "1"}) == {}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_user_set_is_handed_on(name):
    assert job.scrubbed({name: "1"}) == {name: "1"}


def test_the_named_launcher_is_used(monkeypatch):
    monkeypatch.setenv("MPIEXEC", sys.executable)
    assert job.launcher() == sys.executable


def test_a_launcher_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("MPIEXEC", "no-such-launcher")
    with pytest.raises(Error, match="no launcher no-such-launcher; set MPIEXEC"):
        job.launcher()


def test_the_reason_of_a_failed_job_is_our_own_line():
    said = "noise\nmpiserve: no service 'bench'\nprterun has exited\n-----\n"
    assert job.reason(said) == "no service 'bench'"
    assert job.reason("a\nb\n----\n") == "b"
    assert job.reason("") == "it printed no reason"


# ---- what callgrind says


def test_the_count_of_callgrind_is_read():
    assert scale.collected("==1== Events    : Ir\n==1== Collected : 120110\n") == 120110


def test_no_count_is_an_error():
    with pytest.raises(Error, match="callgrind counted nothing"):
        scale.collected("==1== nothing\n")


# ---- what LoadGen says


def summary(word, line):
    return f"Result is : {word}\n99.00 percentile latency (ns)   : 812345\n{line}\n"


@pytest.mark.parametrize(
    ("scenario", "line", "rate"),
    [
        ("Server", "Completed samples per second    : 49876.54", 49876.54),
        ("Offline", "Samples per second: 1.23457e+06", 1.23457e6),
        ("SingleStream", "Mean latency (ns)               : 20000", 50e3),
        ("MultiStream", "Mean latency (ns)               : 20000", 400e3),
    ],
)
def test_the_verdict_is_read_from_the_summary(tmp_path, scenario, line, rate):
    (tmp_path / judge.SUMMARY).write_text(summary("VALID", line))
    found = judge.read_verdict(tmp_path, judge.Trial(scenario, 1.0))
    assert found.valid and found.word == "VALID"
    assert (found.rate, found.p99_us) == (pytest.approx(rate), 812.345)


def test_an_invalid_run_is_no_valid_one(tmp_path):
    text = summary("INVALID", "Completed samples per second    : 1.00")
    (tmp_path / judge.SUMMARY).write_text(text)
    found = judge.read_verdict(tmp_path, judge.Trial("Server", 1.0))
    assert not found.valid and found.word == "INVALID"


@pytest.mark.parametrize("text", [None, "", "Result is : VALID\n"])
def test_a_summary_without_a_result_is_an_error(tmp_path, text):
    if text is not None:
        (tmp_path / judge.SUMMARY).write_text(text)
    with pytest.raises(Error, match="LoadGen"):
        judge.read_verdict(tmp_path, judge.Trial("Server", 1.0))


def test_answers_are_read_by_the_index_of_their_sample(tmp_path):
    rows = {7: np.float32([1, 2]), 3: np.float32([-1, 0.5])}
    entries = [{"seq_id": 0, "qsl_idx": i, "data": row.tobytes().hex()} for i, row in rows.items()]
    (tmp_path / judge.ACCURACY).write_text(json.dumps(entries))
    found = judge.read_answers(tmp_path)
    assert found.keys() == rows.keys()
    assert all((found[i] == row).all() for i, row in rows.items())


@pytest.mark.parametrize("limit", [1e3, 7e4, 3e6])
def test_the_highest_valid_rate_is_found(limit):
    tried = []
    found = loadgen.highest_rate(lambda rate: tried.append(rate) or rate <= limit, 1e5, 30)
    assert limit / loadgen.NEAR <= found <= limit
    assert len(tried) < 20


def test_a_search_ends_where_no_rate_is_valid():
    assert loadgen.highest_rate(lambda rate: False, 1000.0, 3) == 62.5


def test_the_judge_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.delenv("MPISERVE_LOADGEN", raising=False)
    assert "pip download" in judge_build.missing()
    monkeypatch.setenv("MPISERVE_LOADGEN", str(tmp_path / "none.tar.gz"))
    assert "none.tar.gz, which is no file" in judge_build.missing()
    (tmp_path / "none.tar.gz").touch()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no 'no-such-compiler'" in judge_build.missing()


# ---- reports and pictures


def test_a_report_comes_back_from_its_file(tmp_path):
    made = whole_report()
    report.write_json(tmp_path / "a/rows.json", made)
    assert json.loads((tmp_path / "a/rows.json").read_text()) == made


def test_tables_show_every_case(capsys):
    made = whole_report()
    report.show(made)
    printed = capsys.readouterr().out
    assert all(row["case"] in printed for row in made["rows"])


@pytest.mark.takes_long
def test_pictures_are_drawn_of_what_there_is(tmp_path):
    made = whole_report()
    drawn = plots.draw(made, tmp_path / "all")
    assert [path.name for path in drawn] == ["latency.png", "throughput.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    made["rows"] = [row for row in made["rows"] if "p50_us" in row]
    assert [path.name for path in plots.draw(made, tmp_path)] == ["latency.png"]


def test_durations_are_written_as_people_do():
    assert [plots.duration(value) for value in (0.1, 1, 1e4, 1e6)] == [
        "100 ns",
        "1 µs",
        "10 ms",
        "1 s",
    ]
    assert math.isclose(float(report.figure(0.12345)), 0.1235, rel_tol=1e-3)
