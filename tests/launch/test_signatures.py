"""Services without inputs and outputs: every rank knows those that the files say."""

from __future__ import annotations

import pytest
from coupling import RUN, write
from model_files import examples, export, info, write_onnx
from onnx import TensorProto

CONFIG = """\
[service.flame]
backend = "torch"
model = "flame.pt2"
replicas = 2
max_batch_rows = 64

[service.net]
backend = "onnx"
model = "net.onnx"
outputs = [{ name = "y", dtype = "float32", shape = [-1, 2] }]
max_batch_rows = 64
"""

SIMULATION = """\
import mpiserve
import numpy as np

with mpiserve.open() as session:
    for name in ("flame", "net"):
        service = session.service(name)
        print([(t.name, t.dtype, t.shape) for t in (*service.inputs, *service.outputs)])
    x, t = np.ones((5, 3), np.float32), np.zeros(5, np.float32)
    result = session.service("flame")(x=x, t=t)
    assert (result.rate == 0).all() and (result.heat == 3).all()
    assert (session.service("net")(x) == 3).all()
    print("right", flush=True)
"""


@pytest.mark.takes_long
def test_services_are_what_the_files_say(mpiexec, tmp_path):
    write(tmp_path, SIMULATION, CONFIG)
    export(tmp_path / "flame.pt2")
    write_onnx(tmp_path / "net.onnx")
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"], timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[('x', 'float32', (-1, 3)), ('t', 'float32', (-1,)), "
        "('rate', 'float32', (-1, 2)), ('heat', 'float64', (-1,))]",
        "[('x', 'float32', (-1, 3)), ('y', 'float32', (-1, 2))]",
        "right",
    ]
    for text in ("(read from flame.pt2)", "inputs x float32 [-1, 3] (read from net.onnx)"):
        assert done.stderr.count(text) == 1, done.stderr


@pytest.mark.takes_long
def test_a_file_of_fixed_rows_starts_nothing(mpiexec, tmp_path):
    write(tmp_path, SIMULATION, CONFIG)
    export(tmp_path / "flame.pt2", args=tuple(tensor[:1] for tensor in examples()), dynamic=())
    write_onnx(tmp_path / "net.onnx")
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 2
    text = "mpiserve: c.toml: service.flame.inputs: missing; the input 'x' of flame.pt2 is "
    assert done.stderr.count(f"{text}float32 [1, 3]: its first dimension is not dynamic") == 1


@pytest.mark.takes_long
def test_a_contradiction_starts_nothing(mpiexec, tmp_path):
    write(tmp_path, SIMULATION, CONFIG)
    export(tmp_path / "flame.pt2")
    write_onnx(tmp_path / "net.onnx", outputs=[info("y", TensorProto.FLOAT, ["rows", 7])])
    done = mpiexec(["-n", 4, *RUN, "c.toml", "sim.py"])
    assert done.returncode == 2
    text = "'y': the configuration says float32 [-1, 2], and net.onnx float32 [rows, 7]"
    assert done.stderr.count(f"mpiserve: c.toml: service.net.outputs: {text}") == 1
