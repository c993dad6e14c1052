"""Replicas of several ranks: failures come to the client, and other services go on."""

from __future__ import annotations

import pytest
from coupling import RUN, is_mpich, said_by_ranks

# Backends of a test's own, so that no rank has to import torch. The first number of a batch says
# what goes wrong; to sleep is what a rank does whose part waits for that of another one.
MODELS = """\
import os
import signal
import time

import mpiserve


class Pair(mpiserve.Backend):
    def load(self):
        if self.service.options.get("fails_at") == self.comm.rank:
            raise RuntimeError("no weights on this rank")
        version = self.service.options.get("version", "2")
        if version == "bad" and self.comm.rank == 1:
            raise RuntimeError("no such version on this rank")
        self.factor = 2 if version == "bad" else int(version)

    def run(self, inputs):
        what = inputs[0][0, 0]
        if what == -1:
            raise ValueError("bad everywhere")
        if what == -2 and self.comm.rank == 1:
            raise ValueError("bad at one rank")
        if what == -3 and self.comm.rank == 1 or what == -2:
            time.sleep(1000)
        if what == -4 and self.comm.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        # A rank that got other rows than the head shows in what it says of them.
        assert (inputs[0] == inputs[0][0, 0]).all()
        return inputs[0] * self.factor


def twice(x):
    return 2 * x
"""

SERVICE = """
[service.{name}]
backend = "{backend}"
{settings}
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 30] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 30] }}]
max_batch_rows = 64
"""
PAIR = "tensor_parallel = 2\npeer_timeout_s = 2"

ASK = """\
import mpiserve
import numpy as np


def ask(service, what, rows=3):
    x = np.full((rows, 30), what, np.float32)
    try:
        text = "right" if (service(x, timeout=60) == 2 * x).all() else "wrong"
    except mpiserve.Error as error:
        text = f"{type(error).__name__}: {error}"
    print(f"{service.name} {what}: {text}", flush=True)


"""

SIMULATION = f"""{ASK}
with mpiserve.open() as session:
    try:
        session.service("halfway")
    except mpiserve.ModelError as error:
        print(str(error).partition(" (since 20")[0], flush=True)
    raises, hangs = session.service("raises"), session.service("hangs")
    assert raises.replicas == 1
    for rows in range(1, 40):
        x = np.full((rows, 30), rows, np.float32)
        assert (raises(x) == 2 * x).all()
    for version in ("bad", "3", "2"):
        try:
            session.reload("raises", version, timeout=60)
        except mpiserve.ModelError as error:
            print(error, flush=True)
        print("reloaded:", raises(np.ones((4, 30), np.float32))[0, 0], flush=True)
    for what in (4, -1, 5, -2, 6):
        ask(raises, what)
    for what in (7, -3, 8):
        ask(hangs, what)
    ask(session.service("twice"), 9)
"""

SAID = """\
service 'halfway' on rank 5 could not be loaded: tensor-parallel rank 1: RuntimeError: no weights
service 'raises' on rank 1: tensor-parallel rank 1: RuntimeError: no such version on this rank;
reloaded: 2
reloaded: 3
reloaded: 2
raises 4: right
raises -1: ModelError: ValueError: bad everywhere
raises 5: right
raises -2: ModelError: the replica of 2 ranks is out of step: tensor-parallel rank 1: ValueError
raises 6: ModelError: the replica of 2 ranks is out of step: tensor-parallel rank 1: ValueError
hangs 7: right
hangs -3: ModelError: the replica of 2 ranks is out of step: a rank did not end its part in time
hangs 8: ModelError: the replica of 2 ranks is out of step: a rank did not end its part in time
twice 9: right
"""


# A launcher that is told to let the others live when a rank dies. MPICH's is of no use: with
# -disable-auto-cleanup (5.0.2) it ends a second or two later, and its ranks with it.
TOLERANT = [] if is_mpich() else ["--enable-recovery"]

KILLED = f"""{ASK}
with mpiserve.open() as session:
    raises, twice = session.service("raises"), session.service("twice")
    for service, what in ((raises, 4), (raises, -4), (twice, 5), (raises, 6), (twice, 7)):
        ask(service, what)
"""

SAID_OF_A_KILLED_ONE = """\
raises 4: right
raises -4: ModelError: the replica of 2 ranks is out of step: a rank did not end its part in time
twice 5: right
raises 6: ModelError: the replica of 2 ranks is out of step: a rank did not end its part in time
twice 7: right
"""


def write(folder, config, simulation):
    (folder / "models.py").write_text(MODELS)
    (folder / "c.toml").write_text(config)
    (folder / "sim.py").write_text(simulation)


@pytest.mark.every_mpi
def test_a_rank_that_is_killed_ends_its_replica_and_not_the_job(mpiexec, tmp_path):
    raises = SERVICE.format(name="raises", backend="models:Pair", settings=PAIR)
    twice = SERVICE.format(name="twice", backend="python", settings='model = "models:twice"')
    write(tmp_path, raises + twice, KILLED)

    done = mpiexec([*TOLERANT, "-n", 4, *RUN, "c.toml", "sim.py"], timeout=60)

    if is_mpich():
        assert done.returncode not in (0, 124)
        assert done.stdout.startswith("raises 4: right")
        return
    assert done.returncode == 0
    assert done.stdout.startswith(SAID_OF_A_KILLED_ONE)
    assert "tensor-parallel rank 1 of this replica is gone" in done.stderr


LOSES = f"""{ASK}
with mpiserve.open() as session:
    raises = session.service("raises")
    for what in (1, 2, 3, 4, -4, *range(5, 25)):
        ask(raises, what)
    states = [state.state.replace("busy", "ready") for state in raises.states()]
    assert sorted(states) == ["failed", "ready"], states
"""


SPARE = "[partition]\nspares = 2\nwarm_spares = true\n"


@pytest.mark.skipif(is_mpich(), reason="MPICH 5 ends the job")
@pytest.mark.parametrize(
    ("replicas", "partition"), [pytest.param(2, "", marks=pytest.mark.takes_long), (1, SPARE)]
)
def test_another_replica_or_a_spare_answers_for_one_that_has_lost_a_rank(
    mpiexec, tmp_path, replicas, partition
):
    settings = f'{PAIR}\nreplicas = {replicas}\nrows = "independent"'
    service = SERVICE.format(name="raises", backend="models:Pair", settings=settings)
    write(tmp_path, partition + service, LOSES)

    done = mpiexec([*TOLERANT, "-n", 5, *RUN, "c.toml", "sim.py"], timeout=60)

    assert done.returncode == 0
    said = said_by_ranks(done)
    assert [line for line in said if not line.endswith(": right")] == [
        line for line in said if "raises -4: ModelError: the replica of 2 ranks is out of" in line
    ]
    assert len(said) == 25
    assert ("takes the place of rank 1" in done.stderr) == bool(partition)


@pytest.mark.takes_long
def test_failures_come_to_the_client_and_other_services_go_on(mpiexec, tmp_path):
    pair = {"backend": "models:Pair", "settings": PAIR}
    halfway = {"backend": "models:Pair", "settings": f"{PAIR}\noptions = {{ fails_at = 1 }}"}
    twice = {"backend": "python", "settings": 'model = "models:twice"'}
    versions = f'{PAIR}\nversion = "2"\noptions = {{ version = "{{version}}" }}'
    raises = {"backend": "models:Pair", "settings": versions}
    services = {"raises": raises, "hangs": pair, "halfway": halfway, "twice": twice}
    config = "".join(SERVICE.format(name=name, **table) for name, table in services.items())
    write(tmp_path, config, SIMULATION)

    done = mpiexec(["-n", 8, *RUN, "c.toml", "sim.py"], timeout=150)

    said, expected = said_by_ranks(done), SAID.splitlines()
    assert len(said) == len(expected)
    for line, beginning in zip(said, expected, strict=True):
        assert line.startswith(beginning)
    # That of the two ranks whose service could not be loaded. The ranks of a replica that is out of
    # step end in order too, else MPICH's mpiexec (5.0.2) makes 9 or 0 of it.
    assert done.returncode == 1
