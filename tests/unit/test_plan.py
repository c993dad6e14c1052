import tomllib

import pytest

from mpiserve.config import Config
from mpiserve.config.partition import cores_of
from mpiserve.errors import ArgumentError, ConfigError
from mpiserve.launch.jobscript import Job, jobscript
from mpiserve.launch.plan import plan, ranges
from mpiserve.launch.resources import Node, this_machine


def make(partition="", replicas=2, threads=1):
    text = f"[partition]\n{partition}\n[service.a]\nbackend = 'echo'\nreplicas = {replicas}\n"
    text += f"threads = {threads}\n" + 'inputs = [{name = "x", dtype = "float32", shape = [-1]}]\n'
    return Config.from_dict(tomllib.loads(text), source="c.toml")


PER_NODE = make("placement = 'per-node'\nper_node = 1")
DEDICATED = make("placement = 'dedicated'")


def test_per_node_clients_query_their_own_node():
    made = plan(PER_NODE, 8, 4)
    assert made.ranks("inference") == [3, 7]
    assert made.clients(3) == [0, 1, 2]
    assert made.clients(7) == [4, 5, 6]


def test_clients_of_other_nodes_query_the_tail_round_robin():
    made = plan(make(), 8, 4)
    assert made.ranks("inference") == [6, 7]
    assert (made.clients(6), made.clients(7)) == ([0, 2, 4], [1, 3, 5])


def test_dedicated_takes_whole_nodes_from_the_end():
    made = plan(DEDICATED, 6, 2)
    assert made.ranks("inference") == [4, 5]
    assert made.dedicated() and not plan(PER_NODE, 8, 4).dedicated()


@pytest.mark.parametrize(
    ("config", "ranks", "per_node", "line"),
    [
        (DEDICATED, 9, 3, "partition.placement: the services take 2 ranks, which fill no whole"),
        (DEDICATED, 4, 4, "service.a.replicas"),
        (
            PER_NODE,
            12,
            4,
            "partition.per_node: 1 on each of 3 nodes make 3 ranks, but the services",
        ),
    ],
)
def test_what_does_not_fit_the_nodes_is_one_line(config, ranks, per_node, line):
    if line.startswith("service"):
        ranks = 2
    with pytest.raises(ConfigError) as caught:
        plan(config, ranks, per_node)
    assert str(caught.value).startswith(f"c.toml: {line}")


def test_no_ranks_are_refused():
    with pytest.raises(ArgumentError):
        plan(make(), 4, 0)


def test_inference_ranks_get_the_last_cores_of_their_node():
    assert cores_of([0, 1, 2, 3, 8, 9], [2, 1]) == [[3, 8], [9], [0, 1, 2]]
    assert cores_of([0, 1], [2]) is None


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert ranges([]) == ""


def job(config=PER_NODE, ranks=8, per_node=4, program=("./sim",), **options):
    return Job("c.toml", program, plan(config, ranks, per_node), **options)


def test_a_script_is_run_and_another_program_has_serve_beside_it():
    assert "mpiserve run" in jobscript("slurm", job(program=["sim.py", "--steps", "2"]))
    text = jobscript("slurm", job(mpi="mpich"))
    assert "0-2,4-6 ./sim $*\n3,7 $python -m mpiserve serve $config\n" in text
    assert "pmi2" in text and "pmix" not in text


def test_threads_and_gpus_are_requested():
    text = jobscript("lsf", job(make("placement = 'per-node'", threads=2), gpus_per_node=1))
    assert "rank: 7: { host: 2; cpu: {6-7}; gpu: {0}; } : app 1" in text
    assert "ncpus=8" in jobscript("pbs", job(make("placement = 'per-node'", threads=2)))


def test_a_heterogeneous_job_needs_slurm_and_dedicated_nodes():
    assert "#SBATCH hetjob" in jobscript("slurm", job(DEDICATED, 4, 2, het=True))
    for site, wrong in (("slurm", job(het=True)), ("pbs", job(DEDICATED, 4, 2, het=True))):
        with pytest.raises(ArgumentError):
            jobscript(site, wrong)


def test_an_unknown_site_is_refused_with_those_there_are():
    with pytest.raises(ArgumentError, match="slurm, pbs, lsf, flux, mpirun"):
        jobscript("sge", job())


def test_a_rank_of_a_pool_is_queried_for_each_of_its_services():
    table = {"backend": "echo", "inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}
    tables = {"service": {"a": table, "b": table}, "pool": {"p": {"services": ["a", "b"]}}}
    made = plan(Config.from_dict(tables), 3)
    assert made.heads == {"a": {0: 2, 1: 2}, "b": {0: 2, 1: 2}}
    assert made.clients(2) == [0, 1]


def needing(**keys):
    """Two replicas that need something."""
    table = {"backend": "echo", "inputs": [{"name": "x", "dtype": "float32", "shape": [-1]}]}
    return Config.from_dict({"service": {"a": {**table, "replicas": 2, **keys}}}, source="c.toml")


NODE = Node(cores=8, gpus=1, memory_bytes=2**30)


def test_a_node_that_has_what_the_services_need():
    assert plan(needing(cores=3, gpus=0), 4, node=NODE).ranks("inference") == [2, 3]
    assert plan(needing(cores=8), 100).ranks("inference") == [98, 99], "nothing is known"
    assert plan(needing(gpus=1), 4, 2, Node(cores=1)), "nothing is known of GPUs"


@pytest.mark.parametrize(
    ("keys", "ranks", "per_node", "line"),
    [
        (
            {"cores": 4},
            4,
            None,
            "service.a.cores: 4 cores a replica make 10 on one node, with 1 for each of 2 "
            "simulation ranks; node 0 has 8 (--cores-per-node; default: as here)",
        ),
        (
            {"gpus": 1},
            4,
            2,
            "service.a.gpus: 1 GPUs a replica make 2 on one node; node 1 has 1 (--gpus-per-node; "
            "default: as here)",
        ),
    ],
)
def test_what_a_node_lacks_is_one_line(keys, ranks, per_node, line):
    with pytest.raises(ConfigError) as caught:
        plan(needing(**keys), ranks, per_node, NODE)
    assert str(caught.value) == f"c.toml: {line}"


def test_this_machine_has_cores_and_memory():
    node = this_machine()
    assert node.cores >= 1 and node.gpus >= 0 and node.memory_bytes > 2**26
