"""The tutorial "From a notebook": every cell of it runs, and shows what the page shows.

    PYTHONPATH=tests .venv/bin/python tests/examples/test_notebook.py

runs it too, and keeps what it shows.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mpijob
import pytest
from jobs import ROOT

NOTEBOOK = ROOT / "docs/tutorial/notebook.ipynb"


def run(folder: Path) -> Path:
    """Run the notebook in a folder, without a launcher; return the notebook with its outputs."""
    shutil.copy(NOTEBOOK, folder)
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook"]
    command += ["--output", "ran", NOTEBOOK.name]
    env = mpijob.settings() | {"PYTHONSAFEPATH": ""}  # a notebook finds modules beside it
    done = mpijob.run(command, timeout=300, env=env, cwd=folder)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return folder / "ran.ipynb"


def without_logs(path: Path) -> dict[str, Any]:
    """Return a notebook without what is different each time: logs, and times."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            outputs = [output for output in cell["outputs"] if output.get("name") != "stderr"]
            cell["outputs"] = outputs
    return notebook


def shown(notebook: dict[str, Any]) -> list[str]:
    """Return what the cells show: texts, and "a picture" for each picture."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    kinds = [output.get("data") or {"text/plain": output["text"]} for output in outputs]
    return ["a picture" if "image/png" in k else "".join(k["text/plain"]) for k in kinds]


@pytest.mark.takes_long
@pytest.mark.timeout(330)
def test_a_notebook_with_100_requests_under_way(tmp_path):
    said = shown(without_logs(run(tmp_path)))
    assert "100 of 100 answers are right\n" in said and said.count("a picture") == 1
    assert "['product']" in said
    kept = shown(without_logs(NOTEBOOK))
    assert said == kept, "the page shows something else: see the first lines of this file"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        notebook = without_logs(run(Path(folder)))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
