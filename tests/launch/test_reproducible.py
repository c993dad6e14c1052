"""A reproducible service gives the same bits in each run, and in a replay of its capture."""

from __future__ import annotations

import subprocess
from itertools import cycle, islice

import numpy as np
import onnx
import pytest
import torch
from coupling import PYTHON, RUN, write
from model_files import info

WIDTH, PASSES, STEPS = 24, 5, 6
LEAST = 4  # rows of all ranks: a row alone is rounded in another way than several at once
WAYS = (2, "shared"), (4, "rma"), (2, "rma"), (4, "shared")  # simulation ranks, transport
RUNS = [*islice(cycle(WAYS), 10)]
ENGINES = {
    "torch": 'backend = "torch"\nmodel = "nets:net"\nengine = "eager"',
    "compiled": 'backend = "torch"\nmodel = "nets:net"\nengine = "compiled"',
    "onnx": 'backend = "onnx"\nmodel = "net.onnx"',
}
TENSORS = f"""\
inputs = [{{ name = "x", dtype = "float32", shape = [-1, {WIDTH}] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, {WIDTH}] }}]
max_batch_rows = 4096
reproducible = true
"""
NETS = f"""\
import torch

def net():
    torch.manual_seed(3)
    layers = torch.nn.Linear({WIDTH}, 200), torch.nn.Tanh(), torch.nn.Linear(200, {WIDTH})
    return torch.nn.Sequential(*layers).eval()
"""
# The same field by any number of ranks, each of which is late by chance.
SIMULATION = f"""\
import sys
import time
import numpy as np
import mpiserve

with mpiserve.open() as session:
    rank, size = session.comm.rank, session.comm.size
    slow, answers = np.random.default_rng(), []
    for step in range({PASSES * STEPS}):
        rows = {LEAST} + 17 * (step % {STEPS})
        field = np.random.default_rng(step % {STEPS}).standard_normal((rows, {WIDTH}), np.float32)
        session.step()
        for name in sys.argv[2:]:
            time.sleep(0.003 * slow.random())
            mine = np.array_split(field, size)[rank]
            answers += session.comm.gather(session.service(name)(mine), 0) or []
    if rank == 0:
        np.save(sys.argv[1], np.concatenate(answers))
"""


def net():
    names = {}
    exec(NETS, names)
    return names["net"]()


def export_onnx(path, scale=1):
    """Write the same network as a file for ONNX Runtime."""
    weights = [scale * value.detach().numpy() for value in net().parameters()]
    names = ["w1", "b1", "w2", "b2"]
    node = onnx.helper.make_node
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        node("Tanh", ["h"], ["t"]),
        node("Gemm", ["t", "w2", "b2"], ["y"], transB=1),
    ]
    side = [info(name, onnx.TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y")]
    given = [onnx.numpy_helper.from_array(w, name) for w, name in zip(weights, names, strict=True)]
    graph = onnx.helper.make_graph(nodes, "net", side[:1], side[1:], given)
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def run(mpiexec, folder, ranks, transport, *engines):
    job = ["-n", ranks + 1, *RUN, "c.toml", "sim.py", "answers.npy", *engines]
    done = mpiexec(job, timeout=200, env={"MPISERVE_TRANSPORT": transport})
    assert done.returncode == 0
    passes = np.split(np.load(folder / "answers.npy"), PASSES)
    for other in passes[1:]:
        np.testing.assert_array_equal(other.view(np.int32), passes[0].view(np.int32))
    return passes[0]


def replay(folder):
    command = [PYTHON, "-m", "mpiserve", "replay", "capture"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def prepare(folder, engines, capture="[capture]\n"):
    tables = [f"[service.{name}]\n{ENGINES[name]}\n{TENSORS}" for name in engines]
    write(folder, SIMULATION, "".join(tables) + capture)
    (folder / "nets.py").write_text(NETS)
    if "onnx" in engines:
        export_onnx(folder / "net.onnx")


def test_the_bits_depend_on_what_is_in_a_batch():
    """If they did not, the other tests could not fail. (Those of ONNX Runtime do not, here.)"""
    x = torch.randn(LEAST, WIDTH)
    with torch.inference_mode():
        assert not torch.equal(net()(x)[:1], net()(x[:1]))


@pytest.mark.every_mpi
@pytest.mark.takes_long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ENGINES)
def test_ten_runs_give_the_same_bits_on_2_and_4_ranks_and_so_does_a_replay(
    mpiexec, tmp_path, engine
):
    prepare(tmp_path, [engine])
    first, *others = (run(mpiexec, tmp_path, *way, engine) for way in RUNS)
    for again in others:
        np.testing.assert_array_equal(again.view(np.int32), first.view(np.int32))
    done = replay(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    batches = len(RUNS) * PASSES * STEPS
    rows = len(RUNS) * PASSES * len(first)
    assert f"service {engine}: {rows} rows in {batches} batches" in done.stdout
    assert "captured in part" not in done.stdout
    if engine == "onnx":  # other weights in the same file
        export_onnx(tmp_path / "net.onnx", scale=1 + 1e-6)
        done = replay(tmp_path)
        assert done.returncode == 1, done.stdout
        assert "of service 'onnx' should have the same bits (reproducible)" in done.stderr
