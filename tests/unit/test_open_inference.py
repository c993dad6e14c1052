"""The Open Inference Protocol: what a client sends, and what it makes of answers."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

from mpiserve.config.tables import COMPLEX_DTYPES, DTYPES
from mpiserve.wire import open_inference as oip

SENT = [name for name in DTYPES if name not in COMPLEX_DTYPES]


def dtype(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def array(name):
    return np.arange(6).reshape(2, 3).astype(dtype(name))


def answer(entries, parts=()):
    """An answer with tensors behind its JSON, and the header that says where they begin."""
    text = json.dumps({"model_name": "m", "outputs": entries}).encode()
    return text + b"".join(parts), str(len(text))


def entry(name, values, **more):
    size = {"binary_data_size": values.nbytes}
    shown = {"name": name, "shape": values.shape, "datatype": oip.DATATYPES[values.dtype.name]}
    return shown | {"parameters": size} | more


@pytest.mark.parametrize("name", SENT)
def test_an_answer_of_what_was_sent_has_the_same_bits(name):
    sent = array(name)
    headers, body = oip.request([("x", sent)], ["y"])
    size = int(headers[oip.LENGTH])
    table = json.loads(body[:size])
    assert table["inputs"][0]["shape"] == [2, 3]
    assert table["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    back = table["inputs"][0] | {"name": "y"}
    reply, length = answer([back], [body[size:]])
    got = oip.response(reply, length, {"y": sent.dtype})["y"]
    assert got.dtype == sent.dtype and got.tobytes() == sent.tobytes()


def test_outputs_that_nobody_asked_for_are_passed_over():
    other, mine = array("float64"), array("int16")
    body, length = answer([entry("other", other), entry("y", mine)], [other.data, mine.data])
    got = oip.response(body, length, {"y": mine.dtype})
    assert list(got) == ["y"] and np.array_equal(got["y"], mine)


def test_an_answer_may_be_json_alone():
    values = array("float32")
    shown = {"name": "y", "shape": [2, 3], "datatype": "FP32", "data": values.ravel().tolist()}
    body, _ = answer([shown])
    assert np.array_equal(oip.response(body, None, {"y": values.dtype})["y"], values)


GOOD = array("float32")


@pytest.mark.parametrize(
    ("body", "length", "text"),
    [
        (b"<html>", None, "no JSON"),
        (b"[1]", None, "no object"),
        (b"{}", None, "without outputs"),
        (b"{}", "9", "of a body of 2 bytes"),
        (b"{}", "-1", "of a body of 2 bytes"),
        (*answer([]), "without the output y"),
        (*answer([7]), "without name and shape"),
        (*answer([entry("y", GOOD, shape=[-1, 3])], [GOOD.data]), "negative"),
        (*answer([entry("y", GOOD)], [GOOD.tobytes()[:-1]]), "23 bytes for FP32 [2, 3]"),
        (*answer([entry("y", GOOD, shape=[2, 4])], [GOOD.data]), "24 bytes for FP32 [2, 4]"),
        (*answer([entry("y", GOOD, datatype="FP64")], [GOOD.data]), "FP64 where FP32"),
        (*answer([entry("y", GOOD, data=["a"])]), "no array of [2, 3]"),
    ],
)
def test_a_wrong_answer_is_refused(body, length, text):
    with pytest.raises(oip.WireError) as caught:
        oip.response(body, length, {"y": GOOD.dtype})
    assert text in str(caught.value)


METADATA = {
    "name": "m",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP64", "shape": [-1, 1]}],
}


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([("x", "float32", (-1, 4))], None),
        ([("z", "float32", (-1, 4))], "no input 'z'; its inputs are x"),
        ([("x", "float64", (-1, 4))], "float64 [-1, 4] in the signature, and float32 [-1, 4]"),
        ([("x", "float32", (-1, 5))], "float32 [-1, 5] in the signature"),
        ([("x", "float32", (-1,))], "float32 [-1] in the signature"),
        ([], "an input 'x' that the signature has not"),
    ],
)
def test_a_signature_is_compared_with_the_model(inputs, text):
    found = oip.metadata(json.dumps(METADATA).encode())
    wrong = oip.mismatch(found.inputs, inputs, "inputs")
    assert wrong is None if text is None else text in wrong


def test_metadata_that_are_none_are_refused():
    with pytest.raises(oip.WireError, match="no list of inputs"):
        oip.metadata(b'{"inputs": [{"name": "x"}], "outputs": []}')
