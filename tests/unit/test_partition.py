import tomllib

import pytest

from mpiserve.config import Config
from mpiserve.config.partition import assign, assignments, roles
from mpiserve.errors import ConfigError


def make(partition="", **replicas):
    """A configuration with these services, each of so many replicas."""
    text = f"[partition]\n{partition}\n"
    for name, count in replicas.items():
        text += f'[service.{name}]\nbackend = "echo"\nreplicas = {count}\n'
        text += 'inputs = [{name = "x", dtype = "float32", shape = [-1]}]\n'
    return Config.from_dict(tomllib.loads(text), source="c.toml")


def inference(config, size, nodes=None):
    return [rank for rank, role in enumerate(roles(config, size, nodes)) if role == "inference"]


def test_tail_takes_the_last_ranks():
    assert inference(make(a=2), 5) == [3, 4]


def test_listed_ranks_are_taken_in_any_order():
    assert inference(make("ranks = [4, 0]", a=2), 5) == [0, 4]


def test_per_node_takes_the_tail_of_each_node():
    config = make("placement = 'per-node'", a=2)
    assert inference(config, 8, [0, 0, 0, 0, 4, 4, 4, 4]) == [3, 7]


def test_per_node_follows_nodes_in_any_rank_order():
    config = make("placement = 'per-node'", a=2)
    assert inference(config, 6, [0, 1, 0, 1, 0, 1]) == [4, 5]


def test_per_node_spreads_evenly():
    config = make("placement = 'per-node'", a=3)
    assert inference(config, 9, [0] * 3 + [1] * 3 + [2] * 3) == [2, 5, 8]
    assert inference(config, 6, [0, 0, 0, 1, 1, 1]) == [1, 2, 5]


def test_per_node_leaves_each_node_a_simulation_rank_where_it_can():
    config = make("placement = 'per-node'", a=2)
    assert inference(config, 4, [0, 1, 1, 1]) == [2, 3]


def test_per_node_on_one_node_is_the_tail():
    assert inference(make("placement = 'per-node'", a=2), 4) == [2, 3]


def test_assignments_mix_services_so_that_each_node_gets_some_of_each():
    order = [
        (assignment.service.name, assignment.replica)
        for assignment in assignments(make(a=2, b=1, c=2))
    ]
    assert order == [("a", 0), ("b", 0), ("c", 0), ("a", 1), ("c", 1)]


def test_assign_gives_every_rank_a_seat():
    assert len(assign(make(a=2, b=1), 3)) == 3


@pytest.mark.parametrize(
    ("config", "size", "line"),
    [
        (
            make(a=3),
            3,
            "service.a.replicas: 3 replicas need 3 inference ranks, "
            "the world of 3 ranks leaves 2 beside a simulation rank",
        ),
        (
            make(a=1),
            1,
            "service.a.replicas: 1 replica needs 1 inference rank, "
            "the world of 1 rank leaves 0 beside a simulation rank",
        ),
        (
            make(a=1, b=2),
            3,
            "service.b.replicas: 2 replicas need 2 inference ranks (3 with the services above), "
            "the world of 3 ranks leaves 2 beside a simulation rank",
        ),
        (make("ranks = [9]", a=1), 4, "partition.ranks: rank 9 is not in the world of 4 ranks"),
        (make("ranks = [1]", a=2), 4, "partition.ranks: 1 rank listed, but the services take 2"),
    ],
)
def test_services_that_do_not_fit_into_the_world_are_one_line(config, size, line):
    with pytest.raises(ConfigError) as caught:
        roles(config, size)
    assert str(caught.value) == f"c.toml: {line}"


@pytest.mark.parametrize(
    ("ranks", "line"),
    [
        (1, "service.b.replicas: 1 replica needs 1 inference rank (2 with the services above), "),
        (3, "service: the services take 2 ranks, but 3 ranks serve"),
    ],
)
def test_ranks_without_a_seat_and_seats_without_a_rank_are_refused(ranks, line):
    with pytest.raises(ConfigError) as caught:
        assign(make(a=1, b=1), ranks)
    assert str(caught.value).startswith(f"c.toml: {line}")


def pooled(ranks):
    """A pool of c and a, beside b."""
    table = {"backend": "echo", "inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}
    tables = {"service": dict.fromkeys("abc", table)}
    tables["pool"] = {"p": {"ranks": ranks, "services": ["c", "a"]}}
    return Config.from_dict(tables, source="c.toml")


def test_each_rank_of_a_pool_serves_all_of_its_services():
    order = [(assignment.name, assignment.replica) for assignment in assignments(pooled(2))]
    assert order == [("c + a", 0), ("b", 0), ("c + a", 1)]


def test_a_pool_that_does_not_fit_is_one_line():
    with pytest.raises(ConfigError) as caught:
        roles(pooled(4), 4)
    assert str(caught.value).startswith("c.toml: pool.p.ranks: 4 replicas need 4 inference ranks, ")


def test_spares_come_last_and_serve_one_group_at_a_time():
    x = [{"name": "x", "dtype": "float32", "shape": [-1]}]
    service = {"backend": "echo", "inputs": x, "outputs": x}
    tables = {"service": {"a": service, "b": service | {"replicas": 2}}}
    config = Config.from_dict(tables | {"partition": {"spares": 2}})
    listed = assignments(config)
    assert [each.spare for each in listed] == [False] * 3 + [True] * 2
    assert [each.replica for each in listed] == [0, 0, 1, 0, 1]
    assert inference(config, 7) == [2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match="partition.spares: 2 spares beside 3 ranks"):
        assign(config, 4)
    with pytest.raises(ConfigError, match="warm_spares needs spares"):
        Config.from_dict(tables | {"partition": {"warm_spares": True}})


def test_a_spare_of_several_ranks_is_one_group_of_them():
    x = [{"name": "x", "dtype": "float32", "shape": [-1]}]
    pair = {"backend": "m:Pair", "inputs": x, "outputs": x, "tensor_parallel": 2}

    def assigned(services, **partition):
        return assignments(Config.from_dict({"service": services, "partition": partition}))

    listed = assigned({"a": pair}, spares=4, warm_spares=True)
    assert [(each.replica, each.tp_index) for each in listed] == [(0, 0), (0, 1)] * 2 + [
        (1, 0),
        (1, 1),
    ]
    assert [each.spare for each in listed] == [False] * 2 + [True] * 4
    assert all(each.backed for each in listed)
    assert not any(each.backed for each in assigned({"a": pair}))
    with pytest.raises(ConfigError, match="warm_spares: a spare of service 'a', of 2 ranks"):
        assigned({"a": pair}, spares=2)
    with pytest.raises(ConfigError, match="spares: 3 ranks make no whole spares of service 'a'"):
        assigned({"a": pair}, spares=3, warm_spares=True)
    with pytest.raises(ConfigError, match="spares: no service is left for spares"):
        assigned({"a": pair, "b": pair}, spares=2, warm_spares=True)
