"""The choice between a local and a remote model, by what each has cost."""

from __future__ import annotations

import pytest

from mpiserve.config import Config
from mpiserve.errors import ConfigError
from mpiserve.serving.placement.breaker import CLOSED, HALF_OPEN, OPEN, Breaker
from mpiserve.serving.placement.cost import Cost
from mpiserve.serving.placement.policy import LOCAL, REMOTE, Policy, Work

X = {"name": "x", "dtype": "float32", "shape": [-1, 2]}
TABLE = {"backend": "python", "model": "m:f", "inputs": [X], "outputs": [X | {"name": "y"}]}
REMOTE_TABLE = {"model": "double", "options": {"url": "http://host:1"}}


def test_calls_and_rows_are_told_apart():
    cost = Cost()
    for i, rows in enumerate((1, 10, 100, 50)):
        cost.add(rows, 0.5 + 0.01 * rows, 0.1 * i)
    assert cost.call == pytest.approx(0.5)
    assert cost.row == pytest.approx(0.01)


def test_one_late_sample_changes_nothing_and_two_do():
    cost = Cost()
    for i in range(10):
        cost.add(4, 1.0, 0.1 * i)
    cost.add(4, 10.0, 1.0)
    assert cost.seconds(4) == pytest.approx(1.0)
    cost.add(4, 10.0, 1.1)
    assert cost.seconds(4) == pytest.approx(10.0)


def policy(placement, local, remote):
    made = Policy(placement, connections=4, most=64, probe_s=0.1)
    for cost, (call, row) in ((made.local, local), (made.remote, remote)):
        for i, rows in enumerate((1, 20, 40)):
            cost.add(rows, call + row * rows, 0.1 * i)
    return made


def test_the_side_changes_only_for_a_clear_gain():
    work = Work(rows=10, requests=1)
    assert policy("auto", (1.0, 0.0), (0.9, 0.0)).choose(work, 1.0, True, True) == LOCAL
    assert policy("auto", (1.0, 0.0), (0.5, 0.0)).choose(work, 1.0, True, True) == REMOTE


def test_a_request_that_the_server_keeps_for_long_counts_before_it_ends():
    made = policy("auto", (1.0, 0.0), (0.5, 0.0))
    assert made.choose(Work(10, 1), 1.0, True, True) == REMOTE
    assert made.choose(Work(10, 1, oldest=3.0), 2.0, True, True) == LOCAL


@pytest.mark.parametrize("placement", ["local", "remote", "auto", "split"])
def test_the_model_that_is_there_answers(placement):
    made = policy(placement, (1.0, 0.0), (1.0, 0.0))
    assert made.choose(Work(1, 1), 1.0, False, True) == REMOTE
    assert made.choose(Work(1, 1), 2.0, True, False) == LOCAL


def test_a_split_ends_on_both_sides_at_the_same_time():
    made = policy("split", (0.0, 0.03), (0.0, 0.01))
    assert made.split(Work(rows=40, requests=1)) == 30
    made = policy("split", (0.0, 0.01), (5.0, 0.01))
    assert made.split(Work(rows=40, requests=1)) == 0


def test_a_breaker_opens_asks_and_closes():
    breaker = Breaker(failures=2, seconds=1.0)
    assert not breaker.fail(0.0)
    assert breaker.state == CLOSED
    assert breaker.fail(0.1)
    assert breaker.state == OPEN
    assert not breaker.due(0.5)
    assert breaker.due(1.2)
    breaker.told(False, 1.2)
    assert breaker.state == OPEN
    breaker.told(True, 2.3)
    assert breaker.state == HALF_OPEN
    assert breaker.fail(2.4)
    assert breaker.state == OPEN
    breaker.told(True, 3.5)
    assert breaker.succeed()
    assert breaker.state == CLOSED


@pytest.mark.parametrize(
    "keys, text",
    [
        ({"placement": "auto"}, "needs a table"),
        ({"model": "m{version}:f", "version": "1", "remote": REMOTE_TABLE}, "two versions"),
        ({"derivatives": ["vjp"], "backend": "torch", "remote": REMOTE_TABLE}, "derivatives"),
        ({"remote": {}}, "remote.model: missing"),
    ],
)
def test_what_cannot_be_placed_is_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        Config.from_dict({"service": {"s": TABLE | keys}})


def test_a_version_is_that_of_both_models():
    remote = {"model": "double/versions/{version}"}
    keys = {"model": "m_{version}:f", "version": "1", "remote": remote, "placement": "auto"}
    service = Config.from_dict({"service": {"s": TABLE | keys}}).services[0].of_version("2")
    assert service.remote.model == "double/versions/2"
