"""Write model files for tests: ONNX of any tensors, programs of torch.export, TorchScript."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

ROWS = torch.export.Dim.DYNAMIC


class Flame(torch.nn.Module):
    """Two inputs, and a dict of two outputs, not in the order of the alphabet."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"rate": self.layer(x) * t[:, None], "heat": x.sum(1).double()}


def examples() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(4, 3), torch.ones(4)


def export(
    path: Path, module: Any = None, args: Any = None, dynamic: Any = None, **kw: Any
) -> Path:
    """Write a program of torch.export: by default that of Flame, with dynamic rows."""
    args = examples() if args is None else args
    dynamic = ({0: ROWS},) * len(args) if dynamic is None else dynamic
    program = torch.export.export(module or Flame(), args, dynamic_shapes=dynamic or None, **kw)
    torch.export.save(program, path)
    return path


def trace(path: Path, module: Any = None, args: Any = None) -> Path:
    torch.jit.trace((module or Flame()).eval(), args or examples(), strict=False).save(str(path))
    return path


def info(name: str, kind: int, shape: Any) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def write_onnx(path: Path, inputs: Any = None, outputs: Any = None) -> Path:
    """Write y = x W, with W [3, 2] of ones; with other inputs or outputs for their description."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], [1.0] * 6)
    inputs = inputs or [info("x", TensorProto.FLOAT, ["rows", 3])]
    outputs = outputs or [info("y", TensorProto.FLOAT, ["rows", 2])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    # Before version 4 of the format, weights were inputs too, and many files still have them so.
    inputs = [*inputs, info("w", TensorProto.FLOAT, [3, 2])]
    graph = helper.make_graph([node], "net", inputs, outputs, initializer=[weight])
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path
