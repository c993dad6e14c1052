"""Identify files that are not models, and say what to do instead, without unpickling."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.config.model_file import is_compiled, is_exported, is_torchscript, members

if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = 512  # bytes that identify a kind
CHECKPOINTS = ("state_dict", "model_state_dict", "model")  # keys of weights in checkpoints
TOML = 'model = "module:callable" and options = {{ weights = "{name}" }}'
BUILDS = "the callable returns the module without its weights"
EXPORT = "save it by torch.export, with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
STARTS = (
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes; convert it to ONNX, and set backend = 'onnx'"),
    (b"GGUF", "a GGUF file of llama.cpp; a language model is a Hugging Face directory here"),
    (b"version https://git-lfs", "a pointer of Git LFS, without the file: run 'git lfs pull'"),
    (b"\x93NUMPY", "a numpy array, not a model"),
    (b"\x7fELF", "a compiled library; name a module:callable that loads it"),
)


def is_safetensors(path: Path) -> bool:
    """Return whether a file begins with a header of safetensors."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 8 + length <= path.stat().st_size


def describe(path: Path) -> str:
    """Say in one line what a file is, and how its model can be served.

    Returns:
        The text; "" if the kind is unknown.
    """
    if path.is_dir():
        return _directory(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file"
    for start, text in STARTS:
        if head.startswith(start):
            return text
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file; convert it to ONNX, and set backend = 'onnx'"
    if is_safetensors(path):
        return f"safetensors: only weights. Write {TOML.format(name=path.name)}; {BUILDS}"
    if zipfile.is_zipfile(path):
        return _archive(path)
    if head.startswith(b"PK\x03\x04"):
        return "an archive that is cut off: copy or write it again"
    if head[:1] == b"\x80" and head[1] <= pickle.HIGHEST_PROTOCOL:
        return _pickle(path, path.read_bytes())
    if path.suffix == ".json" and path.name.endswith(".safetensors.index.json"):
        return f"an index of weights. Write {TOML.format(name=path.name)}; {BUILDS}"
    return ""


def _directory(path: Path) -> str:
    if (path / "saved_model.pb").is_file():
        return "a SavedModel of TensorFlow; convert it to ONNX, and set backend = 'onnx'"
    if (path / "config.json").is_file():
        return "a directory: set task = 'generate' or 'embed'"
    return "a directory without config.json, so not a Hugging Face directory; name a file in it"


def _archive(path: Path) -> str:
    if is_compiled(path):
        text = "a package that AOTInductor compiled, for one machine. Save the program itself, with"
        return f"{text} torch.export.save, and set options.compile = true"
    if is_exported(path) or is_torchscript(path):
        kind = "a program of torch.export" if is_exported(path) else "TorchScript"
        return f"{kind}; for one set backend = 'deepspeed' or 'torch'"
    names = members(path)
    for name in names:
        if name.endswith("/data.pkl"):
            with zipfile.ZipFile(path) as archive:
                return _pickle(path, archive.read(name))
    if "model.weights.h5" in names:
        return "a Keras file; convert it to ONNX, and set backend = 'onnx'"
    if names and all(name.endswith(".npy") for name in names):
        return "numpy arrays, not a model"
    return f"a zip archive with {', '.join(names[:3]) or 'no files'}, not a model"


def _pickle(path: Path, data: bytes) -> str:
    """Describe a pickle: torch reads weights, but not a whole module, without running code."""
    import torch

    try:
        found = torch.load(path, weights_only=True, map_location="meta")
    except Exception:  # a pickle of anything else may cause any exception
        return _whole(path, data)
    safe = path.with_suffix(".safetensors").name
    key = next((name for name in CHECKPOINTS if _is_state(_get(found, name))), "")
    if not key and not _is_state(found):
        return f"a {type(found).__name__} of torch.save, neither a module nor its weights"
    what = f"a checkpoint, with weights in '{key}'" if key else "a state_dict: only weights"
    part = f"['{key}']" if key else ""
    text = f"{what}. Convert it: from safetensors.torch import save_file; "
    text += "save_file({k: v.contiguous().clone() for k, v in "
    text += f"torch.load('{path.name}', weights_only=True){part}.items()}}, '{safe}')"
    return f"{text}. Write {TOML.format(name=safe)}; {BUILDS}"


def _whole(path: Path, data: bytes) -> str:
    names = [name for name in _globals(data) if not name.startswith(("torch._", "collections"))]
    of = f" of {names[0]}" if names else ""
    safe = path.with_suffix(".safetensors").name
    text = f"a pickle{of}, which can run any code when it is read, so mpiserve does not read it."
    text += f" Where you made it, run safetensors.torch.save_model(module, '{safe}')"
    return f"{text}. Write {TOML.format(name=safe)}; {BUILDS}. Or {EXPORT}"


def _get(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _is_state(found: Any) -> bool:
    import torch

    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(value, torch.Tensor) for value in found.values())
    )


def _globals(data: bytes) -> Iterator[str]:
    """Yield the names that a pickle would import, without unpickling it."""
    texts: list[str] = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif code.name == "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            elif isinstance(argument, str):
                texts.append(argument)
    except ValueError:  # the pickle is broken, or other data follows it
        return
