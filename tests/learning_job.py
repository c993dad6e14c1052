"""A trainer without a job: its configuration, pairs of a capture, and what its rank does."""

from __future__ import annotations

import json

import numpy as np

from mpiserve._lib.ring import FIELDS
from mpiserve.config import Config
from mpiserve.learning.trainer import Trainer
from mpiserve.observe import capture_files as files

RUN = "00000000000000ab"

MODEL = """\
import torch
from mpiserve.learning import normalized

def network():
    return normalized(torch.nn.Linear(2, 1), [2], [1])

def nan(network, optimizer, inputs, outputs):
    nan.calls += 1
    loss = (network(inputs["x"]) - outputs["y"]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss if nan.calls < 30 or nan.calls > 33 else float("nan")

nan.calls = 0

def always(network, optimizer, inputs, outputs):
    return float("inf")
"""

TENSORS = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [-1, 1]}],
}
SERVICE = {
    **{"backend": "torch", "model": "net:network", "version": "untrained"},
    "options": {"weights": "a-{version}.safetensors"},
    "uncertainty": {"method": "ensemble", "limit": 0.1, "weights": ["b-{version}.safetensors"]},
    **TENSORS,
}
TRAINER = {"first_rows": 64, "round_steps": 10, "batch_rows": 32, "rate": 0.1, "least_s": 0.0}


def config_of(folder, service=None, /, **trainer):
    (folder / "net.py").write_text(MODEL)
    tables = {"service": {"net": SERVICE | (service or {})}, "capture": {}}
    return Config.from_dict(tables | {"trainer": {"net": TRAINER | trainer}}, folder=folder)


def record(folder, part, x, y, source=1, name="net", shape=1):
    """Write pairs as a part of a capture."""
    tensors = [
        {"name": "x", "dtype": "float32", "shape": [2]},
        {"name": "y", "dtype": "float32", "shape": [shape]},
        {"name": "uncertainty", "dtype": "float32", "shape": []},
    ]
    signature = json.dumps({"inputs": tensors[:1], "outputs": tensors[1:]})
    columns = {n: np.zeros(len(x), dtype) for n, dtype in FIELDS.items() if n != "model"}
    columns["source"][:] = source
    rows = {"inputs/x": x, "outputs/y": y, "outputs/uncertainty": np.full(len(x), np.nan)}
    about = {"signature": signature, "model": "", "backend": ""}
    folder.mkdir(exist_ok=True)
    path = files.path_of(folder, RUN, 3, part, part)
    attributes = {"run": RUN, "head": 3, "dropped_rows": 0}
    files.put(path, files.image(attributes, {name: (about, rows | columns)}, {}))


def plane(rows, seed=0, slope=3.0):
    x = np.random.default_rng(seed).normal(size=(rows, 2)).astype(np.float32)
    return x, (slope * x[:, :1] - x[:, 1:] + 0.5).astype(np.float32)


class Job:
    """What a trainer's rank does for it."""

    def __init__(self, folder, **settings):
        self.config = config_of(folder, **settings)
        self.folder, self.lines, self.published, self.refusal = folder, [], [], ""

    def trainer(self, version="untrained"):
        service = self.config.service["net"].model_copy(update={"version": version})
        folders = self.folder / "learned/net", self.folder / "capture"
        made = ("net", service, self.config.trainer["net"], *folders)
        return Trainer(*made, lambda level, text: self.lines.append(text), self.publish)

    def publish(self, version, text):
        if not self.refusal:
            self.published.append(version)
            self.lines.append(text)
        return self.refusal

    def turns(self, trainer, most=20):
        for _ in range(most):
            trainer.turn()
        return trainer
