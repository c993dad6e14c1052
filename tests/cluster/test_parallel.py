"""A replica of two ranks on two hosts, whose models run in child processes."""

from __future__ import annotations

import re

import pytest
from coupling import RUN
from parallel_models import CONFIG, MODELS

SIMULATION = """\
import mpiserve
import numpy as np


def ask(kind, who):
    try:
        y = pair(np.full((2, 4), [kind, who, 0, 1], np.float32), timeout=60)
        print("right" if (y == 2.5 + 2 * (kind + who + 1)).all() else y, flush=True)
    except mpiserve.ModelError as error:
        print(error, flush=True)


with mpiserve.open() as session:
    pair = session.service("pair")
    for who in range(2):
        ask(1, 0)
        ask(-1, who)
    ask(1, 1)
"""


@pytest.mark.takes_long
@pytest.mark.timeout(180)
def test_its_processes_meet_and_start_again(on_hosts, tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "c.toml").write_text(CONFIG)
    (tmp_path / "sim.py").write_text(SIMULATION)
    # The head is beside the simulation; the other rank of the replica is on the other host.
    done = on_hosts({"n1": 2, "n2": 1}, ["-n", 3, *RUN, "c.toml", "sim.py"], timeout=150)
    assert done.returncode == 0
    killed = "tensor-parallel rank {}: the model's process .* on this batch.*\n"
    expected = "right\n" + killed.format(0) + "right\n" + killed.format(1) + "right\n"
    assert re.fullmatch(expected, done.stdout)
