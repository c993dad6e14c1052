"""`init`: write a configuration and a simulation that run as they are, for a model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from keyword import iskeyword
from pathlib import Path
from typing import Any

from mpiserve.config import Config
from mpiserve.config.service import OBJECT, ServiceConfig
from mpiserve.config.tables import TensorConfig
from mpiserve.errors import ArgumentError, Code, ConfigError
from mpiserve.tools import describe

CONFIG, SCRIPT, MODEL = "coupling.toml", "simulate.py", "model.py"
RUN = f"mpiexec -n 3 python -m mpiserve run {CONFIG} {SCRIPT}"
ROWS = 4  # of the request of the script

Ask = Callable[[str, str], str]  # a question and its default, to the answer

EXAMPLE = '''\
"""The model: rows in, rows out, by numpy. Put yours in its place."""


def double(x):
    return 2 * x
'''
HEAD = f"""\
# The services of a coupled job. Run it with
#     {RUN}
# which makes the last rank of the world an inference rank. For completion in an editor:
#     python -m mpiserve schema > mpiserve.schema.json
# and `#:schema mpiserve.schema.json` as the first line of this file.
"""


def files(model: str, name: str, folder: Path, ask: Ask) -> dict[str, str]:
    """Make the files of a job with one model.

    Args:
        model: A model file, a Hugging Face directory, or "file.py:function" of a function of
            numpy arrays; "": one that is written, too. A path is from the working folder.
        name: Of the service; "": from the model.
        folder: Where the files will lie.
        ask: Asks for the inputs and outputs of a function.

    Returns:
        Their texts, by name.

    Raises:
        ModelError: If the file of the model says too little, or is no model.
        ConfigError, ArgumentError: If a function is not there, or an answer is wrong.
    """
    made = {} if model else {MODEL: EXAMPLE}
    if not model:
        table = {"backend": "python", "model": f"{MODEL}:double"}
        table |= _sides("x float32 3", "y float32 3")
        name = name or "double"
    elif OBJECT.fullmatch(model):
        table = _of_function(model, folder, ask)
        name = name or model.rpartition(":")[2]
    else:
        table = describe.table_of(model) | {"model": _from(folder, model)}
        name = name or describe.name_of(model)
    service = Config.from_dict({"service": {name: table}}, folder=folder).services[0]
    config = f"{HEAD}\n{describe.text_of(name, table)}\n"
    return {CONFIG: config, SCRIPT: script(service)} | made


def write(folder: Path, made: Mapping[str, str]) -> None:
    """Write files into a folder, which is made.

    Raises:
        ArgumentError: If one is there already, and then none is written.
    """
    if there := [name for name in made if (folder / name).exists()]:
        text = f"{folder / there[0]} is there already: remove it, or choose another --folder"
        raise ArgumentError(Code.EARG, text)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(text)


def script(service: ServiceConfig) -> str:
    """Write a simulation that sends one request to a service, and prints what comes back."""
    inputs, variables = service.inputs, _variables(service)
    rows = None if service.rows == "none" else ROWS
    bfloat16 = any(tensor.dtype == "bfloat16" for tensor in inputs)
    imports = ["import mpiserve", *(["import ml_dtypes"] if bfloat16 else []), "import numpy as np"]
    lines = [
        f'"""Each simulation rank sends a request to the service {_text(service.name)}.',
        "",
        RUN,
        '"""',
        "",
        *imports,
        "",
        "with mpiserve.open() as session:",
        "    rank = session.comm.rank",
        f"    service = session.service({_text(service.name)})",
        *(f"    {variables[t.name]} = {_ones(t, rows)}" for t in inputs),
        f"    results = service({', '.join(variables[t.name] for t in inputs)})",
        *_unpacked(service),
    ]
    return "\n".join(lines) + "\n"


def _unpacked(service: ServiceConfig) -> list[str]:
    names = [tensor.name for tensor in service.outputs]
    each = "results" if len(names) > 1 else "[results]"
    return [
        f"    for name, result in zip({_text(names)}, {each}, strict=True):",
        '        print(f"rank {rank}: {name} {result.dtype} {result.shape}", flush=True)',
    ]


def _variables(service: ServiceConfig) -> dict[str, str]:
    """Choose a variable of Python for each input."""
    taken = {"rank", "service", "session", "results", "np", "mpiserve", "ml_dtypes"}
    found = {}
    for i, tensor in enumerate(service.inputs):
        word = re.sub(r"\W", "_", tensor.name)
        usable = word.isidentifier() and not iskeyword(word) and word not in taken
        found[tensor.name] = word if usable else f"input_{i}"
        taken.add(found[tensor.name])
    return found


def _text(value: str | list[str]) -> str:
    """Write texts as Python has them, between double quotes."""
    return json.dumps(value)


def _ones(tensor: TensorConfig, rows: int | None) -> str:
    """Write an array that most models take: ones are also lengths, tokens and indices."""
    dtype = "bool" if tensor.dtype == "bool" else f"np.{tensor.dtype}"
    dtype = "ml_dtypes.bfloat16" if tensor.dtype == "bfloat16" else dtype
    return f"np.ones({tensor.dims(rows)!r}, {dtype})"


# ---- a function of Python


def _of_function(model: str, folder: Path, ask: Ask) -> dict[str, Any]:
    file, _, function = model.rpartition(":")
    if file.endswith(".py") and not Path(file).is_file():
        raise ArgumentError(Code.EARG, f"{file}: no such file; {function} is looked for there")
    inputs = ask(
        "Inputs: name, dtype and sizes of a row, as in 'x float32 3, t float64'", "x float32 3"
    )
    outputs = ask("Outputs, in the same way", "y float32 3")
    where = f"{_from(folder, file)}:{function}" if file.endswith(".py") else model
    return {"backend": "python", "model": where} | _sides(inputs, outputs)


def _sides(inputs: str, outputs: str) -> dict[str, Any]:
    return {"inputs": tensors(inputs), "outputs": tensors(outputs)}


def tensors(text: str) -> list[dict[str, Any]]:
    """Read tensors such as "x float32 3, t float64": name, dtype and sizes of a row."""
    found = []
    for one in text.split(","):
        name, dtype, *sizes = [*one.split(), "", ""][: max(2, len(one.split()))]
        if not dtype or not all(size.isdecimal() for size in sizes):
            such = "name, dtype and the sizes of a row, such as 'x float32 3'"
            raise ConfigError(Code.ECONFIG, f"{one.strip()!r}: a tensor is {such}")
        found.append({"name": name, "dtype": dtype, "shape": [-1, *map(int, sizes)]})
    return found


def _from(folder: Path, path: str) -> str:
    """Write a path as the configuration in a folder has it."""
    return os.path.relpath(path, folder) if not os.path.isabs(path) else path
