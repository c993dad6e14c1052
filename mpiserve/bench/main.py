"""The program behind `python -m mpiserve bench`; it may print and abort."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from pathlib import Path

from mpi4py import MPI

from mpiserve import _broker
from mpiserve.bench import job, latency, lockstep, overlap, scale
from mpiserve.bench.machine import machine, version
from mpiserve.bench.plan import Plan, plan
from mpiserve.bench.report import Progress, Row, show, write_json
from mpiserve.errors import Error
from mpiserve.session import check_world

OK, FAILURE, USAGE = 0, 1, 2  # exit statuses
PAIR, CREW = 2, 4  # ranks: one client and one server; three clients and one server
LIMIT = 1200.0  # seconds for the second job


def bench(quick: bool, json_file: str | None, plots: str | None, hosts: bool = False) -> int:
    """Measure, print tables, and write what was asked for; give the exit status.

    A world of two ranks measures everything: it starts the job of four itself, when
    its own MPI is over. A world of four measures only what needs four.
    """
    comm = MPI.COMM_WORLD
    problem = wrong(comm, plots, hosts)
    if problem:
        if comm.rank == 0:
            print(f"mpiserve: {problem}", file=sys.stderr)
        return USAGE
    first, pair = comm.rank == 0, comm.size == PAIR
    report: Row = {"machine": machine(), "mpi": _broker.mpi_runtime(), "rows": []}
    with Progress(shown=first) as progress:
        try:
            measure(comm, plan(quick, hosts), progress, report["rows"], hosts)
            more = first and pair and not hosts
            failed = afterwards(plan(quick), progress, report["rows"]) if more else None
        except BaseException as error:
            give_up(comm, error)
            return FAILURE
    if first:
        write(report, json_file, plots)
    if failed:
        print(f"mpiserve: {failed}", file=sys.stderr)
    return FAILURE if failed else OK


def wrong(comm: MPI.Comm, plots: str | None, hosts: bool) -> str | None:
    """Say what keeps the bench from starting, if anything does."""
    try:
        check_world(comm)
    except Error as error:
        return error.text
    if hosts and comm.size != PAIR:
        return f"bench --hosts takes {PAIR} ranks, not {comm.size}"
    if comm.size not in (PAIR, CREW):
        return f"bench takes {PAIR} ranks (or {CREW}, for lock-step alone), not {comm.size}"
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    alone = node.size < comm.size
    node.Free()
    if alone and not hosts:
        return "bench takes ranks of one node, but with --hosts"
    if hosts and not alone:
        return "bench --hosts takes ranks of two nodes"
    if hosts and plots:
        return "bench --hosts draws no plots"
    if plots and not version("matplotlib"):
        return "--plots needs matplotlib: pip install 'mpiserve[bench]'"
    return None


def give_up(comm: MPI.Comm, error: BaseException) -> None:
    """Print why, and end the other rank too, which may wait for this one."""
    if isinstance(error, Error):
        print(f"mpiserve: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    if not MPI.Is_finalized():
        comm.Abort(FAILURE)


def measure(
    comm: MPI.Comm, plan: Plan, progress: Progress, rows: list[Row], hosts: bool = False
) -> None:
    """Measure what needs this world, and end its MPI; rank 0 gets the rows."""
    if hosts:
        rows += latency.measure_wire(comm, plan, progress)
    elif comm.size == CREW:
        rows += lockstep.measure(comm, plan, progress)
    else:
        rows += latency.measure(comm, plan, progress)
        rows += overlap.measure(comm, plan, progress)
    MPI.Finalize()


def afterwards(plan: Plan, progress: Progress, rows: list[Row]) -> Error | None:
    """Measure what needs no MPI of ours. An error comes back, so that the rows so far are kept."""
    try:
        rows += scale.measure(plan, progress)
        rows += crew(plan, progress)
    except Error as error:
        return error
    return None


def crew(plan: Plan, progress: Progress) -> list[Row]:
    """Run the job of four ranks, and return its rows."""
    progress.begin("lock-step", 1)
    progress.step(f"a job of {CREW} ranks")
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        file = Path(folder, "rows.json")
        quick = ["--quick"] if plan.quick else []
        job.run(CREW, ["bench", *quick, "--json", str(file)], LIMIT)
        return json.loads(file.read_text())["rows"]


def write(report: Row, json_file: str | None, plots: str | None) -> None:
    """Print the tables; write the file and the plots."""
    show(report)
    if json_file:
        write_json(Path(json_file), report)
        print(f"rows: {json_file}")
    if plots:
        from mpiserve.bench.plots import draw

        for path in draw(report, Path(plots)):
            print(f"plot: {path}")
