"""A function of the simulation's answers what the service does not."""

import logging
import threading

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, tensor

from mpiserve.errors import ArgumentError, Code, Error, ModelError, PeerError, RequestTimeout

SLOW, SHORT = 1.0, 0.1  # seconds: of the model, of a time-out


def moody(**settings):
    return python("moody", [tensor("x", "float64")], [tensor("y", "float64")], **settings)


def physics(x):
    return x + 1


BAD = np.full(3, -3.0)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", [1, 100])
def test_the_fallback_answers_what_the_model_refuses(world, rows, caplog):
    def simulate(session):
        service = session.service("moody")
        assert service.fallback(physics) is physics
        x, out = np.full(rows, -3.0), np.zeros(rows)
        for _ in range(3):
            np.testing.assert_array_equal(service(x), x + 1)
        assert service(x, out=out) is out
        np.testing.assert_array_equal(out, x + 1)
        np.testing.assert_array_equal(service(np.full(rows, 0.001)), np.full(rows, 0.002))

        request = service.submit(x)
        np.testing.assert_array_equal(request.result(), x + 1)
        stats = request.stats
        assert (stats["source"], stats["rows"], stats["fallback_rows"]) == ("fallback", rows, rows)
        request = service.submit(np.full(rows, 0.001))
        while not request.done():
            pass
        assert (request.stats["source"], request.stats["fallback_rows"]) == ("model", 0)
        assert service.totals()["fallback_rows"] == 5 * rows
        counters = session.info()["counters"]
        assert (counters["fallbacks"], counters["errors"], counters["requests"]) == (5, 0, 7)

        service.fallback(None)
        with pytest.raises(ModelError, match="negative"):
            service(x)

    with caplog.at_level(logging.WARNING, "mpiserve"):
        couple(world, {"moody": moody()}, simulate)
    if world.role == "simulation":
        said = [record.message for record in caplog.records if "fallback" in record.message]
        assert len(said) == 1, "once for each cause"
        assert "service moody: the fallback physics answers" in said[0]
        assert "ValueError: negative input -3" in said[0]


@pytest.mark.roles(simulation=1, inference=1)
def test_inputs_and_outputs_are_those_of_the_signature(world):
    tensors = [tensor("a", "float32", 4), tensor("b", "float32")]
    made = [tensor("product", "float32", 4), tensor("difference", "float32")]

    def simulate(session):
        service = session.service("combine")
        a, b = numbers(5, 4).astype(np.float32), np.arange(5, dtype=np.float32)

        @service.fallback
        def by_name(a, b):
            assert (a.dtype, a.shape, b.shape) == (np.float32, (5, 4), (5,))
            return {"difference": b, "product": a.astype(np.float64)}  # cast

        result = service(b=b, a=a)
        np.testing.assert_array_equal(result.product, a)
        np.testing.assert_array_equal(result.difference, b)
        service.fallback(lambda a, b: [a[:, ::-1], 2 * b])  # lists, and arrays with gaps
        np.testing.assert_array_equal(service(a, b).product, a[:, ::-1])
        for wrong, text in {
            "one": "must return 2 outputs",
            "names": "must be named product, difference",
            "shape": r"output 'product': expected float32 \[5, 4\], got float32 \[5\]",
            "kind": r"output 'difference': expected float32 \[5\], got complex64",
        }.items():
            results = {
                "one": a,
                "names": {"product": a, "sum": b},
                "shape": (b, b),
                "kind": (a, 1j * b),
            }
            service.fallback(lambda a, b, wrong=wrong, results=results: results[wrong])
            with pytest.raises(ModelError, match=f"the fallback failed: ValueError: .*{text}"):
                service(a, b)

    # The model cannot be called so: each request fails.
    couple(world, {"combine": python("moody", tensors, made)}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_fallback_that_raises(world):
    def simulate(session):
        service = session.service("moody")

        def raises(x):
            raise RuntimeError("no mesh")

        def interrupted(x):
            raise KeyboardInterrupt

        def calls(x):
            return service(x)

        service.fallback(raises)
        with pytest.raises(ModelError) as caught:
            service(BAD)
        assert caught.value.code == Code.EMODEL
        assert "negative input -3" in caught.value.text
        assert caught.value.text.endswith("the fallback failed: RuntimeError: no mesh")
        assert isinstance(caught.value.__cause__, RuntimeError), "its traceback is shown"
        service.fallback(interrupted)
        with pytest.raises(KeyboardInterrupt):
            service(BAD)
        service.fallback(calls)
        with pytest.raises(ModelError, match="must not call the session that calls it") as caught:
            service(BAD)
        assert isinstance(caught.value.__cause__, Error)
        with pytest.raises(ArgumentError, match="must be callable"):
            service.fallback(3)
        service.fallback(physics)
        np.testing.assert_array_equal(service(BAD), BAD + 1)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("rows", [1, 100])
def test_the_fallback_answers_at_a_deadline(world, rows):
    def simulate(session):
        service = session.service("moody")
        service.fallback(physics)
        slow = np.full(rows, SLOW)
        np.testing.assert_array_equal(service(slow, timeout=SHORT), slow + 1)
        request = service.submit(slow, deadline=SHORT)
        np.testing.assert_array_equal(request.result(), slow + 1)
        request = service.submit(slow)
        with pytest.raises(RequestTimeout):
            request.result(timeout=SHORT)
        np.testing.assert_array_equal(request.result(), 2 * slow)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_threads_take_turns_with_a_fallback(world):
    def simulate(session):
        service = session.service("moody")
        service.fallback(physics)
        wrong = []

        def ask(x):
            for _ in range(30):
                wrong.append((service(x) != (x + 1 if x[0] < 0 else 2 * x)).any())

        threads = [threading.Thread(target=ask, args=(np.full(2, v),)) for v in (-1.0, 0.0, -2.0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 90 and not any(wrong)

    couple(world, {"moody": moody()}, simulate)


@pytest.mark.roles(simulation=2, inference=1)
def test_the_failure_of_a_simulation_rank_is_not_hidden(world):
    def simulate(session):
        service = session.service("moody")
        service.fallback(physics)
        if session.comm.rank == 1:
            session.fail("the mesh is tangled")
            return
        with pytest.raises(PeerError, match="the mesh is tangled"):
            while True:
                service(np.full(2, 0.001))

    couple(world, {"moody": moody()}, simulate)
