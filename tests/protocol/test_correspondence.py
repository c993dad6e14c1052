"""The table of docs/internals/protocol_model.md: its steps and its C functions are there."""

import re

import pytest
from jobs import ROOT
from protocol.spin import MODELS

PAGE = "docs/internals/protocol_model.md"
ROW = re.compile(r"^\| (\w+) \| (\w+) \| (?:`(\w+)`|–) \| (?:`(csrc/[\w/.]+)`|–) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / PAGE).read_text())
# A macro that is one step.
STEP = re.compile(
    r"^#define (\w+)(?:\([^)]*\))? *\\\n +(?:d_step|atomic)|^#define (\w+)\([^)]*\) d_step",
    re.MULTILINE,
)


def is_defined(function, text):
    """Whether a C source has a body for a function, and does not only call it."""
    return re.search(rf"^[a-z_][^\n;#]*\b{function}\([^;{{]*\)\s*{{", text, re.MULTILINE)


def is_in_model(step, text):
    return re.search(rf"^(?:#define |inline |.*proctype ){step}\b", text, re.MULTILINE)


@pytest.mark.parametrize(("step", "function", "path"), sorted({row[1:] for row in ROWS if row[2]}))
def test_a_c_function_of_the_table_is_where_it_says(step, function, path):
    assert is_defined(function, (ROOT / path).read_text()), f"{step}: {function} is not in {path}"


@pytest.mark.parametrize(("model", "step"), sorted({row[:2] for row in ROWS}))
def test_a_step_of_the_table_is_in_its_model(model, step):
    assert is_in_model(step, (MODELS / f"{model}.pml").read_text())


@pytest.mark.parametrize("model", sorted(path.stem for path in MODELS.glob("*.pml")))
def test_every_step_of_a_model_is_in_the_table(model):
    found = STEP.findall((MODELS / f"{model}.pml").read_text())
    steps = {one or other for one, other in found}
    assert steps
    assert steps <= {row[1] for row in ROWS if row[0] == model}


def test_a_function_that_is_only_called_is_not_defined():
    assert is_defined("post", "static int post(int a,\n                int b) {")
    assert not is_defined("post", "int other(void) {\n  return post(1);\n}")
    assert not is_defined("post", "int post(int a);\n")
