"""What a job captures is what was sent and answered, whatever happens to it or to the disk."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from coupling import CONFIG, PYTHON, RUN, write

import mpiserve

THREE = """\
[service.echo]
backend = "echo"
inputs = [{ name = "a", dtype = "float64", shape = [-1, 2], units = "m/s" },
          { name = "n", dtype = "int32", shape = [-1] }]
outputs = [{ name = "b", dtype = "float64", shape = [-1, 2] },
           { name = "m", dtype = "int32", shape = [-1] }]
max_batch_rows = 64
[service.here]
isolate = false
backend = "python"
model = "model:twice"
inputs = [{ name = "x", dtype = "bfloat16", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "bfloat16", shape = [-1, 3] }]
max_batch_rows = 64
[service.child]
backend = "python"
model = "model:twice"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
max_batch_rows = 64
warmup = true
[capture]
"""

# Every rank notes what it sends and gets, by service, step and rank.
SENDS = """\
import ml_dtypes
import mpiserve
import numpy as np

with mpiserve.open() as session:
    rank = session.comm.rank
    rng = np.random.default_rng(rank)
    sent = {}
    for step in range(1, 31):
        session.step()
        rows = 1 + (7 * step + rank) % 60
        for name in ("echo", "here", "child"):
            service = session.service(name)
            if name == "echo":
                x = rng.random((rows, 2)), rng.integers(0, 9, rows, np.int32)
            else:
                x = (rng.random((rows, 3)).astype(service.inputs[0].dtype),)
            y = service(*x)
            y = y if isinstance(y, tuple) else (y,)
            for i, array in enumerate((*x, *y)):
                key = f"{name}.{step}.{i}"
                sent[key] = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
    np.savez(f"sent.{rank}.npz", **sent)
"""


def captured(folder: Path, service: str, step: int, rank: int) -> list[np.ndarray]:
    """Return the arrays of one request."""
    capture = mpiserve.Capture(folder, service)
    steps, ranks = capture.column("step"), capture.column("rank")
    which = np.flatnonzero((steps == step) & (ranks == rank))
    which = which[np.argsort(capture.column("request")[which], kind="stable")]
    inputs, outputs = capture[which]
    return [*inputs.values(), *outputs.values()]


def test_captured_rows_are_those_that_were_sent_bit_for_bit(mpiexec, tmp_path):
    write(tmp_path, SENDS, THREE)
    done = mpiexec(["-n", 5, *RUN, "c.toml", "sim.py"], timeout=90)
    assert done.returncode == 0
    for rank in range(2):
        with np.load(tmp_path / f"sent.{rank}.npz") as sent:
            for name in ("echo", "here", "child"):
                for step in (1, 2, 17, 30):
                    for i, array in enumerate(captured(tmp_path / "capture", name, step, rank)):
                        assert array.tobytes() == sent[f"{name}.{step}.{i}"].tobytes()
    rows = sum(1 + (7 * step + rank) % 60 for step in range(1, 31) for rank in range(2))
    for name in ("echo", "here", "child"):
        assert len(mpiserve.Capture(tmp_path / "capture", name)) == rows
    [index] = [path for path in (tmp_path / "capture").glob("*.h5") if "rank" not in path.name]
    with h5py.File(index) as file:
        assert {name: group["rank"].shape[0] for name, group in file.items()} == {
            "echo": rows,
            "here": rows,
            "child": rows,
        }
        assert file["here"]["inputs/x"][:].any()
        assert file.attrs["mpiserve"] == mpiserve.__version__
        assert file["echo/inputs/a"].attrs["units"] == "m/s"
    assert len([*(tmp_path / "capture").iterdir()]) == 4  # a file of each rank, and the index


# What a rank sends in a step: bits of all kinds, NaN too, which whoever knows both can make again.
ROWS = """\
import numpy as np

def rows_of(rank, step):
    bits = np.random.default_rng([rank, step]).integers(0, 256, (1000, 12), np.uint8)
    return bits.view(np.float32)
"""

SENDS_A_MILLION = f"""\
import mpiserve
{ROWS}
with mpiserve.open() as session:
    rank = session.comm.rank
    service = session.service("twice")
    for step in range(1, 501):
        session.step()
        x = rows_of(rank, step)
        assert service(x).tobytes() == x.tobytes()
"""


@pytest.mark.takes_long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["echo", "python"])
def test_a_million_rows_are_those_that_were_sent_bit_for_bit(mpiexec, tmp_path, backend):
    config = CONFIG.replace("model:twice", "same:same") if backend == "python" else IN_C
    write(tmp_path, SENDS_A_MILLION, captures('on_full = "wait"\n', config))
    (tmp_path / "same.py").write_text("def same(x):\n    return x\n")
    assert mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=180).returncode == 0
    names: dict[str, Any] = {}
    exec(ROWS, names)
    sent = [names["rows_of"](rank, step) for rank in range(2) for step in range(1, 501)]
    capture = mpiserve.Capture(tmp_path / "capture")
    assert len(capture) == 1_000_000
    columns = [capture.column(key) for key in ("row_in_batch", "request", "step", "rank")]
    order = np.lexsort(columns)
    for side in capture[:]:
        [array] = side.values()
        assert array[order].tobytes() == np.concatenate(sent).tobytes()


MANY = """\
import sys

import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice = session.service("twice")
    x = np.zeros((50, 3), np.float32)
    for step in range(int(sys.argv[1])):
        session.step()
        x[:, 0] = step
        assert (twice(x)[:, 0] == 2 * step).all()
        if step == 0:
            print("begun", flush=True)
    print("right", flush=True)
"""

IN_C = CONFIG.replace('backend = "python"\nmodel = "model:twice"\n', 'backend = "echo"\n')
ECHOED = MANY.replace("2 * step", "step")
# As fast as it can, a simulation sends more than the writer stores where cores are few.
STEADY = ECHOED.replace("import sys", "import sys\nimport time").replace(
    "        session.step()", "        session.step()\n        time.sleep(0.001)"
)


def captures(settings: str = "", config: str = CONFIG) -> str:
    return f"{config}[capture]\n{settings}"


@pytest.mark.takes_long
def test_the_environment_alone_turns_a_capture_on_and_off(mpiexec, tmp_path):
    write(tmp_path, MANY, CONFIG)
    command = ["-n", 2, *RUN, "c.toml", "sim.py", 5]
    assert mpiexec(command, env={"MPISERVE_CAPTURE": "here"}).returncode == 0
    assert len(mpiserve.Capture(tmp_path / "here")) == 250
    write(tmp_path, MANY, captures())
    assert mpiexec(command, env={"MPISERVE_CAPTURE": "off"}).returncode == 0
    assert not (tmp_path / "capture").exists()


@pytest.mark.takes_long
def test_a_share_is_the_same_requests_in_each_run_and_steps_are_left_out(mpiexec, tmp_path):
    seen = []
    for run in "ab":
        write(tmp_path, MANY, captures(f'folder = "{run}"\nshare = 0.3\nseed = 7\n'))
        assert mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 200]).returncode == 0
        seen.append(np.unique(mpiserve.Capture(tmp_path / run).column("step")).tolist())
    assert seen[0] == seen[1]
    assert 30 < len(seen[0]) < 90
    write(tmp_path, MANY, captures('folder = "c"\nevery_steps = 10\n'))
    assert mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 95]).returncode == 0
    steps = np.unique(mpiserve.Capture(tmp_path / "c").column("step"))
    assert steps.tolist() == [*range(10, 91, 10)]


@pytest.mark.takes_long
@pytest.mark.parametrize("on_full", ["drop", "wait"])
def test_a_full_buffer_drops_and_counts_or_waits(mpiexec, tmp_path, on_full):
    settings = f'on_full = "{on_full}"\nbuffer_bytes = {2**20}\ncompression = "gzip"\n'
    write(tmp_path, ECHOED, captures(settings + "compression_level = 9\n", IN_C))
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 3000])
    assert done.returncode == 0 and "right" in done.stdout
    rows = len(mpiserve.Capture(tmp_path / "capture"))
    if on_full == "wait":
        assert rows == 150_000 and "dropped" not in done.stderr
        return
    dropped = (
        int(done.stderr.partition(" dropped")[0].split()[-1]) if "dropped" in done.stderr else 0
    )
    assert rows + dropped == 150_000


def test_a_capture_that_cannot_be_written_is_one_line_and_the_run_goes_on(mpiexec, tmp_path):
    (tmp_path / "file").write_text("")
    write(tmp_path, MANY, captures('folder = "file/capture"\n'))
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 5])
    assert done.returncode == 0 and "right" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "capture" in line]
    assert "there is no capture of rank 1: NotADirectoryError" in line


# Root may write anywhere, but for this.
AS_OTHERS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if not os.geteuid() else ()


@pytest.mark.skipif(not shutil.which("setpriv"), reason="there is no setpriv (util-linux)")
def test_a_folder_without_permission_is_one_line_and_the_run_goes_on(mpiexec, tmp_path):
    (tmp_path / "capture").mkdir(mode=0o500)
    write(tmp_path, MANY, captures())
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 5], wrapped=AS_OTHERS)
    assert done.returncode == 0 and "right" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "capture" in line]
    assert "there is no capture of rank 1: PermissionError" in line
    assert not [*(tmp_path / "capture").iterdir()]


KILLS = """\
import os
import signal
import time
from pathlib import Path

import mpiserve
import numpy as np

def writers():
    mine = f"CAPTURE_TEST={os.environ['CAPTURE_TEST']}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            is_writer = b"capture_writer" in (path / "cmdline").read_bytes()
            if is_writer and mine in (path / "environ").read_bytes().split(b"\\0"):
                yield int(path.name)
        except OSError:
            continue

with mpiserve.open() as session:
    twice = session.service("twice")
    x = np.ones((50, 3), np.float32)
    end = time.monotonic() + 60
    while not [*Path("capture").glob("*.h5")]:
        assert (twice(x) == 2).all() and time.monotonic() < end
        time.sleep(0.01)
    [writer] = writers()
    os.kill(writer, signal.SIGKILL)
    for _ in range(200):
        assert (twice(x) == 2).all()
        time.sleep(0.005)
    print("right", flush=True)
"""


@pytest.mark.takes_long
def test_a_writer_that_is_killed_stops_the_capture_and_not_the_run(mpiexec, tmp_path):
    write(tmp_path, KILLS, captures("flush_s = 0.05\n"))
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], env={"CAPTURE_TEST": str(tmp_path)})
    assert done.returncode == 0 and "right" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "has stopped" in line]
    assert "its writer has ended with status -9" in line
    inputs, outputs = mpiserve.Capture(tmp_path / "capture")[:]
    assert len(inputs["x"]) and (outputs["y"] == 2 * inputs["x"]).all()


# The writer may write so many bytes to a file.
LIMITED = """\
import resource, sys

if "mpiserve.observe.capture_writer" in sys.orig_argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
"""


def test_a_disk_that_fills_stops_the_capture_and_not_the_run(mpiexec, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LIMITED)
    write(tmp_path, ECHOED, captures("flush_s = 0.05\nbuffer_bytes = 1048576\n", IN_C))
    env = {"PYTHONPATH": str(tmp_path), "MPISERVE_TRANSPORT": "shared"}
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 20000], env=env)
    assert done.returncode == 0 and "right" in done.stdout
    [line] = [line for line in done.stderr.splitlines() if "has stopped" in line]
    assert "File too large" in line
    for path in (tmp_path / "capture").iterdir():
        with h5py.File(path) as file:
            assert file.attrs["head"] == 1


def kill(process: subprocess.Popen[str], folder: Path) -> list[int]:
    """Kill all processes of a job at once, its writers too."""
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"CAPTURE_TEST={folder}".encode() in (path / "environ").read_bytes().split(b"\0"):
                pids.append(int(path.name))
        except OSError:
            continue
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    return pids


@pytest.mark.parametrize("n", [1, pytest.param(20, marks=pytest.mark.takes_long)])
def test_a_job_that_is_killed_loses_at_most_two_seconds_and_no_file(tmp_path, n):
    import mpijob

    write(tmp_path, STEADY, captures("flush_s = 0.25\n", IN_C))
    env = mpijob.settings() | {"CAPTURE_TEST": str(tmp_path), "MPISERVE_CAPTURE": "capture"}
    for number in range(n):
        env["MPISERVE_CAPTURE"] = f"capture{number}"
        command = [env["MPIEXEC"], "-n", "2", *RUN, "c.toml", "sim.py", "100000000"]
        job = subprocess.Popen(
            command,
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert job.stdout and "begun" in job.stdout.readline()
        time.sleep(1 + 3 * random.random())
        end = time.time()
        assert len(kill(job, tmp_path)) >= 3
        folder = tmp_path / f"capture{number}"
        for path in folder.glob("[0-9a-f]*.h5"):
            with h5py.File(path) as file:
                assert file["twice/step"].shape == file["twice/rank"].shape
        capture = mpiserve.Capture(folder)
        inputs, _ = capture[len(capture) - 1]
        assert inputs["x"][0] == capture.column("step")[-1] - 1
        assert end - capture.column("time").max() < 2
        # Nothing is there twice: parts that a larger one holds do not count.
        keys = np.stack([capture.column("request"), capture.column("row_in_batch")])
        assert np.unique(keys, axis=1).shape[1] == len(capture)


@pytest.mark.takes_long
def test_rows_of_a_rank_that_is_killed_are_all_there(tmp_path):
    import mpijob

    write(tmp_path, ECHOED, captures("", IN_C))
    env = mpijob.settings()
    command = [env["MPIEXEC"], "-n", "2", *RUN, "c.toml", "sim.py", "100000000"]
    job = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert job.stdout and "begun" in job.stdout.readline()
    job.kill()
    job.wait()
    whole, deadline = [], time.monotonic() + 30
    while not whole and time.monotonic() < deadline:
        time.sleep(0.1)
        whole = [*(tmp_path / "capture").glob("*-rank000001.h5")]
    assert whole
    assert (np.diff(mpiserve.Capture(whole[0]).column("step")) <= 1).all()


def tool(folder: Path, *args: str) -> str:
    command = [PYTHON, "-P", "-m", "mpiserve", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


NUDGED = """\
import numpy as np

def twice(x):
    return 2 * x + np.where(x == 3, np.float32(0.5), np.float32(0))
"""


@pytest.mark.takes_long
def test_a_capture_is_shown_merged_exported_and_replayed(mpiexec, tmp_path):
    write(tmp_path, MANY, captures())
    assert mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 5]).returncode == 0
    shown = tool(tmp_path, "capture", "info", "capture")
    assert "twice" in shown and "250" in shown
    tool(tmp_path, "capture", "merge", "capture", "-o", "all.h5", "--compression", "gzip")
    tool(tmp_path, "capture", "export", "all.h5", "-o", "all.npz")
    with np.load(tmp_path / "all.npz") as arrays:
        assert (arrays["outputs.y"] == 2 * arrays["inputs.x"]).all()
        assert (arrays["inputs.x"][:, 0] == arrays["step"] - 1).all()
        assert len(arrays["rank"]) == 250
    same = tool(tmp_path, "replay", "capture")
    assert "250 rows in 5 batches" in same and "row " not in same
    (tmp_path / "model.py").write_text(NUDGED)
    picture = ["--picture", "differences.png"]
    other = tool(tmp_path, "replay", "all.h5", "c.toml", "--worst", "1", *picture)
    assert "row 150 (rank 0, step 4): 0.5" in other
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.takes_long
def test_a_loader_of_torch_reads_a_capture_in_other_processes(mpiexec, tmp_path):
    from torch.utils.data import DataLoader

    write(tmp_path, MANY, captures())
    assert mpiexec(["-n", 2, *RUN, "c.toml", "sim.py", 5]).returncode == 0
    capture = mpiserve.Capture(tmp_path / "capture")
    loader = DataLoader(capture, batch_size=32, shuffle=True, num_workers=1)
    pairs = [(inputs["x"], outputs["y"]) for inputs, outputs in loader]
    assert sum(len(x) for x, _ in pairs) == 250
    assert all((y == 2 * x).all() for x, y in pairs)
