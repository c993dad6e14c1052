"""The JSON schema of the configuration, by which editors complete its TOML file and check it."""

from __future__ import annotations

from typing import Any

from mpiserve.config.derivatives import KINDS
from mpiserve.config.file import Config
from mpiserve.config.service import BACKENDS, TASKS
from mpiserve.config.tables import DTYPES, MODEL_DTYPES
from mpiserve.config.values import OBJECT

DIALECT = "http://json-schema.org/draft-07/schema#"  # the latest that editors of TOML know
_FUNCTION = {"type": "string", "pattern": f"^({OBJECT.pattern})$"}
_DIMENSIONS = {"items": {"type": "integer"}, "type": "array"}
# What the validators of a key accept, where its annotation alone does not say it.
_ACCEPTED: dict[str, dict[str, Any]] = {
    "ServiceConfig": {
        "backend": {"anyOf": [{"enum": [*BACKENDS]}, _FUNCTION]},
        "task": {"enum": [*TASKS]},
        "preprocess": _FUNCTION,
        "postprocess": _FUNCTION,
        "dtype": {"enum": [*MODEL_DTYPES]},
        "derivatives": {"items": {"enum": [*KINDS]}, "type": "array"},
        "warmup": {
            "anyOf": [
                {"type": "boolean"},
                {"items": {"minimum": 1, "type": "integer"}, "type": "array"},
                {"pattern": r"\.npz$", "type": "string"},
            ]
        },
    },
    "TensorConfig": {
        "dtype": {"enum": [*DTYPES]},
        "shape": {
            "items": [{"type": ["integer", "string"]}],
            "additionalItems": {"type": "integer"},
            "type": "array",
        },
        "max_shape": _DIMENSIONS,
    },
}


def schema() -> dict[str, Any]:
    """Return the schema of a configuration file.

    A file that the schema refuses is wrong. What the keys of a file must be to each other, only
    `Config.load` knows.
    """
    made = Config.model_json_schema(ref_template="#/definitions/{model}")
    tables = made.pop("$defs")
    for table, keys in _ACCEPTED.items():
        for key, accepted in keys.items():
            known = tables[table]["properties"][key]
            kept = {word: known[word] for word in ("description", "default") if word in known}
            tables[table]["properties"][key] = kept | accepted
    plain = {name: _plain(table) for name, table in tables.items()}
    title = {"$schema": DIALECT, "title": "The inference ranks of a job with mpiserve"}
    return title | _plain(made) | {"definitions": plain}


def _plain(node: Any) -> Any:
    """Leave out what TOML does not have, which is null, and names that say nothing."""
    if isinstance(node, list):
        return [_plain(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {key: value for key, value in node.items() if key not in ("title", "description")}
    if found.get("default", ...) is None or isinstance(found.get("default"), dict):
        del found["default"]  # of a table: its keys have theirs
    kinds = [kind for kind in found.pop("anyOf", ()) if kind != {"type": "null"}]
    found |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {}
    names = found.pop("properties", None)
    plain = {key: _plain(value) for key, value in found.items()}
    if names is not None:
        plain["properties"] = {key: _plain(value) for key, value in names.items()}
    text = node.get("description")
    return plain if text is None else {"description": " ".join(text.split()), **plain}
