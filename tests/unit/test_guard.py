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
READY = ("--ready-within", "60")
ITS = {"start_new_session": True}  # as tasks have: the tests may run in one whose leader has ended
# As `python -m mpiserve.launch.guard`, with other seconds.
GUARD = """\
import sys
from mpiserve.launch import guard
guard.REAP, guard.GRACE = 0.1, float(sys.argv[1])
sys.exit(guard.main(sys.argv[2:]))
"""


def guarded(folder, *job, grace="0.2", options=(), wrapped=()):
    command = [*wrapped, sys.executable, "-c", GUARD, grace, *options, "--", *map(str, job)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder, **ITS)


def started(folder, *words, seconds=LONG, **settings):
    return guarded(folder, sys.executable, "-c", JOB, folder, seconds, *words, **settings)


def shell(folder, script, **settings):
    return guarded(folder, "sh", "-c", script, **settings)


def appears(file):
    end = time.monotonic() + LIMIT
    while not file.exists():
        assert time.monotonic() < end, file
        time.sleep(0.01)


def pids(folder):
    """The job, the guard and the rank."""
    appears(folder / "pids")
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
    task = started(tmp_path, options=READY)
    of_job = pids(tmp_path)
    os.kill(of_job[1], signal.SIGKILL)
    assert task.wait(LIMIT) == 128 + signal.SIGKILL
    assert all_gone(of_job)
    why = "the process that guards the job was killed"
    assert task.stdout.read().endswith(f"{guard.ENDPOINT}{guard.FAILED}{why}\n")


def test_the_end_of_what_started_the_task_ends_the_job(tmp_path):
    script = "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)"
    executor = started(tmp_path, wrapped=[sys.executable, "-c", script])
    of_job = pids(tmp_path)
    executor.kill()
    assert all_gone(of_job)


def test_a_job_without_a_gateway_in_time_is_ended_and_says_so(tmp_path):
    options = ["--ready-within", "2"]
    task = shell(tmp_path, "echo loads; echo $$ > pid; exec sleep 600", options=options)
    out, err = task.communicate(timeout=LIMIT)
    why = "the gateway was not ready within 2 s"
    assert out == f"loads\n{guard.ENDPOINT}{guard.FAILED}{why}\n"
    assert why in err and task.returncode == guard.ASKED
    assert all_gone([int((tmp_path / "pid").read_text())])


def test_a_job_that_fails_before_it_is_ready_says_so(tmp_path):
    task = started(tmp_path, seconds="0", options=READY)
    out, _ = task.communicate(timeout=LIMIT)
    assert out.endswith(f"{guard.FAILED}the job ended with status 7 before its gateway was ready\n")
    assert task.returncode == 7


@pytest.mark.takes_long
def test_a_job_that_is_ready_lives_on(tmp_path):
    options = ["--ready-within", "2"]
    task = shell(tmp_path, f"echo '{guard.ENDPOINT}/tmp/file'; sleep 3; exit 7", options=options)
    out, _ = task.communicate(timeout=LIMIT)
    assert (task.returncode, out) == (7, f"{guard.ENDPOINT}/tmp/file\n")


# ---- how jobs end


def test_a_rank_has_time_to_save_when_its_launcher_has_ended(tmp_path):
    rank = """trap 'sleep 0.5; touch saved; exit' TERM; touch begun; while :; do sleep 0.1; done"""
    launcher = f'({rank}) & rank=$!; trap "kill $rank; exit" TERM; wait'
    task = shell(tmp_path, launcher, grace=str(LIMIT))
    appears(tmp_path / "begun")
    task.terminate()
    assert task.wait(LIMIT) == guard.ASKED
    assert (tmp_path / "saved").exists()


def test_what_is_left_of_a_job_that_ended_well_has_time(tmp_path):
    task = shell(tmp_path, "(sleep 0.5; touch saved) & exit 0")
    assert task.wait(LIMIT) == 0
    assert (tmp_path / "saved").exists()


def test_what_is_left_of_a_job_that_ended_well_ends_with_the_task(tmp_path):
    task = shell(tmp_path, "(touch begun; exec sleep 600) & exit 0")
    appears(tmp_path / "begun")
    task.terminate()
    assert task.wait(LIMIT) == 0


def test_an_orphan_that_has_ended_is_no_zombie(tmp_path):
    task = shell(tmp_path, "(sh -c 'echo $$ > new; mv new orphan' &); exec sleep 600")
    appears(tmp_path / "orphan")
    end = time.monotonic() + LIMIT
    orphan = int((tmp_path / "orphan").read_text())
    while os.path.exists(f"/proc/{orphan}"):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.01)
    task.terminate()
    assert task.wait(LIMIT) == guard.ASKED


# ---- what jobs write


@pytest.mark.parametrize("read", [True, False])
def test_a_job_that_writes_without_end_can_be_ended(tmp_path, read):
    task = shell(tmp_path, "touch begun; exec yes", options=READY)
    appears(tmp_path / "begun")
    task.terminate()
    if read:
        assert guard.FAILED in task.communicate(timeout=LIMIT)[0]
    assert task.wait(LIMIT) == guard.ASKED


def test_a_job_whose_output_nobody_takes_goes_on(tmp_path):
    task = shell(tmp_path, "echo; touch begun; sleep 0.5; echo; exit 7", options=READY)
    task.stdout.close()
    assert task.wait(LIMIT) == 7


def test_a_service_is_heard_to_its_end(tmp_path):
    script = f"trap 'sleep 0.2; echo saved; exit' TERM; echo '{guard.ENDPOINT}/f'; touch begun; "
    task = shell(tmp_path, script + "while :; do sleep 0.1; done", options=READY, grace=str(LIMIT))
    appears(tmp_path / "begun")
    task.terminate()
    out, _ = task.communicate(timeout=LIMIT)
    assert out == f"{guard.ENDPOINT}/f\nsaved\n"


def test_what_is_not_ascii_does_not_hide_the_endpoint(tmp_path):
    word = r"printf 'x\303\251\n'"
    script = f"{word}; sleep 0.2; echo '{guard.ENDPOINT}/f'; sleep 0.5; {word}"
    out, _ = shell(tmp_path, script, options=READY).communicate(timeout=LIMIT)
    assert out == f"x??\n{guard.ENDPOINT}/f\nx\u00e9\n"


# ---- what cannot begin


@pytest.mark.parametrize("chains", [[[2], [1]], [[1], [1]]])
def test_a_task_whose_executor_has_ended_does_not_begin(monkeypatch, capfd, chains):
    monkeypatch.setattr(guard, "above", iter(chains).__next__)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: pid)
    monkeypatch.setattr(os, "getsid", lambda pid: pid)
    assert guard.main(["--", "true"]) == guard.FAILURE
    assert "one of them has ended" in capfd.readouterr().err


@pytest.mark.parametrize("words", [[], ["--"], ["true"], ["--other", "1", "--", "true"]])
def test_a_wrong_use_is_an_error(words, capsys):
    assert guard.main(words) == guard.USAGE
    assert guard.HELP in capsys.readouterr().err


def test_a_program_that_is_missing_is_an_error(tmp_path):
    command = [sys.executable, "-m", "mpiserve.launch.guard", *READY, "--", tmp_path / "mpiexec"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, **ITS)
    assert done.returncode == guard.FAILURE
    assert str(tmp_path / "mpiexec") in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.startswith(f"{guard.ENDPOINT}{guard.FAILED}") and "mpiexec" in done.stdout
