"""Tasks of RADICAL-Pilot: whatever ends, nothing of the job is left. The job here is no MPI job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from mpiserve.launch import guard

# A job whose rank leaves its process group, as those of launchers do, and ignores SIGTERM.
JOB = """\
import os, pathlib, signal, subprocess, sys, time
here = pathlib.Path(sys.argv[1])
rank = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", rank], start_new_session=True)
(here / "new").write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
(here / "new").rename(here / "pids")
print(*sys.argv[3:], flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(7)
"""
LONG = "600"
LIMIT = 60  # seconds, on a busy machine


def started(folder, *words, seconds=LONG, options=(), wrapped=()):
    job = [sys.executable, "-c", JOB, folder, seconds, *words]
    command = [*wrapped, sys.executable, "-m", "mpiserve.launch.guard", *options, "--", *job]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def pids(folder):
    """The job, the guard and the rank."""
    end = time.monotonic() + LIMIT
    while not (folder / "pids").exists():
        assert time.monotonic() < end, "the job has not begun"
        time.sleep(0.01)
    return list(map(int, (folder / "pids").read_text().split()))


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_gone(pids):
    end = time.monotonic() + LIMIT
    while left := [pid for pid in pids if lives(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.01)
    return True


def test_the_status_is_that_of_the_job_and_what_it_leaves_is_killed(tmp_path):
    task = started(tmp_path, "hello", seconds="0.1")
    out, _ = task.communicate(timeout=LIMIT)
    assert (task.returncode, out) == (7, "hello\n")
    assert all_gone(pids(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_task_that_is_ended_ends_the_job(tmp_path, number):
    task = started(tmp_path)
    of_job = pids(tmp_path)
    task.send_signal(number)
    assert all_gone(of_job)
    assert task.wait(LIMIT) == (guard.ASKED if number == signal.SIGTERM else -number)


def test_the_end_of_the_guard_ends_the_job(tmp_path):
    task = started(tmp_path)
    of_job = pids(tmp_path)
    os.kill(of_job[1], signal.SIGKILL)
    assert task.wait(LIMIT) == guard.FAILURE
    assert all_gone(of_job)


def test_the_end_of_what_started_the_task_ends_the_job(tmp_path):
    script = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    executor = started(tmp_path, wrapped=[sys.executable, "-c", script])
    of_job = pids(tmp_path)
    executor.kill()
    assert all_gone(of_job)


def test_a_job_without_a_gateway_in_time_is_ended_and_says_so(tmp_path):
    task = started(tmp_path, options=["--ready-within", "0.3"])
    out, err = task.communicate(timeout=LIMIT)
    why = "the gateway was not ready within 0.3 s"
    assert out.endswith(f"{guard.ENDPOINT}{guard.FAILED}{why}\n")
    assert why in err and task.returncode == guard.ASKED


def test_a_job_that_fails_before_it_is_ready_says_so(tmp_path):
    task = started(tmp_path, seconds="0", options=["--ready-within", "60"])
    out, _ = task.communicate(timeout=LIMIT)
    assert out.endswith(f"{guard.FAILED}the job ended with status 7 before its gateway was ready\n")
    assert task.returncode == 7


@pytest.mark.takes_long
def test_a_job_that_is_ready_lives_on(tmp_path):
    words = [guard.ENDPOINT.strip(), "/tmp/file"]
    task = started(tmp_path, *words, seconds="16", options=["--ready-within", "15"])
    out, _ = task.communicate(timeout=LIMIT)
    assert (task.returncode, out) == (7, f"{guard.ENDPOINT}/tmp/file\n")


@pytest.mark.parametrize("words", [[], ["--"], ["true"], ["--other", "1", "--", "true"]])
def test_a_wrong_use_is_an_error(words, capsys):
    assert guard.main(words) == guard.USAGE
    assert guard.HELP in capsys.readouterr().err


def test_a_program_that_is_missing_is_an_error(tmp_path):
    program = str(tmp_path / "mpiexec")
    command = [sys.executable, "-m", "mpiserve.launch.guard", "--ready-within", "60", "--", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == guard.FAILURE
    assert program in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.startswith(guard.ENDPOINT + guard.FAILED) and program in done.stdout
