"""The program `python -m mpiserve bench`, which may print and abort."""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mpi4py import MPI

from mpiserve._lib import core
from mpiserve.bench import (
    capture,
    derivatives,
    engines,
    isolation,
    job,
    latency,
    loadgen,
    lockstep,
    overlap,
    reproducible,
    restarts,
    scale,
    scrape,
    starts,
    strong_scaling,
)
from mpiserve.bench.machine import machine, version
from mpiserve.bench.paper import case as paper
from mpiserve.bench.paper import tables
from mpiserve.bench.plan import Plan, plan
from mpiserve.bench.report import Progress, Row, show, write_json
from mpiserve.errors import Error
from mpiserve.session import check_world

OK, FAILURE, USAGE = 0, 1, 2  # exit statuses
PAIR = 2  # ranks: one client and one server
LIMIT = 1200.0  # seconds for a second job

MEASURES = {
    "latency": latency.measure,
    "overlap": overlap.measure,
    "engines": engines.measure,
    "isolation": isolation.measure,
    "restart": restarts.measure,
    "loadgen": loadgen.measure,
    "scrape": scrape.measure,
    "capture": capture.measure,
    "derivatives": derivatives.measure,
    "lockstep": lockstep.measure,
    "reproducible": reproducible.measure,
    "strong_scaling": strong_scaling.measure,
}
# The number of ranks of the world that a case needs; 0 if it needs no MPI.
CASES = {
    "latency": PAIR,
    "overlap": PAIR,
    "engines": PAIR,
    "isolation": PAIR,
    "restart": restarts.CLIENTS + 1,
    "loadgen": PAIR,
    "scale": 0,
    "scrape": PAIR,
    "capture": PAIR,
    "derivatives": PAIR,
    "starts": 0,
    "lockstep": lockstep.CLIENTS + 1,
    "reproducible": reproducible.CLIENTS + 1,
    "strong_scaling": strong_scaling.RANKS,
    "paper": 0,
}
WITHOUT_MPI: dict[str, Callable[[Plan, Progress], Iterable[Row]]] = {
    "scale": scale.measure,
    "starts": starts.measure,
    "paper": paper.measure,
}
BY_NAME = (
    "capture",
    "derivatives",
    "isolation",
    "reproducible",
    "restart",
    "scrape",
    "starts",
    "paper",
)  # measured only if they are asked for


def bench(
    quick: bool,
    json_file: str | None,
    plots: str | None,
    hosts: bool = False,
    cases: Sequence[str] = (),
) -> int:
    """Measure, print tables, write files, and return the exit status.

    A world of two ranks measures all cases, or the given ones: after its own MPI is finalized,
    it starts a job for each case that needs more ranks. A world with the ranks of such a case
    measures only this case. One rank is enough if no case needs two.
    """
    comm = MPI.COMM_WORLD
    usual = {case: ranks for case, ranks in CASES.items() if case not in BY_NAME}
    cases = cases or [case for case, ranks in usual.items() if comm.size in (PAIR, ranks)]
    problem = wrong(comm, cases, plots, hosts)
    if problem:
        if comm.rank == 0:
            print(f"mpiserve: {problem}", file=sys.stderr)
        return USAGE
    first = comm.rank == 0
    others = [case for case in cases if CASES[case] != comm.size and not hosts]
    report: Row = {"machine": machine(), "mpi": core.mpi_runtime(), "rows": []}
    with Progress(shown=first) as progress:
        try:
            measure(comm, cases, plan(quick, hosts), progress, report["rows"], hosts)
            failed = afterwards(others, plan(quick), progress, report["rows"]) if first else None
        except BaseException as error:
            give_up(comm, error)
            return FAILURE
    if first:
        write(report, json_file, plots)
    if failed:
        print(f"mpiserve: {failed}", file=sys.stderr)
    return FAILURE if failed else OK


def wrong(comm: MPI.Comm, cases: Sequence[str], plots: str | None, hosts: bool) -> str | None:
    """Say why the benchmark cannot start, or return None."""
    try:
        check_world(comm)
    except Error as error:
        return error.text
    if hosts and comm.size != PAIR:
        return f"bench --hosts takes {PAIR} ranks, not {comm.size}"
    if unknown := [case for case in cases if case not in CASES]:
        return f"bench --case {unknown[0]}: must be one of {', '.join(CASES)}"
    if not hosts and not fits(comm.size, cases):
        alone = (f"{ranks} for --case {case}" for case, ranks in CASES.items() if ranks > PAIR)
        return f"bench takes {PAIR} ranks (or {', '.join(alone)} alone), not {comm.size}"
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    apart = node.size < comm.size
    node.Free()
    if apart and not hosts:
        return "bench takes ranks of one node, unless --hosts is given"
    if hosts and not apart:
        return "bench --hosts takes ranks of two nodes"
    if hosts and plots:
        return "bench --hosts draws no plots"
    if plots and not version("matplotlib"):
        return "--plots needs matplotlib: pip install 'mpiserve[bench]'"
    return None


def fits(ranks: int, cases: Sequence[str]) -> bool:
    """Return whether a world of `ranks` ranks can measure these cases."""
    if ranks <= PAIR:
        return bool(cases) and all(CASES[case] != PAIR or ranks == PAIR for case in cases)
    return bool(cases) and all(CASES[case] == ranks for case in cases)


def give_up(comm: MPI.Comm, error: BaseException) -> None:
    """Print an error, and end the other rank too, which may wait for this one."""
    if isinstance(error, Error):
        print(f"mpiserve: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
    if not MPI.Is_finalized():
        comm.Abort(FAILURE)


def measure(
    comm: MPI.Comm,
    cases: Sequence[str],
    plan: Plan,
    progress: Progress,
    rows: list[Row],
    hosts: bool = False,
) -> None:
    """Measure the cases of this world, and finalize MPI; rank 0 gets the rows."""
    if hosts:
        rows += latency.measure_wire(comm, plan, progress)
    else:
        for case in cases:
            if CASES[case] == comm.size:
                rows += MEASURES[case](comm, plan, progress)
    MPI.Finalize()


def afterwards(
    cases: Sequence[str], plan: Plan, progress: Progress, rows: list[Row]
) -> Error | None:
    """Measure the other cases. An error is returned, so that the rows so far are kept."""
    try:
        for case in cases:
            alone = WITHOUT_MPI.get(case)
            # Of an iterator, the rows that it yields before an error stay.
            rows.extend(alone(plan, progress) if alone else crew(case, plan, progress))
    except Error as error:
        return error
    return None


def crew(case: str, plan: Plan, progress: Progress) -> list[Row]:
    """Run the job of more ranks that a case needs, and return its rows."""
    progress.begin(case, 1)
    progress.step(f"a job of {CASES[case]} ranks")
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        file = Path(folder, "rows.json")
        quick = ["--quick"] if plan.quick else []
        job.run(CASES[case], ["bench", "--case", case, *quick, "--json", str(file)], LIMIT)
        return json.loads(file.read_text())["rows"]


def write(report: Row, json_file: str | None, plots: str | None) -> None:
    """Print the tables; write the file and the plots."""
    show(report)
    tables.show(report["rows"])
    if json_file:
        write_json(Path(json_file), report)
        print(f"rows: {json_file}")
    if plots:
        from mpiserve.bench.plots import draw

        for path in draw(report, Path(plots)):
            print(f"{'plot' if path.suffix == '.png' else 'tables'}: {path}")
