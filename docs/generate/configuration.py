"""Turn the models of the configuration into its reference: every key of every table."""

from __future__ import annotations

import json
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mpiserve.config import Config

# What a validator accepts, where the annotation alone does not say it.
ACCEPTED = {
    "dtype": "a dtype",
    "isolate": 'true, false or `"auto"`',
    "warmup": "true, false, a list of integers or a path",
    "shape": "list of integers; the first may be a string",
    "options": "table",
    "remote": "table",
    "uncertainty": "table",
    "scales": "table of numbers",
    "inputs": "list of tensors",
    "outputs": "list of tensors",
    "model_inputs": "list of tensors",
    "model_outputs": "list of tensors",
}
NAMES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def tables() -> dict[str, type[BaseModel]]:
    """Return the tables of a file, by the headline that each has there."""
    found: dict[str, type[BaseModel]] = {}
    for key, field in Config.model_fields.items():
        inner = [kind for kind in _leaves(field.annotation) if _is_table(kind)]
        (model,) = inner
        found[f"[{key}.NAME]" if typing.get_origin(field.annotation) is dict else f"[{key}]"] = (
            model
        )
        for name, nested in model.model_fields.items():
            for kind in _leaves(nested.annotation):
                if _is_table(kind):
                    tensor = kind.__name__ == "TensorConfig"
                    found["{ name, dtype, shape }" if tensor else f"[{key}.NAME.{name}]"] = kind
    return found


def constraint(field: FieldInfo) -> str:
    """Say which numbers a key takes, such as "1 to 65536"; "" for any."""
    least, most = "", ""
    for limit in field.metadata:
        if getattr(limit, "ge", None) is not None:
            least = f"from {_number(limit.ge)}"
        if getattr(limit, "gt", None) is not None:
            least = f"above {_number(limit.gt)}"
        if getattr(limit, "le", None) is not None:
            most = f"to {_number(limit.le)}"
        if getattr(limit, "lt", None) is not None:
            most = f"below {_number(limit.lt)}"
    return f"{least}, {most}".strip(", ") if "below" in most else f"{least} {most}".strip()


def default(field: FieldInfo) -> str:
    """Write a default as TOML does, or that there is none."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", (), {}):
        return "no default"
    return f"default: `{json.dumps(value)}`"


def kind(key: str, annotation: Any) -> str:
    """Name the type of a key, in the words of TOML."""
    if key in ACCEPTED:
        return ACCEPTED[key]
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f'`"{value}"`' for value in typing.get_args(annotation))
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) is tuple:
        return f"list of {kind('', _bare(parts[0]))}s"
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and len(parts) == 1:
        return kind("", _bare(parts[0]))
    return NAMES[annotation]


def page() -> str:
    """Write the tables as Markdown."""
    lines = []
    for headline, model in tables().items():
        prefix = headline.strip("[{} ").partition(".")[0].partition(",")[0].rstrip("]")
        prefix = "tensor" if headline.startswith("{") else prefix
        prefix = "remote" if headline.endswith(".remote]") else prefix
        lines += [f"## `{headline}` {{ #{prefix} }}", "", f"{model.__doc__.strip()}", ""]
        for key, field in model.model_fields.items():
            facts = [kind(key, field.annotation), constraint(field), default(field)]
            lines += [f"### `{key}` {{ #{prefix}.{key} }}", ""]
            lines += [f"*{' · '.join(filter(None, facts))}*", "", field.description, ""]
    return "\n".join(lines)


def _bare(annotation: Any) -> Any:
    return typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation


def _leaves(annotation: Any) -> list[Any]:
    parts = typing.get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _number(value: float) -> str:
    powers = {2**power: f"2<sup>{power}</sup>" for power in range(16, 63)}
    return powers.get(value, f"{value:,}" if isinstance(value, int) else f"{value:,.10g}")
