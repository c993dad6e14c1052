"""`describe`: write the table of a service from the file of its model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mpiserve.backends import file_kinds
from mpiserve.config import Config
from mpiserve.config.model_file import FileSignature, UnreadableError
from mpiserve.config.signature import kind_of, read_signature
from mpiserve.config.tables import NAME_SIZE
from mpiserve.errors import Code, ModelError

ROWS, BATCH = 4096, 64 << 20  # the most rows and bytes of a batch that this suggests
TOKENS, NEW_TOKENS = 128, 64  # of a prompt or a text, where the model's positions allow that
BARE = re.compile(r"[A-Za-z0-9_-]+")
KINDS = "an ONNX file, a program of torch.export, TorchScript, or a Hugging Face directory"
SIZES = ("hidden_size", "n_embd", "d_model", "dim")
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def table_of(model: str) -> dict[str, Any]:
    """Return the table of a service that runs a model file or directory.

    Raises:
        ModelError: If the file says too little, or is no model, with what to do.
    """
    path = Path(model)
    try:
        if path.is_dir() and (path / "config.json").is_file():
            return _of_directory(model, path)
        if not path.exists():
            raise ModelError(Code.EMODEL, f"{model}: no such file or directory")
        return _of_file(model, path)
    except UnreadableError as error:
        raise ModelError(Code.EMODEL, str(error)) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelError(Code.EMODEL, f"{model}: {reason}") from None


def text_of(name: str, table: dict[str, Any]) -> str:
    """Write a table of a service as TOML.

    Raises:
        ConfigError: If the service cannot be configured so.
    """
    Config.from_dict({"service": {name: table}})
    key = name if BARE.fullmatch(name) else _quoted(name)
    return "\n".join([f"[service.{key}]", *(f"{key} = {_value(table[key])}" for key in table)])


def name_of(model: str) -> str:
    """Make the name of a service from that of its file."""
    path = Path(model)
    name = path.resolve().name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[: NAME_SIZE - 1].strip("_") or "model"


def _of_file(model: str, path: Path) -> dict[str, Any]:
    kind = kind_of(path) if path.is_file() else ""
    backend = "onnx" if kind == "ONNX" else "deepspeed"
    if kind == "TorchScript":
        from mpiserve.backends.torch import traced

        signature = traced.read(model, path)
    elif kind:
        signature = read_signature(model, Path(), backend)
    else:
        what = file_kinds.describe(path)
        text = f"{model} is {what}" if what else f"{model}: an unknown kind of file"
        raise ModelError(Code.EMODEL, text if what else f"{text}; a model is {KINDS}")
    sides = {side: signature.tables(side) for side in ("inputs", "outputs")}
    table = {"backend": backend, "model": model, **sides}
    return table | {"max_batch_rows": _rows(table, signature)}


def _rows(table: dict[str, Any], signature: FileSignature) -> int:
    """Suggest the rows of a batch: a power of two, unless the file limits them."""
    rows = ROWS
    row = Config.from_dict({"service": {"model": table | {"max_batch_rows": 1}}}).services[0]
    while rows > 1 and rows * row.row_bytes > BATCH:
        rows //= 2
    return min(rows, signature.most_rows or rows)


def _of_directory(model: str, path: Path) -> dict[str, Any]:
    """Describe a language model: the lengths are a choice, which the file only limits."""
    try:
        known = json.loads((path / "config.json").read_text())
        kinds = [str(kind) for kind in known.get("architectures") or []]
    except (ValueError, AttributeError, TypeError) as error:
        raise UnreadableError(f"{model}/config.json is not that of a model ({error})") from None
    positions = _number(known, POSITIONS) or TOKENS + NEW_TOKENS
    generates = any(kind.endswith("ForCausalLM") for kind in kinds)
    tokens = min(TOKENS, positions // 2 if generates else positions)
    inputs = [_tensor("tokens", tokens), _tensor("lengths")]
    if generates:
        outputs = [_tensor("tokens", min(NEW_TOKENS, positions - tokens)), _tensor("lengths")]
    elif size := _number(known, SIZES):
        outputs = [_tensor("vector", size, dtype="float32")]
    else:
        text = f"{model}/config.json does not say the size of a vector ({', '.join(SIZES)})"
        raise UnreadableError(f"{text}: write task, inputs and outputs")
    table = {"backend": "deepspeed", "model": model, "task": "generate" if generates else "embed"}
    return table | {"inputs": inputs, "outputs": outputs, "max_batch_rows": 16}


def _number(known: dict[str, Any], keys: tuple[str, ...]) -> int:
    return next((known[key] for key in keys if type(known.get(key)) is int), 0)


def _tensor(name: str, *shape: int, dtype: str = "int64") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [-1, *shape]}


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    return _quoted(value)


def _quoted(value: Any) -> str:
    """Write a text, a number or a list of numbers, which JSON and TOML write alike."""
    return json.dumps(value, ensure_ascii=False)
