import pytest

from mpiserve.tools.diagnosis import Facts, find

OPEN = "Open MPI v5.0.11, package: ..."
MPICH = "MPICH Version:      4.0.2"


def facts(rank=0, node=0, **own):
    usual = {
        "host": f"n{node}",
        "cores": (0, 1),
        "node_cores": 2,
        "world": 2,
        "library": OPEN,
        "build": "Open MPI 5.0.11",
        "level": "serialized",
        "memory": 2**30,
        "environment": {"OMP_NUM_THREADS": "1"},
    }
    return Facts(rank, node=node, **usual | own)


def texts(world, window=0):
    return [(finding.severity, finding.remedy) for finding in find(world, window)]


def test_a_good_world_has_no_findings():
    assert texts([facts(0), facts(1)], 2**20) == []
    assert texts([facts(0), facts(1, node=1)]) == []


@pytest.mark.parametrize(
    ("own", "severity", "remedy"),
    [
        ({"build": "MPICH 5.0.2"}, "error", "MPICC"),
        ({"level": "single"}, "warning", "import mpiserve before"),
        ({"skew": -3.0}, "warning", "chrony"),
        ({"memory": 100}, "error", "more memory"),
        ({"environment": {"OMP_NUM_THREADS": "16"}}, "warning", "OMP_NUM_THREADS=1"),
        ({"environment": {"OMP_NUM_THREADS": "1", "MPISERVE_GRACE": "x"}}, "warning", "GRACE=60"),
    ],
)
def test_what_is_wrong_is_found_with_what_mends_it(own, severity, remedy):
    ((how, mend),) = texts([facts(0), facts(1, node=1, **own)], 2**20)
    assert how == severity and remedy in mend


def test_mpich_must_not_mix_levels_and_4_0_not_thread_between_nodes():
    own = {"library": MPICH, "build": "MPICH 4.0.2"}
    mixed = texts([facts(0, level="multiple", **own), facts(1, node=1, **own)])
    assert [severity for severity, _ in mixed] == ["error", "warning"]


def test_open_mpi_4_1_4_needs_its_setting():
    own = {"library": "Open MPI v4.1.4, x", "build": "Open MPI 4.1.4"}
    assert texts([facts(0, **own), facts(1, **own)]) == [("error", "OMPI_MCA_osc=sm,ucx")]


def test_errors_come_first():
    world = [facts(0, skew=9.0, memory=1), facts(1)]
    assert [severity for severity, _ in texts(world, 2**20)] == ["error", "warning"]


def test_kernel_that_lets_ranks_starve_others_matters_where_ranks_share_cores():
    own = {"kernel": "6.18.44", "environment": {"OMP_NUM_THREADS": "1"}}
    ((severity, remedy),) = texts([facts(rank, **own) for rank in range(3)])
    assert severity == "warning" and "sched_autogroup_enabled=0" in remedy
    assert texts([facts(rank, **own) for rank in range(2)]) == []
    assert texts([facts(rank, kernel="7.0.1") for rank in range(3)]) == []
