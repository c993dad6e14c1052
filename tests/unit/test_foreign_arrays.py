"""Arrays of other libraries: each is accepted without a copy, or refused with a remedy."""

import ml_dtypes
import numpy as np
import pytest
import torch

from mpiserve import ArgumentError
from mpiserve._lib import foreign_arrays

X = np.arange(6, dtype=np.float32).reshape(3, 2)


class Exported:
    """Has DLPack's protocol and no other."""

    def __dlpack__(self, **options):
        return X.__dlpack__(**options)

    def __dlpack_device__(self):
        return X.__dlpack_device__()


class Kept(np.ndarray):
    """A kind of array that adds nothing."""


def half():
    return torch.tensor(X).bfloat16()


def conjugate():
    return torch.view_as_complex(torch.tensor(np.stack([X, X], axis=-1))).conj()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.ma.array(X), X),
        (np.ma.array(X, mask=np.zeros_like(X, bool)), X),
        (X.view(Kept), X),
        (X.tolist(), X.astype(float)),
        (memoryview(X), X),
        (Exported(), X),
        (torch.tensor(X, requires_grad=True), X),
        (torch.nn.Parameter(torch.tensor(X)), X),
        (torch.tensor(X).T, X.T),
        (conjugate().imag, -X),
        (conjugate(), X - 1j * X),
        (torch.tensor(X).to(torch.uint32), X.astype(np.uint32)),
        (half(), X.astype(ml_dtypes.bfloat16)),
        (half().T, X.T.astype(ml_dtypes.bfloat16)),
    ],
)
def test_values_and_dtype_stay(value, wanted):
    array = foreign_arrays.as_input(value, "here")
    assert type(array) is np.ndarray
    assert array.dtype == wanted.dtype
    np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.ma.array(X, mask=X > 4), r"1 of 6 values are masked.*filled"),
        (torch.empty(3, 2, device="meta"), "device meta has no data"),
        (torch.tensor(X).to_sparse(), "to_dense"),
        (torch.tensor(X).to(torch.float8_e4m3fn), "cannot be read"),
        (None, "a NoneType is no array"),
        ({"x": X}, "a dict is no array"),
    ],
)
def test_what_has_no_values_here_is_refused(value, text):
    with pytest.raises(ArgumentError, match=f"here: .*{text}"):
        foreign_arrays.as_input(value, "here")


@pytest.mark.parametrize("make", [lambda: torch.zeros(3, 2), lambda: np.zeros((3, 2)).view(Kept)])
def test_results_are_seen_in_the_memory_that_was_given(make):
    out = make()
    foreign_arrays.as_output(out, "here")[:] = 7
    assert (np.asarray(out) == 7).all()


def test_results_of_bfloat16_are_seen_too():
    out = torch.zeros(3, 2, dtype=torch.bfloat16)
    foreign_arrays.as_output(out, "here")[:] = 7
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.ma.zeros((3, 2)), "masked"),
        (torch.zeros(3, 2, requires_grad=True), "detach"),
        (torch.zeros(3, 2, device="meta"), "no data"),
        (conjugate().imag, "negates"),
        (conjugate(), "conjugates"),
        ([[0.0]], "must be a writable C-contiguous array"),
    ],
)
def test_what_would_hide_results_is_refused(value, text):
    with pytest.raises(ArgumentError, match=f"here.*{text}"):
        foreign_arrays.as_output(value, "here")


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        (">f4", "astype.'float32'"),
        ("O", "asarray"),
        ("M8[s]", "int64"),
        ([("a", "f4")], "each field"),
        ("U3", "encode_text"),
        ("longdouble", "astype"),
    ],
)
def test_there_is_advice_for_dtypes_that_cannot_be_sent(dtype, text):
    assert text.replace(".'", "('") in foreign_arrays.advice(np.dtype(dtype))
