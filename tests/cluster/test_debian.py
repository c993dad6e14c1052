"""Debian's MPIs between hosts; Open MPI 4.1.4 needs a setting, which the error names.

tests/run.py runs this module, of all in this folder, for Debian's MPIs, and for no others.
"""

from __future__ import annotations

import mpijob
import pytest
from cluster import many
from cluster.conftest import long
from coupling import PYTHON, SERVE, lines, right, write

pytestmark = pytest.mark.every_mpi

OPEN_MPI_4 = mpijob.flavour(mpijob.mpiexec()) == "openmpi4"


def start(on_hosts, env):
    programs = (["-n", 2, PYTHON, "sim.py"], ["-n", 1, *SERVE, "c.toml"])
    return on_hosts({"n1": 2, "n2": 1}, *programs, env=env)


def test_two_programs_on_two_hosts(on_hosts, tmp_path):
    write(tmp_path)
    done = start(on_hosts, {})
    assert done.returncode == 0
    # UCX of Open MPI 4.1.4 now and then says at the end that an endpoint timed out.
    assert [line for line in lines(done.stdout) if "is right" in line] == right(2)


@long
@pytest.mark.timeout(180)
def test_each_of_ten_thousand_requests_of_two_programs_is_answered_once(on_hosts, tmp_path):
    clients, heads = many.run(on_hosts, tmp_path)
    assert len(clients) == 5
    assert len(heads) == 4 and sum(heads) == 10_000


@pytest.mark.takes_long
@pytest.mark.skipif(not OPEN_MPI_4, reason="a setting that Open MPI 4 needs")
def test_the_missing_setting_is_named(on_hosts, tmp_path):
    write(tmp_path)
    done = start(on_hosts, {"OMPI_MCA_osc": ""})
    assert done.returncode not in (0, 124)
    assert "set OMPI_MCA_osc=sm,ucx in the environment of all ranks" in done.stderr
