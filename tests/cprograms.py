"""Compile the C test programs, and say how each is run.

tests/c/test_*.c test files of the library that call no MPI; they are compiled without any MPI.
tests/c/mpi_*.c run on as many ranks as a comment in each says ("ranks: 4").
tests/c/race_*.c are several ranks as threads of one process, for the thread sanitizer; they are
linked with an MPI and call none of it. Exit status 0: passed, 77: skipped, else failed.
tests/c/engine_*.c are libraries of engines, which these programs load.
tests/c/fuzz.c is a random program, tests/c/hostile.c a hostile client: each seed is a test.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from jobs import ROOT, TO_LOG, Job, Target, reports

PROGRAMS = ROOT / "build/test-programs"
BUILT: set[str] = set()  # libraries, by this process
ROOMS = (
    "base",
    "protocol",
    "engine",
    "mpi",
    "client",
    "head",
    "api",
)  # of the library, as in csrc/Makefile
# Of client and head, what the tests without MPI link with.
POLICY = ("client/balance", "client/check", "head/batch", "head/cache", "head/row_pool")
POLICY += ("head/sleep", "head/ticket_table")
# The programs of which each seed is a test: how they are built, and on how many ranks they run.
FUZZ = {"fuzz": (("c", "asan"), (3, 4, 5, 2)), "hostile": (("asan",), (4, 3, 5, 4))}
FLAGS = ["-std=c11", "-g", "-O1", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Icsrc", "-Icsrc/include"]
# Fences are no concern of the one place that has one: it only decides who sleeps.
TSAN = ["-fsanitize=thread", "-Wno-tsan"]
ASAN = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def library_sources(*places: str) -> list[str]:
    """The library's C files: all those of a room, or one by name."""
    paths = [ROOT / "csrc" / place for place in places]
    found = [path.glob("*.c") if path.is_dir() else [path.with_suffix(".c")] for path in paths]
    return [str(path) for path in sorted(chain.from_iterable(found))]


def compile_c(cc: list[str], sources: list[str], output: Path, flags: list[str]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [*cc, *FLAGS, *sources, *flags, "-o", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def c_programs(cc: list[str], library: list[str], sources: list[Path], name: str) -> list[Path]:
    """Compile the library's files once and every program against them."""
    folder = PROGRAMS / name
    flags = list(ASAN) if "asan" in name else list(TSAN) if "tsan" in name else []
    if name not in BUILT:
        compile_c(cc, library, folder / "libmpiserve_tested.so", ["-shared", *flags])
        for engine in ROOT.glob("tests/c/engine_*.c"):
            compile_c(cc, [str(engine)], folder / f"{engine.stem}.so", ["-shared", *flags])
    BUILT.add(name)
    flags += [f"-L{folder}", "-lmpiserve_tested", f"-Wl,-rpath,{folder}", "-lm", "-ldl"]
    flags.append("-rdynamic")  # test_regions.c has functions that the library is to find
    for source in sources:
        compile_c(cc, [str(source)], folder / source.stem, flags)
    return [folder / source.stem for source in sources]


def c_jobs(suite: str, keyword: str) -> list[Job]:
    """The programs tests/c/test_*.c, which need no MPI."""
    sources = [path for path in sorted(ROOT.glob("tests/c/test_*.c")) if keyword in path.name]
    cc = [os.environ.get("CC", "cc"), "-Itests/c/no_mpi"]
    programs = (
        c_programs(cc, library_sources("base", "protocol", *POLICY), sources, suite)
        if sources
        else []
    )
    wrap = ["sh", "-c", TO_LOG, "sh"]
    return [Job(f"{suite}/{p.name}", [*wrap, str(p)], dict(os.environ), 60) for p in programs]


def race_jobs(target: Target, keyword: str) -> list[Job]:
    """The programs tests/c/race_*.c, under the thread sanitizer."""
    sources = [path for path in sorted(ROOT.glob("tests/c/race_*.c")) if keyword in path.name]
    library = library_sources(*ROOMS)
    programs = c_programs([target.mpicc], library, sources, "tsan") if sources else []
    wrap = ["sh", "-c", TO_LOG, "sh"]
    # Open MPI's UCX would hook itself into each new thread, before the sanitizer knows of it.
    env = dict(os.environ) | {"UCX_MEM_EVENTS": "no"}
    return [Job(f"tsan/{p.name}", [*wrap, str(p)], env, 120) for p in programs]


def c_mpi_job(target: Target, transport: str, suite: str, program: Path, ranks: int) -> Job:
    """One program on so many ranks."""
    path, python = (os.path.relpath(p, ROOT) for p in (program, target.python))
    n = ["-n", str(ranks)]
    return Job(
        title=f"{target.name} {transport} {suite}/{program.name} n={ranks}",
        command=[target.env["MPIEXEC"], *n, "sh", "-c", TO_LOG, "sh", str(program)],
        env=target.env | {"MPISERVE_TRANSPORT": transport},
        timeout=120,
        ranks=ranks,
        again=f"MPISERVE_TRANSPORT={transport} {python} tests/mpijob.py {' '.join(n)} {path}",
        every_mpi=suite == "c",
    )


def c_mpi_jobs(suite: str, target: Target, transports: list[str], keyword: str) -> list[Job]:
    """The programs tests/c/mpi_*.c, on as many ranks as a comment in each says."""
    sources = [path for path in sorted(ROOT.glob("tests/c/mpi_*.c")) if keyword in path.name]
    library = library_sources(*ROOMS)
    name = f"{suite}-{target.name}"
    programs = c_programs([target.mpicc], library, sources, name) if sources else []
    jobs = []
    for source, program in zip(sources, programs, strict=True):
        ranks = re.search(r"ranks: (\d+)", source.read_text())
        if ranks is None:
            raise RuntimeError(f"{source}: a comment must say how many ranks it needs: ranks: 4")
        jobs += [c_mpi_job(target, t, suite, program, int(ranks[1])) for t in transports]
    return jobs


def fuzz_jobs(
    target: Target, transports: list[str], first: int, seeds: int, seconds: float, keyword: str
) -> Iterator[Job]:
    """The random programs, with sanitizers or plain: so many seeds of each, in so many seconds."""
    library = library_sources(*ROOMS)
    for source, (suites, all_ranks) in FUZZ.items():
        for turn, suite in enumerate(suites if keyword in f"{source}.c" else ()):
            name = f"{suite}-{target.name}"
            path = ROOT / f"tests/c/{source}.c"
            program = c_programs([target.mpicc], library, [path], name)[0]
            for transport in transports:
                ranks = all_ranks[(target.number + turn + transports.index(transport)) % 4]
                job = c_mpi_job(target, transport, suite, program, ranks)
                yield from sessions(job, first, seeds, seconds)


def sessions(job: Job, first: int, seeds: int, seconds: float) -> Iterator[Job]:
    """One job for all seeds; behind one that hangs or crashes, another for those that are left."""
    seed, end = first, time.monotonic() + seconds
    while seed < first + seeds and (left := end - time.monotonic()) > 0:
        arguments = [str(seed), str(first + seeds - seed), f"{left:.1f}"]
        one = replace(
            job,
            title=f"{job.title} {seed}",
            command=[*job.command, *arguments],
            timeout=left + 120,
            tests=[f"seed {seed}"],
        )
        yield one
        begun = [entry["test"] for entry in reports(one.folder, 0)]
        if not begun or begun[-1].startswith("the last was"):
            return
        seed = int(begun[-1].split()[-1]) + 1
