"""Flames in Fortran whose chemistry is learnt while they burn."""

from __future__ import annotations

import re
import shutil
import sys

import languages
import pytest
from coupling import SERVE

TRAIN = (sys.executable, "-m", "mpiserve", "train")


@pytest.mark.takes_long
@pytest.mark.timeout(400)
def test_flames_in_fortran_learn_their_chemistry_while_they_burn(mpiexec, tmp_path):
    languages.build("12_learning", tmp_path, "f")
    other = "01_reacting_flow"  # whose kinetics the network knows
    shutil.copytree(languages.EXAMPLES / other, tmp_path / other)
    ranks = ["-n", 1, "./learn_f", ":", "-n", 1, *SERVE, "coupling.toml"]
    job = [*ranks, ":", "-n", 1, *TRAIN, "coupling.toml"]
    done = mpiexec(job, cwd=tmp_path / "12_learning", timeout=350)
    assert done.returncode == 0, done.stderr
    assert "trusted rows:   0.0 % in the first step" in done.stdout
    last = re.search(r"trusted rows: *([\d.]+) % after \d+ steps", done.stdout)
    error = re.search(r"largest error of the temperature: *([\d.]+) %", done.stdout)
    assert float(last[1]) >= 90 and 0 < float(error[1]) < 2
    assert "speed-up of a step: " in done.stdout, "20 steps in a row"
