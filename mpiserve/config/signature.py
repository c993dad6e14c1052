"""Read the signature of a model from its file, without the libraries that run the model.

Rank 0 reads the configuration, and may lack torch and onnxruntime: a file is read as it is.
"""

from __future__ import annotations

from pathlib import Path

from mpiserve.config import exported_program, onnx_file
from mpiserve.config.model_file import (
    FileSignature,
    UnreadableError,
    is_exported,
    is_torchscript,
)
from mpiserve.config.values import cut


def read_signature(model: str, folder: Path, backend: str) -> FileSignature:
    """Read the signature of a model file.

    Args:
        model: The file, as the configuration names it.
        folder: The folder that a relative path starts from.
        backend: The backend that runs it: "deepspeed", "torch" or "onnx".

    Raises:
        UnreadableError: If there is none, with what to do.
    """
    path = folder / model
    try:
        kind = kind_of(path)
        if kind == "ONNX" and backend == "onnx":
            return onnx_file.read(model, path)
        if kind == "a program of torch.export" and backend != "onnx":
            return exported_program.read(model, path)
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise UnreadableError(f"{cut(model, 300)}: {text}") from None
    raise UnreadableError(_unsuited(model, kind, backend))


def kind_of(path: Path) -> str:
    """Name the kind of a file that may say its signature, by its contents.

    Returns:
        "ONNX", "a program of torch.export", "TorchScript", or "".

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb"):  # raises for what is no file
        pass
    if is_exported(path):
        return "a program of torch.export"
    if is_torchscript(path):
        return "TorchScript"
    return "ONNX" if onnx_file.graph_of(path) is not None else ""


def _unsuited(model: str, kind: str, backend: str) -> str:
    if kind == "TorchScript" and backend != "onnx":
        text = f"{model} is TorchScript, which does not say its outputs"
        return f"{text}: write inputs and outputs; 'python -m mpiserve describe' may know them"
    if kind:
        wanted = "backend = 'onnx'" if kind == "ONNX" else "backend = 'deepspeed' or 'torch'"
        return f"{model} is {kind}: for one set {wanted}"
    return f"{model} has no signature to read: write inputs and outputs"
