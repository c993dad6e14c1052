"""Graphs from three ranks of a C program: in one batch, each as the network alone."""

import shutil
from pathlib import Path

import graph_network
from coupling import SERVE, compile_simulation, lines

HERE = Path(__file__).parent


def test_graphs_from_c(mpiexec, tmp_path):
    program = compile_simulation(Path(shutil.copy(HERE / "graphs.c", tmp_path)), "-lm")
    (tmp_path / "models.py").write_text(graph_network.MODELS)
    (tmp_path / "c.toml").write_text(graph_network.CONFIG)
    done = mpiexec(["-n", 3, program, ":", "-n", 1, *SERVE, "c.toml"], timeout=60)
    assert done.returncode == 0
    assert lines(done.stdout) == [graph_network.WRONG, "right"]
