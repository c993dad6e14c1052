"""Each way in which a real model fails: the client gets the error, and other services go on."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from coupling import RUN
from safetensors.torch import save_file

MODELS = """\
import time

import numpy as np
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(3, 8)
        self.fc2 = torch.nn.Linear(8, 3)

    def forward(self, x):
        # The head asks the other rank for its part of the sum, and waits.
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
            if x[0, 0] == -2:
                raise ValueError("bad at one rank")
            if x[0, 0] == -3:
                time.sleep(1000)
        return x + self.fc2(torch.tanh(self.fc1(x)))


def sharded():
    return torch.nn.Sequential(Block())


class Hungry(torch.nn.Module):
    def forward(self, x):
        return x + (torch.empty(2**50).sum() if x[0, 0] == -1 else 1)


def twice(x):
    return 2 * x


class TooBig:
    def __init__(self):
        self.table = np.ones(2**50)
"""

HEAD = """
[service.{name}]
{settings}
inputs = [{{ name = "{x}", dtype = "{dtype}", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
max_batch_rows = 64
"""
FLOATS = {"x": "x", "dtype": "float32"}
TOKENS = {"x": "tokens", "dtype": "int64"}
SHARDED = """\
model = "models:sharded"
tensor_parallel = 2
peer_timeout_s = 15
options = { injection_policy = { "models:Block" = [".fc2"] } }
"""

SERVICES = {
    "hangs": (SHARDED, FLOATS),
    "raises": (SHARDED, FLOATS),
    "hungry": ('backend = "torch"\nmodel = "models:Hungry"', FLOATS),
    "gathers": ('backend = "onnx"\nmodel = "gathers.onnx"\nwarmup = false', FLOATS),
    "twice": ('backend = "python"\nmodel = "models:twice"', FLOATS),
    "missing": ('backend = "onnx"\nmodel = "none.onnx"', FLOATS),
    "misfit": ('backend = "onnx"\nmodel = "misfit.onnx"', FLOATS),
    "alien": ('backend = "torch"\nmodel = "alien"\ntask = "embed"', TOKENS),
    "unfit": (
        'backend = "torch"\nmodel = "models:Block"\noptions = { weights = "w.safetensors" }',
        FLOATS,
    ),
    "too_big": ('backend = "python"\nmodel = "models:TooBig"', FLOATS),
}

SIMULATION = """\
import mpiserve
import numpy as np

TIMEOUT = 60


def say(name, call):
    try:
        call()
        text = "right"
    except mpiserve.Error as error:
        text = f"{type(error).__name__}: {error}"
    print(f"{name}: {text}", flush=True)


with mpiserve.open() as session:
    twice = session.service("twice")

    def others_go_on():
        x = np.ones((2, 3), np.float32)
        assert (twice(x, timeout=TIMEOUT) == 2 * x).all()

    for name in ("missing", "misfit", "alien", "unfit", "too_big"):
        say(name, lambda: session.service(name))
    stuck = session.service("hangs").submit(np.full((2, 3), -3, np.float32))
    for name, bad in (("raises", -2), ("hungry", -1), ("gathers", 0)):
        service = session.service(name)
        for rows, what in ((4, 1), (2, bad), (4, 1)):
            x = np.full((rows, 3), what, np.float32)
            say(name, lambda: service(x, timeout=TIMEOUT))
            others_go_on()
    say("hangs", lambda: stuck.result(timeout=TIMEOUT))
    others_go_on()
"""

SAID = [
    ("missing", "none.onnx: no such file"),
    ("misfit", "input 'x': the model has float32 [-1, 4], the signature says float32 [-1, 3]"),
    ("alien", "ValueError: The checkpoint you are trying to load has model type `mamba9`"),
    ("unfit", "w.safetensors: 'fc1.weight' is [4, 3] in the file and [8, 3] in the module"),
    ("too_big", "MemoryError: Unable to allocate 8.00 PiB"),
    ("raises", "right"),
    ("raises", "ModelError: tensor-parallel rank 1: ValueError: bad at one rank"),
    ("raises", "right"),
    ("hungry", "right"),
    ("hungry", "DefaultCPUAllocator: can't allocate memory"),
    ("hungry", "right"),
    ("gathers", "right"),
    ("gathers", "indices element out of data bounds, idx=3"),
    ("gathers", "right"),
    ("hangs", "ModelError: a rank did not end its part in time"),
]


def write_models(folder):
    (folder / "models.py").write_text(MODELS)
    (folder / "alien").mkdir()
    (folder / "alien/config.json").write_text(json.dumps({"model_type": "mamba9"}))
    save_file({"fc1.weight": torch.zeros(4, 3)}, folder / "w.safetensors")
    write_onnx(folder / "misfit.onnx", 4)
    # It needs four rows, which no signature says.
    write_onnx(folder / "gathers.onnx", 3, index=[3])


def write_onnx(path, width, index=()):
    """Write y = 2 x, or y = x + x[index]."""
    helper, dtype = onnx.helper, onnx.TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, dtype, ["rows", width]) for name in "xy")
    nodes, parts = [helper.make_node("Add", ["x", "z" if index else "x"], ["y"])], []
    if index:
        nodes.insert(0, helper.make_node("Gather", ["x", "index"], ["z"], axis=0))
        parts = [helper.make_tensor("index", onnx.TensorProto.INT64, [len(index)], index)]
    graph = helper.make_graph(nodes, "sum", [x], [y], parts)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


@pytest.mark.takes_long
def test_every_failure_comes_to_the_client_and_other_services_go_on(mpiexec, tmp_path):
    write_models(tmp_path)
    tables = (
        HEAD.format(name=name, settings=settings, **tensor)
        for name, (settings, tensor) in SERVICES.items()
    )
    (tmp_path / "c.toml").write_text("".join(tables))
    (tmp_path / "sim.py").write_text(SIMULATION)

    done = mpiexec(["-n", 13, *RUN, "c.toml", "sim.py"], timeout=170)

    said = [line for line in done.stdout.splitlines() if line.partition(":")[0] in SERVICES]
    assert len(said) == len(SAID)
    for line, (name, text) in zip(said, SAID, strict=True):
        assert line.startswith(f"{name}: ") and text in line
    assert done.returncode == 1  # that of the ranks whose model could not be loaded
    assert "terminate called" not in done.stderr
