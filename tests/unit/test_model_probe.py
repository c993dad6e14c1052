"""What a probe finds, without models and without MPI."""

import gc

import numpy as np
import pytest

from mpiserve.serving import model_probe

F32 = model_probe.EPS["float32"]


def look(function, n=model_probe.ROWS, repeat=0, like=None):
    """Give the probe and the calls of a function of float32 [rows, 2]."""

    def run(arrays):
        result = np.asarray(function(*arrays))
        if len(result) != len(arrays[0]):
            raise ValueError(f"{len(result)} rows")
        return [result]

    like = (np.zeros((n, 2), np.float32),) if like is None else like
    calls = model_probe.Calls(run)
    this = model_probe.Probe(calls, ["y"], F32)
    this.find(model_probe.random_rows(like))
    if repeat:
        this.repeat(repeat)
    return this.finding, calls


@pytest.mark.parametrize("n", [2, 3, 8, model_probe.ROWS])
def test_rows_that_depend_on_others_are_reported_with_the_numbers(n):
    finding, _ = look(lambda x: x - x.mean(0), n)
    assert finding.proven
    assert finding.why.startswith("output 'y' differs by ")


def test_rounding_is_no_dependence_and_a_little_more_is():
    noise = np.random.default_rng(1)
    for size, proven in ((50, False), (1000, True)):
        scale = np.float32(size * F32)
        finding, _ = look(lambda x, scale=scale: x + scale * np.float32(len(x) / 40))
        assert bool(finding.why) == proven, finding
    assert not look(lambda x: x * (1 + F32 * noise.random(x.shape, np.float32)))[0].why


def test_what_is_not_finite_is_equal_to_itself():
    with np.errstate(all="ignore"):
        assert not look(lambda x: np.log(x))[0].why
        assert look(lambda x: np.log(x - x.mean(0)))[0].proven
        assert not look(lambda x: x / np.float32(0) + x)[0].proven


def test_a_state_is_no_proof_even_where_each_call_looks_right():
    seen = [np.zeros((1, 2), np.float32)]

    def before(x):
        seen.append(x.copy())
        return seen[-2] if len(seen[-2]) == len(x) else x

    finding, calls = look(before)
    assert "has a state" in finding.why
    assert not finding.proven
    assert not calls.kept


def test_many_rows_are_compared_with_few():
    finding, _ = look(lambda x: x - (x.mean(0) if len(x) > 100 else 0), repeat=333)
    assert finding.proven
    assert "among 333" in finding.why


def test_a_model_that_always_fails_is_called_a_few_times():
    count = []

    def fails(x):
        count.append(x)
        raise ValueError("no")

    finding, _ = look(fails)
    assert finding == ("it fails on random rows: ValueError: no", False, False)
    assert len(count) <= len(model_probe.KINDS)


def test_an_exception_that_cannot_be_printed_is_named():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError

    def fails(x):
        raise Unprintable

    assert "Unprintable" in look(fails)[0].why


def test_numbers_that_a_model_can_take_are_looked_for():
    def positive(x):
        if (x < 0).any():
            raise ValueError("negative")
        return np.sqrt(x)

    assert not look(positive)[0].why
    assert look(lambda x: positive(x) / positive(x).sum())[0].proven


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_integers_are_few_and_neighbours_differ(dtype):
    seen = []
    like = (np.zeros((8, 1), dtype),)
    finding, _ = look(lambda i: seen.append(i.copy()) or i.astype(np.float32), like=like)
    assert not finding.why
    assert {int(i.max()) for i in seen} == {0, 1}
    assert look(lambda i: i / np.float32(len(i)), like=like)[0].proven


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_both_parts_of_complex_rows_vary_and_are_compared(dtype):
    like = (np.zeros((8, 2), dtype),)
    assert not look(lambda z: z * z.conj()[:, ::-1] + 1j, like=like)[0].why
    assert look(lambda z: z + 1j * z.imag.mean(), like=like)[0].proven
    assert look(lambda z: z.imag - z.imag.max(), like=like)[0].proven
    assert "not finite" in look(lambda z: z * np.nan, like=like)[0].why


def test_a_table_of_one_entry_is_looked_up_with_floats_that_vary():
    like = np.zeros((8, 2), np.float32), np.zeros(8, np.int32)
    table = np.ones(1, np.float32)
    assert not look(lambda x, i: x * table[i][:, None], like=like)[0].why
    assert look(lambda x, i: x * table[i][:, None] - x.mean(), like=like)[0].proven


# ---- memory


def test_inputs_that_are_left_alone_are_neither_changed_nor_kept():
    for function in (lambda x: x, lambda x: x[::-1][::-1], lambda x: x.T.T, lambda x: x.copy()):
        _, calls = look(function)
        assert not calls.changed
        assert not calls.kept


@pytest.mark.takes_long
def test_what_only_a_circle_keeps_is_not_kept():
    def function(x):
        circle = [x]
        circle.append(circle)
        return 2 * x

    gc.disable()
    try:
        assert not look(function)[1].kept
    finally:
        gc.enable()


def test_one_view_of_one_row_is_kept():
    seen = []
    assert look(lambda x: seen.append(x[3:4, 1:]) or x, n=8)[1].kept


def test_an_input_that_is_refused_is_given_to_be_written():
    def function(x):
        x += 1
        return x * 2

    finding, calls = look(function)
    assert calls.changed
    assert not finding.why


def test_looking_is_the_same_at_every_start():
    first, second = ([*model_probe.random_rows((np.zeros((5, 2)),))] for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
