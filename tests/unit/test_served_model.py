import asyncio
import logging
import os
import signal

import ml_dtypes
import numpy as np
import pytest
from workers import Model, batch, worker_of

from mpiserve import backends, failure
from mpiserve.errors import Code
from mpiserve.failure import interrupts


@pytest.fixture
def make(monkeypatch):
    """A worker of one model, which a function is, and its session handle."""

    def build(function, *batches, **table):
        return worker_of(monkeypatch, function, *batches, **table)

    return build


def raises(error):
    def function(*_):
        raise error

    return function


def test_a_batch_is_answered_by_the_model(make):
    this, lib = make(lambda x: x * 2, batch(value=3.0))
    this.serve()
    assert len(lib.answers) == 1
    np.testing.assert_array_equal(lib.answers[0][0], np.full((3, 2), 6.0, np.float32))


def test_the_service_is_published_with_its_signature(make):
    this, lib = make(lambda x: x, max_batch_rows=7, max_delay_us=5)
    this.serve()
    assert lib.published["name"] == "s"
    assert lib.published["inputs"] == [("x", "float32", (-1, 2))]
    assert lib.published["engine"].endswith("Model")
    limits = [lib.published[key] for key in ("max_batch_rows", "max_delay_us", "replica")]
    assert limits == [7, 5, 1]
    assert "error_code" not in lib.published


def test_the_model_is_warm_before_the_service_is_announced(make):
    rows = []

    def function(x):
        assert lib.published is None
        rows.append(len(x))
        return x

    this, lib = make(function, warmup=True, max_batch_rows=16)
    this.start()
    assert {1, 16} <= set(rows)
    assert lib.published


def test_outputs_are_found_by_name_or_by_position(make):
    for function in (
        lambda x: {"b": x * 2, "a": x},
        lambda x: (x, x * 2),
        lambda x: [x, x * 2],
    ):
        this, lib = make(function, batch(value=3.0), names=("a", "b"))
        this.serve()
        assert [answer[0, 0] for answer in lib.answers[0]] == [3.0, 6.0]


def test_a_strided_result_is_made_dense(make):
    this, lib = make(lambda x: np.asfortranarray(x), batch())
    lib.reply = lambda outputs: lib.answers.extend(o.flags.c_contiguous for o in outputs)
    this.serve()
    assert lib.answers == [True]


class Mute(Exception):
    def __str__(self):
        raise KeyboardInterrupt


WRONG = {
    "output 'y': expected float32 [3, 2], got float64 [3, 2]": lambda x: x.astype(float),
    "output 'y': expected float32 [3, 2], got float32 [2, 2]": lambda x: x[1:],
    "output 'y': expected float32 [3, 2], got float32 [6]": lambda x: x.ravel(),
    "output 'y': expected float32 [3, 2], got float32 []": lambda x: x.sum(),
    "output 'y': expected float32 [3, 2], got object []": lambda x: None,
    "expected 1 outputs (y), got 2": lambda x: (x, x),
    "expected outputs y, got z": lambda x: {"z": x},
    "ValueError: no good": raises(ValueError("no\n  good")),
    "KeyError: 'k'": raises(KeyError("k")),
    "AssertionError": raises(AssertionError()),
    "SystemExit: 3": raises(SystemExit(3)),
    "KeyboardInterrupt: of the model": raises(KeyboardInterrupt("of the model")),
    "CancelledError": raises(asyncio.CancelledError()),
    "Mute: (its text cannot be read: KeyboardInterrupt)": raises(Mute()),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_failure_answers_its_batch_and_the_service_lives_on(make, text):
    this, lib = make(WRONG[text], batch(), batch())
    this.serve()
    assert lib.answers == [(Code.EMODEL, text)] * 2
    assert not this.failed


def test_ctrl_c_while_a_model_runs_ends_the_rank(make):
    def function(x):
        os.kill(os.getpid(), signal.SIGINT)
        return sum(range(10**6))

    this, lib = make(function, batch(), batch())
    with pytest.raises(KeyboardInterrupt), interrupts():
        this.serve()
    assert lib.answers == []


class Awkward(Model):
    """Raises wherever it may."""

    @property
    def engine(self):
        raise GeneratorExit

    def serving(self):
        raise KeyboardInterrupt

    def close(self):
        raise asyncio.CancelledError


def test_what_raises_around_batches_is_logged_and_batches_are_answered(make, monkeypatch, caplog):
    this, lib = make(lambda x: x, batch())
    monkeypatch.setattr(backends, "import_object", lambda *_: Awkward)
    this.serve()
    assert len(lib.answers) == 1 and lib.published["engine"] == "Awkward"
    for text in ("cannot enter what it needs to serve: Keyb", "could not close a model: Canc"):
        assert f"replica 1 (Awkward) {text}" in caplog.text


def test_the_log_names_the_configured_model_until_it_is_loaded(make, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    this, _ = make(lambda x: x, load_error=GeneratorExit("no"), model="there:it")
    this.serve()
    name = f"service s, replica 1 ({Model.__module__}:Model there:it)"
    assert caplog.messages[:2] == [f"loading {name}", f"{name} cannot be served: GeneratorExit: no"]


def test_a_long_error_text_fits_into_a_reply(make):
    this, lib = make(raises(ValueError("\N{SNOWMAN}" * 1000)), batch())
    this.serve()
    assert len(lib.answers[0][1].encode()) <= failure.TEXT


def test_a_failure_is_logged_once_per_text(make, caplog):
    this, _ = make(raises(ValueError("no good")), *[batch()] * 5)
    this.serve()
    failures = [record for record in caplog.records if "failed on a batch" in record.message]
    assert len(failures) == 1
    assert failures[0].exc_info


def test_a_model_that_cannot_be_loaded_is_announced_and_the_rank_stays(make, caplog):
    this, lib = make(lambda x: x, None, load_error=FileNotFoundError("no weights"))
    this.serve()
    assert this.failed
    assert lib.published["error_code"] == Code.EMODEL
    assert lib.published["error_text"] == "FileNotFoundError: no weights"
    assert lib.comes == []
    assert "no weights" in caplog.text


def test_a_model_that_fails_while_it_warms_up_is_announced_as_failed(make):
    this, lib = make(lambda x: x.astype(float), warmup=True)
    this.serve()
    assert "expected float32 [1, 2], got float64 [1, 2]" in lib.published["error_text"]


def test_bfloat16_outputs_are_checked_by_their_dtype(make):
    table = {"outputs": [{"name": "y", "dtype": "bfloat16", "shape": [-1, 2]}]}
    this, lib = make(lambda x: x.astype(ml_dtypes.bfloat16), batch(), **table)
    this.serve()
    assert lib.answers[0][0].dtype == ml_dtypes.bfloat16


def fails_on_zeros(x):
    if not x.any():
        raise ZeroDivisionError("by zero")
    return x


def test_a_model_that_fails_on_zeros_shows_where_and_says_what_to_do(make, caplog):
    this, lib = make(fails_on_zeros, warmup=True)
    this.serve()
    text = lib.published["error_text"]
    assert text.startswith("ZeroDivisionError: by zero; warm-up runs on zeros")
    assert 'warmup = "file.npz"' in text
    assert "warmup = false" in text
    assert "fails_on_zeros" in caplog.text, "the traceback is the model's own"


def test_rows_that_belong_together_are_said_once_and_published(make, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    for replica in 0, 1:
        this, lib = make(lambda x: x - x.mean(0), warmup=True, replica=replica)
        this.serve()
        assert lib.published["rows"] == "together"
    said = [text for text in caplog.messages if 'rows = "together"' in text]
    assert len(said) == 1
    assert len([text for text in caplog.messages if text.endswith("rows together")]) == 2


def test_a_version_of_another_kind_changes_how_requests_are_batched(make):
    this, lib = make(lambda x: x, warmup=True)
    told = []
    lib.set_rows = lambda *what: told.append(what)
    this.start()
    assert told == []
    Model.function = staticmethod(lambda x: x - x.mean(0))
    (model,) = this.models
    model.put(model.load_again(), model.current)
    model.put(model.load_again(), model.current)
    assert told == [(0, "together")]


def test_the_log_names_the_version_that_answers_after_a_change(make, caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    this, _ = make(lambda x: x)
    this.start()
    (model,) = this.models
    version = model.current.model_copy(update={"version": "2"})
    model.put(model.load_version(version), version)
    assert caplog.messages[-1] == f"{model.name()} answers now"
    assert " 2, replica" in caplog.messages[-1]


def test_a_model_that_writes_gets_copies_and_one_that_seldom_does_is_told_how(make):
    def write(x):
        x += 1
        return x

    x = batch()
    x.inputs[0].flags.writeable = False
    this, lib = make(write, x, warmup=True)
    this.serve()
    assert (lib.answers[0][0] == 2).all()
    assert (x.inputs[0] == 1).all()
    this, lib = make(lambda x: write(x) if x[0, 0] == 1 else x, x, warmup=True)
    this.serve()
    assert 'needs input_memory = "copy"' in lib.answers[0][1]
