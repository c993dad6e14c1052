"""`mpiserve schema`: what editors know of the configuration."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mpiserve.cli import app
from mpiserve.config import Config
from mpiserve.config.schema import schema

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(ROOT.glob("examples/*/*.toml"))
X = {"name": "x", "dtype": "float32", "shape": [-1, 3]}
SERVICE = {"backend": "echo", "inputs": [X]}


def problems(data):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft7Validator.check_schema(schema())
    return [error.message for error in jsonschema.Draft7Validator(schema()).iter_errors(data)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_examples_are_valid(file):
    assert problems(tomllib.loads(file.read_text())) == []


KINDS = [
    {"rows": "ragged", "inputs": [X | {"shape": ["nodes", 3]}]},
    {"backend": "model.py:Backend", "model": "weights"},
    {"isolate": False},
    {"isolate": "auto"},
    {"warmup": [1, 8]},
    {"warmup": "examples.npz"},
    {"options": {"any": {"thing": 1}}},
    {"placement": "auto", "remote": {"model": "m", "options": {"url": "http://host:1"}}},
]


@pytest.mark.parametrize("keys", KINDS, ids=str)
def test_what_a_key_may_be_is_valid(keys):
    assert problems({"service": {"s": SERVICE | keys}}) == []


WRONG = [
    {"replicsa": 2},
    {"replicas": 0},
    {"replicas": "two"},
    {"backend": "onxn"},
    {"task": "sing"},
    {"warmup": "examples.csv"},
    {"placement": "both"},
    {"inputs": [X | {"dtype": "float23"}]},
    {"inputs": [X | {"shape": [-1, "three"]}]},
    {"inputs": [{"name": "x"}]},
    {"remote": {"options": {}}},
    {"version": None},
]


@pytest.mark.parametrize("keys", WRONG, ids=str)
def test_what_the_schema_refuses_is_wrong(keys):
    table = {"service": {"s": SERVICE | keys}}
    assert len(problems(table)) > 0
    with pytest.raises(Exception, match="config: "):
        Config.from_dict(table)


def keys_of(table):
    return {name for name, field in table.model_fields.items()}


def test_every_key_is_explained():
    known = json.loads(CliRunner().invoke(app, ("schema",)).stdout)
    tables = {"": known, **known["definitions"]}
    assert len(tables) > 6 and set(known["properties"]) == keys_of(Config)
    for name, table in tables.items():
        assert table["additionalProperties"] is False, name
        assert all(one["description"] for one in table["properties"].values()), name
    assert '"null"' not in json.dumps(known) and ": null" not in json.dumps(known)
