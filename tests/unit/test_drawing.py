"""`mpiserve check` draws which rank of a world does what."""

import tomllib

import pytest

from mpiserve.config import Config
from mpiserve.errors import ConfigError
from mpiserve.launch import drawing
from mpiserve.launch.plan import plan

INPUTS = 'inputs = [{name = "x", dtype = "float32", shape = [-1]}]\n'


def make(text="", **services):
    """A configuration of these services, each with its keys, and of other tables."""
    for name, keys in services.items():
        backend = "" if "backend" in keys else 'backend = "echo"\n'
        text += f"\n[service.{name}]\n{backend}{INPUTS}{keys}\n"
    return Config.from_dict(tomllib.loads(text), source="c.toml")


def drawn(config, *world):
    return drawing.drawn(config, plan(config, *world))


def test_nodes_alike_share_a_line():
    config = make("partition.placement = 'per-node'", flow="replicas = 4")
    assert drawn(config, 16, 4) == [
        "nodes 0-3  ...A",
        "",
        "  .  simulation                ranks 0-2, 4-6, 8-10, 12-14 (12)",
        "  A  flow                      4 replicas, ranks 3, 7, 11, 15 (4)",
    ]


def test_pools_spares_a_gateway_and_replicas_of_several_ranks():
    config = make(
        "partition.spares = 1\n[gateway]\n[pool.both]\nservices = ['flow', 'heat']\nranks = 2",
        flow="",
        heat="",
        turbulence="backend = 'deepspeed'\nmodel = 'm:f'\nreplicas = 2\ntensor_parallel = 2\n"
        'outputs = [{name = "y", dtype = "float32", shape = [-1]}]',
    )
    assert drawn(config, 12) == [
        "node 0  ....ABBABB+*",
        "",
        "  .  simulation                ranks 0-3 (4)",
        "  A  flow + heat               2 replicas, ranks 4, 7 (2)",
        "  B  turbulence                2 replicas of 2 ranks, ranks 5-6, 8-9 (4)",
        "  +  spare                     of flow + heat, rank 10",
        "  *  gateway                   rank 11",
    ]


def test_many_ranks_fit_into_eighty_columns():
    services = {f"service_with_a_long_name_{i}": "replicas = 20" for i in range(30)}
    lines = drawn(make(**services), 3000, 1000)
    assert lines[0] == "nodes 0-1  . x 1000"
    assert lines[1].startswith("node 2     . x 400  A  B  C  D")
    assert all(len(line) <= drawing.WIDTH for line in lines)
    assert sum(line.startswith("  #  ") for line in lines) == 4
    assert "ranks 2400, 2430, 2460" in " ".join(lines) and ", ... (20)" in "\n".join(lines)


@pytest.mark.parametrize(
    ("partition", "first"),
    [
        ("", "node 0  .AAA"),
        ("ranks = [1, 2, 5]", "node 0  .AA..A"),
        ("placement = 'per-node'\nper_node = 1", "nodes 0-2  .A"),
        ("placement = 'dedicated'", "node 0  ..."),
    ],
)
def test_without_a_number_of_ranks_the_smallest_world_is_drawn(capsys, partition, first):
    config = make(f"[partition]\n{partition}", flow="replicas = 3")
    drawing.show(config, None, None)
    said = capsys.readouterr().out
    assert f"\n{first}\n" in said and "The smallest world is drawn" in said
    assert "│ flow" in said


def test_a_partition_that_fits_no_world_is_an_error():
    config = make("[partition]\nplacement = 'per-node'\nper_node = 2", flow="replicas = 3")
    with pytest.raises(
        ConfigError, match="2 on each of 2 nodes make 4 ranks, but the services take 3"
    ):
        drawing.show(config, None, None)
