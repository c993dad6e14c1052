"""Rows that are not to be trusted: marked, or answered by the physics."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from mpi.coupling import couple, numbers, python, tensor
from mpi.models import features

from mpiserve.errors import ArgumentError, ModelError

LIMIT = 0.5


def doubtful(**settings):
    """A service whose uncertainty is the fraction of its numbers."""
    x, y = tensor("x", "float64", 2), tensor("y", "float64", 2)
    table = {"method": "model", "limit": LIMIT}
    return python("doubtful", [x], [y], uncertainty=table, **settings)


def halves(rows):
    """Numbers of which every third row is uncertain, and one is not a number's."""
    x = np.floor(numbers(rows, 2)) + 0.25
    x[2::3, 1] += 0.5
    x[0] = -1
    return x, (x - np.floor(x) > LIMIT).any(1) | (x < 0).any(1)


@pytest.mark.roles(simulation=1, inference=2)
def test_rows_above_the_limit_are_answers_and_are_marked(world):
    def simulate(session):
        service = session.service("doubtful")
        assert service.uncertainty_limit == LIMIT
        assert [t.name for t in service.outputs] == ["y"] and not service.checks
        total = 0
        for rows in (1, 6, 60, 200):  # in a slot, in leased rows, in pieces
            x, wrong = halves(rows)
            request = service.submit(x)
            assert request.trusted is None
            np.testing.assert_array_equal(request.result(), 2 * x)
            np.testing.assert_array_equal(request.trusted, ~wrong)
            assert request.stats["untrusted_rows"] == wrong.sum()
            assert request.stats["source"] == "model"
            total += wrong.sum()
        with pytest.raises(ArgumentError, match="'doubtful' says how uncertain rows are"):
            service.pace()
        inputs, outputs = service.empty_input(60), service.empty_output(60)
        inputs[...], wrong = halves(60)
        request = service.submit(inputs, out=outputs)
        np.testing.assert_array_equal(request.result(), 2 * inputs)
        np.testing.assert_array_equal(request.trusted, ~wrong)
        total += wrong.sum()
        assert session.info()["counters"]["untrusted_rows"] == total
        assert service.totals()["untrusted_rows"] == total
        plain = session.service("plain")
        assert plain.uncertainty_limit is None
        request = plain.submit(x)
        assert request.result().shape == x.shape and request.trusted.all()

    services = {"doubtful": doubtful(max_batch_rows=64)}
    x, y = tensor("x", "float64", 2), tensor("y", "float64", 2)
    couple(world, services | {"plain": python("scale", [x], [y])}, simulate)


@pytest.mark.roles(simulation=1, inference=2)
def test_a_service_that_cannot_be_loaded_ends_no_other(world):
    def simulate(session):
        with pytest.raises(ModelError, match="no 'absent'"):
            session.service("absent")
        x = numbers(6, 2)
        np.testing.assert_array_equal(session.service("plain")(x), 2 * x + 1)

    x, y = tensor("x", "float64", 2), tensor("y", "float64", 2)
    table = {"method": "model", "limit": LIMIT}
    absent = python("absent", [x], [y], uncertainty=table)
    couple(world, {"absent": absent, "plain": python("scale", [x], [y])}, simulate)


@pytest.mark.roles(simulation=2, inference=2)
def test_the_fallback_answers_rows_that_fail_and_rows_that_are_uncertain_in_one_call(world):
    def simulate(session):
        service, given = session.service("doubtful"), []

        @service.fallback
        def physics(x):
            given.append(x)
            return -x

        for rows in (6, 60):
            x, wrong = halves(rows)
            x[4] = 3e6  # beyond max
            wrong[4] = True
            request = service.submit(x)
            expected = np.where(wrong[:, None], -x, 2 * x)
            np.testing.assert_array_equal(request.result(), expected)
            np.testing.assert_array_equal(request.trusted, ~wrong)
            assert request.stats["fallback_rows"] == wrong.sum()
            assert request.stats["untrusted_rows"] == wrong.sum() - 1
            np.testing.assert_array_equal(given.pop(), x[wrong])
        assert not given and session.info()["counters"]["failed_rows"] == 2
        with pytest.raises(ModelError, match="the outputs are in the place of the inputs"):
            service(copy := x.copy(), out=copy)
        service.fallback(lambda x: 1 / 0)
        with pytest.raises(ModelError, match=r"the fallback failed: ZeroDivisionError"):
            service(x)
        with pytest.raises(ModelError, match=r"row 0 is not trusted: its uncertainty is nan"):
            service(x[:3])
        service.fallback(None)
        with pytest.raises(ModelError, match=r"row 4: 6e\+06 is not within .*\(1 of 60 rows"):
            service(x)

    y = tensor("y", "float64", 2) | {"max": 1e6}
    couple(world, {"doubtful": doubtful(replicas=2) | {"outputs": [y]}}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_rows_of_a_fallback_that_is_set_after_submit_are_marked(world):
    def simulate(session):
        service = session.service("bounded")
        x = np.arange(8.0).reshape(8, 1)
        request = service.submit(x)
        service.fallback(lambda x: -x)
        np.testing.assert_array_equal(request.result(), np.where(x > 5, -x, 2 * x + 1))
        np.testing.assert_array_equal(request.trusted, x[:, 0] <= 5)

    x, y = tensor("x", "float64", 1), tensor("y", "float64", 1)
    couple(world, {"bounded": python("scale", [x], [y | {"max": 11.0}])}, simulate)


@pytest.mark.roles(simulation=1, inference=1)
def test_a_request_without_rows_is_trusted_or_not(world):
    def simulate(session):
        service = session.service("field")
        for value in (0.25, 0.75):
            request = service.submit(np.full((3, 2), value))
            np.testing.assert_array_equal(request.result(), np.full((3, 2), 2 * value))
            assert request.trusted.tolist() == [value < LIMIT]
        service.fallback(lambda x: -x)
        np.testing.assert_array_equal(service(np.full((3, 2), 0.75)), np.full((3, 2), -0.75))

    x, y = ({"name": name, "dtype": "float64", "shape": [3, 2]} for name in "xy")
    table = {"method": "model", "limit": LIMIT}
    field = python("doubtful_field", [x], [y], rows="none", uncertainty=table)
    couple(world, {"field": field}, simulate)


# ---- a model that knows half of the state space


def physics(x):
    return np.sin(5 * x)


def train(folder):
    """Fit networks to the half of -1 to 1 that is below 0."""
    import torch
    from safetensors.torch import save_file

    x = np.linspace(-1, 0, 400)[:, None]
    np.savez(folder / "train.npz", x=x)
    for seed in range(4):
        torch.manual_seed(seed)
        network = features()
        state = network.state_dict()
        state["0.weight"].normal_(0, 4)
        state["0.bias"].uniform_(-4, 4)
        hidden = network[1](network[0](torch.from_numpy(x))).detach()
        hidden = torch.cat([hidden, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        ridge = hidden.T @ hidden + 1e-6 * torch.eye(33, dtype=torch.float64)
        found = torch.linalg.solve(ridge, hidden.T @ torch.from_numpy(physics(x)))
        state["2.weight"].copy_(found[:-1].T)
        state["2.bias"].copy_(found[-1])
        save_file(state, folder / f"{seed}.safetensors")


TABLES = {
    "ensemble": {"limit": 0.01, "weights": [f"{seed}.safetensors" for seed in (1, 2, 3)]},
    "distance": {"limit": 2.0, "data": "train.npz"},
}


@pytest.mark.takes_long
@pytest.mark.timeout(120)
@pytest.mark.roles(simulation=1, inference=1)
@pytest.mark.parametrize("method", TABLES)
def test_a_model_of_half_of_the_states_is_right_everywhere_with_the_physics(world, method):
    folder = world.comm.bcast(tempfile.mkdtemp() if world.comm.rank == 0 else None)
    if world.comm.rank == 0:
        train(Path(folder))
    world.comm.Barrier()

    def simulate(session):
        service = session.service("network")
        x = np.random.default_rng(1).uniform(-1, 1, (1000, 1))
        alone = service.submit(x)
        known = x[:, 0] < 0
        error = np.abs(alone.result() - physics(x))[:, 0]
        assert error[known].max() < 0.01, "it knows the states that it was trained with"
        assert error[~known].max() > 0.5, "and no others"
        assert alone.trusted[known].mean() > 0.95 and alone.trusted[x[:, 0] > 0.2].mean() == 0
        service.fallback(physics)
        gated = service.submit(x)
        assert np.abs(gated.result() - physics(x)).max() < 0.01
        assert gated.stats["fallback_rows"] == (~gated.trusted).sum() < 600

    x, y = tensor("x", "float64", 1), tensor("y", "float64", 1)
    network = python("features", [x], [y], backend="torch", rows=None, warmup=True)
    paths = {
        key: [f"{folder}/{one}" for one in value] if key == "weights" else value
        for key, value in TABLES[method].items()
    }
    if method == "distance":
        paths["data"] = f"{folder}/train.npz"
    network |= {"options": {"weights": f"{folder}/0.safetensors"}}
    couple(world, {"network": network | {"uncertainty": {"method": method, **paths}}}, simulate)
