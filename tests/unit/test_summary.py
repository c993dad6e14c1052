"""The report of a profiled session: its figures, its text, and the hints that name a setting."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpiserve.observe import parts, summary
from mpiserve.observe.parts import BUCKETS, CLIENT, HEAD, LATE, PART, STAGES, STEP, TIMING
from mpiserve.tools import report as program

MS = 1_000_000


def bucket(ns):
    """As bucket_of() of csrc/base/profile.c."""
    if ns < 8:
        return ns
    octave = ns.bit_length() - 1
    return min(((octave - 2) << 3) + (ns >> (octave - 3) & 7), BUCKETS - 1)


def timing(*nanoseconds):
    made = np.zeros(1, TIMING)[0]
    for ns in nanoseconds:
        made["count"] += 1
        made["sum"] += ns
        made["most"] = max(made["most"], ns)
        made["buckets"][bucket(ns)] += 1
    return made


def head_of(rank, role, **values):
    head = np.zeros(1, PART)[0]
    known = {
        "magic": b"mpiserve",
        "version": parts.VERSION,
        "run": 7,
        "rank": rank,
        "size": 3,
        "role": role,
    }
    for name, value in (known | {"host": b"n1", "closed": 100 * MS} | values).items():
        head[name] = value
    return head


def simulation(rank, stages, *, requests=10, rows=40, waited=None, **values):
    """A rank each of whose requests had the same stages, in nanoseconds by name."""
    client = np.zeros(1, CLIENT)
    client["name"], client["requests"], client["rows"] = b"s", requests, rows
    client["answered"] = requests
    for i, name in enumerate(STAGES):
        client["stages"][0][i] = timing(*[stages.get(name, 0)] * requests)
        client["waited_stages"][0][i] = requests * stages.get(name, 0)
    total = sum(stages.values())
    client["total"][0] = timing(*[total] * requests)
    client["waited"] = requests * total if waited is None else waited
    head = head_of(rank, 0, n_clients=1, **values)
    nothing = np.zeros((0, 3), LATE)
    return parts.Part(head, client, np.zeros(0, HEAD), nothing, np.zeros(0, STEP))


def inference(*, late=None, batches=10, requests=20, rows=80, closed=(0, 0, 10, 0, 0), **values):
    head = np.zeros(1, HEAD)
    known = {"name": b"s", "batches": batches, "requests": requests, "rows": rows}
    known |= {"closed": closed, "max_batch_rows": 64, "max_delay": 200_000}
    for name, value in (known | values).items():
        head[name] = value
    head["engine"][0] = timing(*[MS] * batches)
    blamed = np.zeros((1, 3), LATE)
    for rank, ns in (late or {}).items():
        blamed["batches"][0][rank], blamed["waited"][0][rank] = batches, ns
    top = head_of(2, 1, n_heads=1)
    return parts.Part(top, np.zeros(0, CLIENT), head, blamed, np.zeros(0, STEP))


def bytes_of(part):
    pieces = (part.clients, part.heads, part.late, part.steps)
    data = b"".join(np.ascontiguousarray(piece).tobytes() for piece in pieces)
    part.head["bytes"] = PART.itemsize + len(data)
    return part.head.tobytes() + data


def made(stages, **values):
    return summary.report([simulation(0, stages), simulation(1, stages), inference(**values)])


def test_the_first_line_is_the_answer():
    report = made({"engine": MS, "batch": 3 * MS})
    assert summary.text(report).splitlines()[0] == report["answer"]
    assert report["answer"] == (
        "a simulation rank waited 40 ms of 100 ms (40 %) for models: batch 75 %, engine 25 %"
    )


def test_the_rank_that_waits_most_is_named():
    ranks = [simulation(0, {"engine": MS}), simulation(1, {"engine": 4 * MS})]
    text = summary.report([*ranks, inference()])["answer"]
    assert text.endswith("; most on rank 1: 40 %")


def test_marked_steps_are_what_is_answered():
    marked = simulation(0, {"engine": MS}, steps=5)
    marked.head["all"]["length"], marked.head["all"]["waited"] = 50 * MS, 5 * MS
    marked.head["all"]["stages"][STAGES.index("engine")] = 5 * MS
    report = summary.report([marked, inference()])
    assert report["answer"] == "a time step waited 1 ms of 10 ms (10 %) for models: engine 100 %"


def test_ranks_whose_parts_are_elsewhere_are_named():
    report = summary.report([simulation(0, {"engine": MS}), inference()])
    assert report["missing"] == [1]
    assert "nothing is known here of ranks 1" in summary.text(report)


LARGEST = {
    "slot": "pool_bytes",
    "copy in": "empty_input",
    "queue": "replicas",
    "engine": "another engine",
    "take": "most of all on rank 0",
    "transport": "share cores",
}


@pytest.mark.parametrize("stage", LARGEST)
def test_the_hint_fits_the_largest_stage(stage):
    report = made({stage: MS, "reply": MS // 8})
    assert report["services"]["s"]["largest"] == stage
    assert [hint for hint in report["hints"] if LARGEST[stage] in hint] == report["hints"] != []


def test_batches_of_one_request_name_the_limit_of_rows():
    report = made({"engine": 1000}, batches=20, requests=20, rows=80, max_batch_rows=4)
    expected = "batches hold 1.0 requests: max_batch_rows 4 is below the 8 rows of all ranks"
    assert expected in report["hints"][0]


def test_batches_of_one_request_name_the_delay_that_closes_them():
    closed = (0, 0, 2, 18, 0)
    report = made({"engine": 1000}, batches=20, requests=20, closed=closed)
    assert "18 of 20 were closed by max_delay_us 200" in report["hints"][0]


def test_the_straggler_is_named_and_ranks_that_take_turns_are_not():
    report = made({"batch": MS, "engine": 1000}, late={0: 9 * MS, 1: MS})
    assert report["services"]["s"]["straggler"] == 0
    assert "batches waited for rank 0, which came last 10 times" in report["hints"][0]
    one, other, third = 3 * MS, 3 * MS, 3 * MS
    report = made({"batch": MS, "engine": 1000}, late={0: one, 1: other, 2: third})
    assert report["services"]["s"]["straggler"] is None
    assert "in turn" in report["hints"][0]


def test_rows_that_were_kept_are_counted():
    stages = {"engine": MS}
    lines = summary.text(made(stages, lookups=400, hits=100)).splitlines()
    assert "  rows whose answers were kept: 100, 25 %" in lines
    assert "kept" not in summary.text(made(stages))


def test_errors_are_counted_by_kind():
    failed = simulation(0, {"unanswered": MS})
    failed.clients["errors"][0][13], failed.clients["errors"][0][23] = 3, 1
    report = summary.report([failed, inference()])
    assert report["services"]["s"]["clients"][0]["errors"] == {"EMODEL": 3, "other": 1}
    assert "4 requests failed: 3 with EMODEL, 1 with other" in report["hints"][0]


def test_quantiles_are_known_to_an_eighth():
    values = np.random.default_rng(1).lognormal(10, 2, 4000).astype(int).tolist()
    measured = timing(*values)
    for share in (0.01, 0.5, 0.9, 0.99):
        exact = np.quantile(values, share) * 1e-9
        assert abs(parts.quantile(measured, share) / exact - 1) < 1 / 8
    assert parts.quantile(measured, 1.0) == max(values) * 1e-9


def test_a_part_that_is_read_is_the_one_that_was_written():
    part = simulation(1, {"engine": MS})
    again = parts.parse(bytes_of(part))
    assert again.rank == 1 and again.clients == part.clients


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: b"x" + d[1:], lambda d: d[:40]])
def test_what_is_no_whole_part_is_left_out(tmp_path, change):
    (tmp_path / "rank-0.part").write_bytes(change(bytes_of(simulation(0, {}))))
    assert parts.read(tmp_path) == [] and summary.report([]) == {}


def test_parts_of_an_earlier_session_are_left_out(tmp_path):
    old = simulation(0, {"engine": MS}, run=6, opened_at=1)
    new = simulation(1, {"engine": MS}, opened_at=2)
    for part in (old, new):
        (tmp_path / f"rank-{part.rank}.part").write_bytes(bytes_of(part))
    assert [part.rank for part in parts.read(tmp_path)] == [1]
    assert [part.rank for part in parts.read(tmp_path, 6)] == [0]


def test_the_last_steps_are_in_their_order():
    ring = np.zeros(4, STEP)
    ring["begin"] = [5, 6, 3, 4]
    assert parts._in_order(ring, head_of(0, 0, steps=6))["begin"].tolist() == [3, 4, 5, 6]
    assert parts._in_order(ring, head_of(0, 0, steps=2))["begin"].tolist() == [5, 6]


def test_the_program_prints_a_file_and_a_folder_alike(tmp_path, capsys):
    folder = tmp_path / "job.parts"
    folder.mkdir()
    for part in (simulation(0, {"engine": MS}), inference()):
        (folder / f"rank-{part.rank}.part").write_bytes(bytes_of(part))
    assert program.report(str(folder)) == 0
    first = capsys.readouterr().out
    assert json.loads((tmp_path / "job.json").read_text())["ranks"] == 3
    assert program.report(str(tmp_path / "job.json")) == 0
    assert capsys.readouterr().out == first != ""


def test_the_program_draws_a_picture(tmp_path, capsys):
    marked = simulation(0, {"engine": MS}, steps=2)
    steps = np.zeros(2, STEP)
    steps["begin"], steps["length"], steps["waited"] = [0, 10 * MS], 10 * MS, 3 * MS
    steps["stages"][:, STAGES.index("engine")] = 3 * MS
    marked = parts.Part(marked.head, marked.clients, marked.heads, marked.late, steps)
    summary.write(summary.report([marked, inference()]), tmp_path / "job.json")
    picture = tmp_path / "job.png"
    assert program.report(str(tmp_path / "job.json"), str(picture)) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert program.report(str(tmp_path / "job.json"), str(tmp_path / "job.none")) == 1
    assert "none" in capsys.readouterr().err


def test_the_program_says_what_is_no_report(tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"format": 99}')
    for name in ("none.json", "other.json", "."):
        assert program.report(str(tmp_path / name)) == 1
    assert "no report of this version" in capsys.readouterr().err
