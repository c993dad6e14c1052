"""The source distribution holds the whole repository, and a wheel of it works elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import mpijob
import pytest
from jobs import ROOT

import mpiserve

pytestmark = pytest.mark.timeout(300)  # it compiles

# Not what other tests write meanwhile: a file that goes while it is copied is an error.
LEFT = (".git", ".venv*", ".*_cache", "__pycache__", "build", "dist", "out", "*.egg-info")
LEFT_OUT = shutil.ignore_patterns(*LEFT)
BUILD = "from setuptools.build_meta import build_sdist; build_sdist('../dist')"
MADE = ("PKG-INFO", "setup.cfg", "mpiserve.egg-info/")  # by the build of a source distribution
USE = "import mpiserve, mpiserve._lib.core as core; print(mpiserve.__file__, core.version())"

INCLUDES = """\
import setuptools
from distutils.core import run_setup
build = run_setup("setup.py", stop_after="init").get_command_obj("build_ext")
build.ensure_finalized()
print(build.include_dirs)
"""


def run(*command: str, cwd: Path, **env: str) -> str:
    environment = mpijob.settings() | env
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(*options: str) -> set[str]:
    """Return the files of the repository that are there."""
    names = run("git", "ls-files", "-z", *options, cwd=ROOT).split("\0")
    return {name for name in names if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it in a copy of this folder, with all that builds and runs have left in it."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "copy", ignore=LEFT_OUT, symlinks=True)
    run(sys.executable, "-c", BUILD, cwd=folder / "copy")
    (path,) = (folder / "dist").iterdir()
    return path


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this folder is no clone")
def test_the_source_distribution_is_the_repository_but_plugins(sdist):
    with tarfile.open(sdist) as archive:
        files = {m.name.partition("/")[2] for m in archive.getmembers() if not m.isdir()}
    files = {name for name in files if not name.startswith(MADE)}
    plugins = listed("plugins")  # of other licences
    assert plugins and listed() - files == plugins
    assert files - listed() - listed("--others", "--exclude-standard") == set()


@pytest.mark.takes_long
def test_a_wheel_of_it_works_in_a_folder_of_its_own(sdist, tmp_path):
    pip = (sys.executable, "-m", "pip", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", str(sdist), cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path)
    said = run(sys.executable, "-c", USE, cwd=tmp_path, PYTHONPATH=str(site))
    assert said == f"{site}/mpiserve/__init__.py {mpiserve.__version__}\n"
    said = run(str(site / "bin/mpiserve"), "--version", cwd=tmp_path, PYTHONPATH=str(site))
    assert said == f"mpiserve {mpiserve.__version__}\n"


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="no virtual environment")
def test_headers_of_an_environment_do_not_hide_those_of_the_mpi_that_is_meant():
    """setuptools puts them in front of those of the wrapper, and one may be another MPI's mpi.h."""
    said = run(sys.executable, "-c", INCLUDES, cwd=ROOT)
    assert "python3" in said
    assert f"'{sys.exec_prefix}/include'" not in said
