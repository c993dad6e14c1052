"""Read the inputs and outputs of a program of torch.export, from the JSON in its archive."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpiserve.config.model_file import PROGRAM, FileSignature, FileTensor, UnreadableError, members

HOW = (
    "torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), with one "
    "such table for each input"
)
# ScalarType of torch/_export/serde/schema.py.
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    9: "complex32",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
}
SYMBOL = re.compile(r"Symbol\('(\w+)'[^)]*\)")


def read(model: str, path: Path) -> FileSignature:
    """Read the signature of a program.

    Raises:
        UnreadableError: If it has others than tensors, or this version cannot read it.
        OSError: If the file cannot be read.
    """
    try:
        program = _program(path)
        module = program["graph_module"]
        ins, outs = module["signature"]["input_specs"], module["signature"]["output_specs"]
        shapes = module["graph"]["tensor_values"]
        inputs = [_tensor(model, spec, shapes) for spec in _users(ins, "user_input")]
        names = _called(model, module, len(inputs))
        outputs = [_tensor(model, spec, shapes) for spec in _users(outs, "user_output")]
        most = _most_rows(inputs, program["range_constraints"])
    except (UnreadableError, OSError):
        raise
    except Exception as error:  # a file of another version, or of anybody, may cause any
        text = f"{model} is a program of torch.export of another version ({error!r})"
        raise UnreadableError(f"{text}: write inputs and outputs") from None
    if names and len(names) == len(outputs):
        outputs = [tensor._replace(name=name) for tensor, name in zip(outputs, names, strict=True)]
    return FileSignature(model, tuple(inputs), tuple(outputs), False, HOW, most)


def _program(path: Path) -> Any:
    for name in members(path):
        if name.endswith(PROGRAM) or ("/models/" in f"/{name}" and name.endswith(".json")):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read(name))
    raise KeyError("models/model.json")


def _users(specs: list[Mapping[str, Any]], kind: str) -> list[Any]:
    """Return the arguments of the user among parameters, buffers and the like."""
    return [spec[kind]["arg"] for spec in specs if kind in spec]


def _tensor(model: str, argument: Mapping[str, Any], shapes: Mapping[str, Any]) -> FileTensor:
    if "as_tensor" not in argument:
        text = f"{model} takes or returns {_plain(argument)} beside tensors, which no request has"
        raise UnreadableError(f"{text}: export a module of tensors alone")
    name = argument["as_tensor"]["name"]
    found = shapes[name]
    dtype = DTYPES.get(found["dtype"], f"type {found['dtype']} of torch.export")
    return FileTensor(name, dtype, tuple(map(_dim, found["sizes"])))


def _plain(argument: Mapping[str, Any]) -> str:
    (kind, value), *_ = argument.items()
    return "None" if kind == "as_none" else f"{kind.removeprefix('as_')} {value}"


def _dim(size: Mapping[str, Any]) -> int | str:
    if "as_int" in size:
        return int(size["as_int"])
    return SYMBOL.sub(r"\1", size["as_expr"]["expr_str"])


def _most_rows(inputs: list[FileTensor], ranges: Mapping[str, Any]) -> int | None:
    """Return the most rows that the inputs may have."""
    first = [str(tensor.dims[0]) for tensor in inputs if tensor.dims]
    limits = [ranges[symbol].get("max_val") for symbol in first if symbol in ranges]
    return min((int(limit) for limit in limits if limit is not None), default=None)


def _called(model: str, module: Mapping[str, Any], count: int) -> list[str]:
    """Check how the program is called; return the names of its outputs if it returns a dict."""
    signature = module["module_call_graph"][0]["signature"]
    given, result = (json.loads(signature[key])[1] for key in ("in_spec", "out_spec"))
    positional, named = given["children_spec"]
    if named["children_spec"] or not _flat(positional) or len(positional["children_spec"]) != count:
        text = f"{model} takes arguments by keyword, lists of tensors, or constants"
        raise UnreadableError(f"{text}: export a module that takes each tensor by position")
    if result["type"] is not None and not _flat(result):
        text = f"{model} returns lists within lists"
        raise UnreadableError(f"{text}: export a module that returns tensors, a tuple or a dict")
    return json.loads(result["context"]) if str(result["type"]).endswith("dict") else []


def _flat(spec: Mapping[str, Any]) -> bool:
    return all(child["type"] is None for child in spec["children_spec"])
