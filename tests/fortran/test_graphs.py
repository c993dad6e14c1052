"""Graphs from three ranks of a Fortran program: in one batch, each as the network alone."""

import shutil
from pathlib import Path

import graph_network
from coupling import SERVE, compile_fortran, lines

HERE = Path(__file__).parent


def test_graphs_from_fortran(mpiexec, tmp_path):
    program = compile_fortran(Path(shutil.copy(HERE / "graphs.f90", tmp_path)))
    (tmp_path / "models.py").write_text(graph_network.MODELS)
    (tmp_path / "c.toml").write_text(graph_network.CONFIG)
    done = mpiexec(["-n", 3, program, ":", "-n", 1, *SERVE, "c.toml"], timeout=60)
    assert done.returncode == 0
    assert lines(done.stdout) == [graph_network.WRONG, "right"]
