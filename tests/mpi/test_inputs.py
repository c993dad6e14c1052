"""What is given to a request: refused with a word, or right."""

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, scaling, tensor

from mpiserve import ArgumentError, DeadlineError, DtypeError

pytestmark = pytest.mark.roles(simulation=1, inference=1)

NAN, INF = float("nan"), float("inf")
OPTIONS = ("timeout", "out", "priority", "deadline")


def test_arrays_of_others_are_right_or_refused(world):
    x, y = tensor("x", "bfloat16", 2), tensor("y", "bfloat16", 2)

    def simulate(session):
        import torch  # late: it takes seconds

        service = session.service("same")
        asked = torch.arange(6.0).reshape(3, 2).bfloat16().requires_grad_()
        out = torch.zeros(3, 2, dtype=torch.bfloat16)
        assert service(asked, out=out) is out
        assert (out == asked).all()
        assert (service(asked).astype(float) == asked.detach().float().numpy()).all()
        with pytest.raises(DtypeError, match="input 'x': dtype is float16.*says bfloat16"):
            service(asked.detach().half())
        with pytest.raises(DtypeError, match="input 'x': dtype >f4 .*astype"):
            service(np.zeros((3, 2), ">f4"))
        with pytest.raises(ArgumentError, match="input 'x': .*masked"):
            service(np.ma.array(np.zeros((3, 2)), mask=True))
        with pytest.raises(ArgumentError, match="out: .*grad"):
            service(asked, out=torch.zeros(3, 2, dtype=torch.bfloat16, requires_grad=True))

    couple(world, {"same": python("identity", [x], [y])}, simulate)


def test_an_input_that_is_called_as_an_option_is_never_taken_for_it(world):
    names = ("x", *OPTIONS)
    inputs = [tensor(name, "float64", 1) for name in names]
    outputs = [tensor(f"of_{name}", "float64", 1) for name in names]

    def simulate(session):
        service = session.service("same")
        asked = {name: numbers(3, 1, start=10.0 * i) for i, name in enumerate(names)}

        def check(results):
            for name, result in zip(names, results, strict=True):
                np.testing.assert_array_equal(result, asked[name])

        check(service(*asked.values()))
        check(service(*asked.values(), timeout=20.0, priority=1))
        check(service(asked, timeout=20.0))
        check(service.submit(asked, deadline=20.0, priority=-1).result())
        check(service({name: asked[name] for name in OPTIONS}, x=asked["x"]))
        for name in ("timeout", "out", "priority"):
            others = {key: value for key, value in asked.items() if key != name}
            with pytest.raises(ArgumentError, match=f"has an input '{name}'.*in a dict"):
                service(others, **{name: asked[name]})
        for name in ("deadline", "out", "priority"):
            others = {key: value for key, value in asked.items() if key != name}
            with pytest.raises(ArgumentError, match=f"has an input '{name}'.*in a dict"):
                service.submit(others, **{name: asked[name]})

    couple(world, {"same": python("identity", inputs, outputs)}, simulate)


def test_inputs_by_name_are_the_names_of_the_signature(world):
    def simulate(session):
        service = session.service("scale")
        x = numbers(3, 4)
        np.testing.assert_array_equal(service({"x": x}), 2 * x + 1)
        for given, named in (({"x": x}, {"x": x}), ({0: x}, {}), ({}, {"x\0y": x})):
            with pytest.raises(ArgumentError, match="given twice|is no name|NUL"):
                service(given, **named)
        with pytest.raises(ArgumentError, match="NUL"):
            session.service("scale\0d")

    couple(world, {"scale": scaling()}, simulate)


def test_numbers_that_are_none_are_refused(world):
    def simulate(session):
        service = session.service("scale")
        x = numbers(3, 4)
        request = service.submit(x)
        for wrong in (NAN, -1, "3", np.ones((1, 1)), 10**400):
            with pytest.raises(ArgumentError, match="timeout is"):
                service(x, timeout=wrong)
            with pytest.raises(ArgumentError, match="timeout is"):
                request.result(wrong)
            with pytest.raises(ArgumentError, match="timeout is"):
                session.reload("scale", timeout=wrong)
        for wrong in (NAN, INF, -INF, "3", np.ones((1, 1))):
            with pytest.raises(ArgumentError, match="deadline is"):
                service.submit(x, deadline=wrong)
        for wrong in (1.5, NAN, 101, 2**40, 2**80, "1"):
            with pytest.raises(ArgumentError, match="priority"):
                service.submit(x, priority=wrong)
        for wrong in (1.5, 2**80):
            with pytest.raises(ArgumentError, match="rows is"):
                service.empty_input(wrong)
        for right in (INF, np.float32(20), 20, None):
            np.testing.assert_array_equal(service(x, timeout=right), 2 * x + 1)
        with pytest.raises(DeadlineError):
            service.submit(x, deadline=-1).result()

    counters = couple(world, {"scale": scaling()}, simulate)
    if world.role == "inference":
        assert counters["rows"] == 3 * 5, "nothing else was sent"


def test_outputs_that_share_memory_are_refused(world):
    a, b = tensor("a", "float64", 1), tensor("b", "float64", 1)

    def simulate(session):
        service = session.service("pair")
        x, memory = numbers(3, 1), np.zeros((6, 1))
        for wrong in ((memory[:3], memory[:3]), (memory[:3], memory[2:5])):
            with pytest.raises(ArgumentError, match="arrays 0 and 1 of out share memory"):
                service(x, x + 9, out=wrong)
        service(x, x + 9, out=(memory[:3], memory[3:]))
        np.testing.assert_array_equal(memory, np.vstack([x, x + 9]))
        service(memory[:3], memory[3:], out=(memory[3:], memory[:3]))  # over the inputs
        np.testing.assert_array_equal(memory, np.vstack([x + 9, x]))

    couple(world, {"pair": python("identity", [a, b], [a, b])}, simulate)


def test_statistics_are_those_of_the_request(world):
    def simulate(session):
        service = session.service("moody")
        assert (service(np.zeros((5, 1))) == 0).all()
        failed = service.submit(np.full((2, 1), -1.0))
        assert failed.stats is None
        with pytest.raises(Exception, match="negative"):
            failed.result()
        assert failed.stats is None
        request = service.submit(np.zeros((3, 1)))
        request.result()
        assert request.stats["rows"] == 3

    one = [tensor("x", "float64", 1)], [tensor("y", "float64", 1)]
    couple(world, {"moody": python("moody", *one)}, simulate)
