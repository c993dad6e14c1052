"""`python -m mpiserve doctor` finds what was planted, and nothing in a good set-up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from coupling import CONFIG, PYTHON, alone, is_mpich
from jobs import Target

DOCTOR = (PYTHON, "-m", "mpiserve", "doctor")
GOOD = {"OMP_NUM_THREADS": "1", "MPISERVE_TRANSPORT": "auto"}
MULTIPLE = """\
import mpi4py
import mpiserve
mpi4py.rc.thread_level = "LEVEL"
from mpi4py import MPI
from mpiserve.cli import app
app(["doctor"])
"""
LATE_CLOCK = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *t) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(id, t);
  if (!failed && id == CLOCK_REALTIME) t->tv_sec -= 7;
  return failed;
}
"""
# What is planted by variables alone: what finds it, and the setting that mends it.
PLANTED = {
    "OMP_NUM_THREADS": ("8", "threads on", "OMP_NUM_THREADS=1"),
    "MPISERVE_TRANSPORT": ("rma", "from using shared memory", "MPISERVE_TRANSPORT=auto"),
    "MPISERVE_THREAD": ("off", "wait while a model runs", "MPISERVE_THREAD unset"),
    "CUDA_VISIBLE_DEVICES": ("0,1,2,3,4,5,6,7,8", "GPU(s): models", "CUDA_VISIBLE_DEVICES unset"),
    "MPISERVE_OPEN_TIMEOUT": ("soon", "'soon' is not a number", "MPISERVE_OPEN_TIMEOUT=60"),
}


def findings(done):
    printed = done.stdout.splitlines()
    starts = [i for i, line in enumerate(printed) if line.startswith(("error: ", "warning: "))]
    return [(*printed[i].split(": ", 1), printed[i + 1].removeprefix("  remedy: ")) for i in starts]


def found(done):
    """Return what was found of this job: (severity, text, remedy)."""
    others = "left by a dead job: "  # of other tests, on this machine
    return [finding for finding in findings(done) if not finding[1].startswith(others)]


def only(done, severity, text, remedy):
    """Check that one thing was found, and which."""
    assert done.returncode not in (0, 124)
    ((how, what, mend),) = found(done)
    assert how == severity and text in what and remedy in mend


def test_nothing_is_found_in_a_good_set_up(mpiexec, on_hosts):
    for done in (
        mpiexec(["-n", 2, *DOCTOR], env=GOOD),
        on_hosts({"n1": 1, "n2": 1}, ["-n", 2, *DOCTOR], env=GOOD),
    ):
        assert found(done) == []
        assert done.returncode == (1 if findings(done) else 0)
        assert f"{len(findings(done))} finding(s)" in done.stdout
    assert "pairs of ranks: 0 over shared, 1 over rma" in done.stdout
    assert "a Put between nodes waits for the target" in done.stdout


def test_five_wrong_variables_are_found(mpiexec):
    wrong = {name: value for name, (value, _, _) in PLANTED.items()}
    done = mpiexec(["-n", 2, *DOCTOR], env=wrong)
    assert done.returncode == 1
    for _, text, remedy in PLANTED.values():
        assert any(text in what and remedy in mend for _, what, mend in found(done))
    assert len(found(done)) == len(PLANTED)


def test_a_launcher_of_another_mpi_is_found(tmp_path):
    wrong = {"OMPI_COMM_WORLD_SIZE" if is_mpich() else "PMI_SIZE": "4"}
    done = alone(*DOCTOR, cwd=tmp_path, env=GOOD | wrong)
    only(done, "error", "the world has 1 rank, but the launcher started 4", "srun --mpi=pmi")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core only")
def test_ranks_on_one_core_are_found(mpiexec):
    done = mpiexec(["-n", 2, "taskset", "-c", 0, *DOCTOR], env=GOOD)
    assert done.returncode not in (0, 124)
    assert any("bound to the same 1 core(s)" in what for _, what, _ in found(done))


@pytest.mark.every_mpi
def test_ranks_that_do_not_yield_are_found(on_hosts):
    spinning = {
        "MPIR_CVAR_CH4_PROGRESS_THROTTLE": "0",
        "OMPI_MCA_mpi_yield_when_idle": "0",
    }
    ranks = 2 * len(os.sched_getaffinity(0))
    done = on_hosts({"n1": ranks}, ["-n", ranks, *DOCTOR], env=GOOD | spinning)
    remedy = "PROGRESS_THROTTLE=1" if is_mpich() else "oversubscribe"
    only(done, "warning", "do not yield their cores", remedy)


@pytest.mark.takes_long
def test_a_window_beyond_memory_is_found(mpiexec, tmp_path):
    (tmp_path / "c.toml").write_text(f"{CONFIG}pool_bytes = {2**44}\n")
    done = mpiexec(["-n", 2, *DOCTOR, "c.toml"], env=GOOD)
    only(done, "error", "of memory left", "pool_bytes")


@pytest.mark.takes_long
def test_a_wrong_clock_is_found(mpiexec, tmp_path):
    (tmp_path / "late.c").write_text(LATE_CLOCK)
    library = tmp_path / "late.so"
    compiler = Target("", Path(sys.prefix)).mpicc
    command = [compiler, "-shared", "-fPIC", "-o", library, tmp_path / "late.c", "-ldl"]
    subprocess.run(command, check=True)
    late = ["env", f"LD_PRELOAD={library}", *DOCTOR]
    done = mpiexec(["-n", 1, *DOCTOR, ":", "-n", 1, *late], env=GOOD)
    only(done, "warning", "-7.0", "chrony")


@pytest.mark.every_mpi
def test_a_thread_level_that_does_not_fit_is_found(on_hosts):
    level = "multiple" if is_mpich() else "single"
    other = [PYTHON, "-c", MULTIPLE.replace("LEVEL", level)]
    slots = {"n1": 1, "n2": 1}
    done = on_hosts(slots, ["-n", 1, *DOCTOR], ["-n", 1, *other], env=GOOD)
    if is_mpich():
        only(done, "error", "rank 1 runs at thread level multiple and rank 0 at", "DEFAULT_THREAD")
    else:
        only(done, "warning", "rank 1 runs at thread level single", "import mpiserve before")


@pytest.mark.takes_long
def test_shared_memory_forced_between_nodes_is_found(on_hosts):
    wrong = GOOD | {"MPISERVE_TRANSPORT": "shared"}
    done = on_hosts({"n1": 1, "n2": 1}, ["-n", 2, *DOCTOR], env=wrong)
    only(done, "error", "on several nodes", "MPISERVE_TRANSPORT=auto")
