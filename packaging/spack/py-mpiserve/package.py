# Copyright the mpiserve developers. SPDX-License-Identifier: BSD-3-Clause
"""Spack's recipe: copy this folder into the packages of a repository of yours.

mpiserve has no public address yet: make a source distribution (python -m build --sdist) and put it
into a mirror, or develop from a clone: spack develop --path CLONE py-mpiserve@0.5.0.
"""

from spack.package import *
from spack_repo.builtin.build_systems.python import PythonPackage


class PyMpiserve(PythonPackage):
    """Coupled simulation and model inference in one MPI world."""

    manual_download = True

    license("BSD-3-Clause")

    version("0.5.0")

    variant("fortran", default=True, description="Build the Fortran module")

    depends_on("c", type="build")
    depends_on("fortran", type="build", when="+fortran")
    depends_on("gmake", type="build")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("py-cython@3:", type="build")
    depends_on("py-numpy@2:", type=("build", "run"))
    depends_on("mpi", type=("build", "link", "run"))

    depends_on("py-deepspeed@0.19", type="run")
    depends_on("py-h5py@3.12:", type="run")
    depends_on("py-ml-dtypes@0.5:", type="run")
    depends_on("py-mpi4py@4.1:", type="run")
    depends_on("py-pydantic@2.10:", type="run")
    depends_on("py-rich@13.9:", type="run")
    depends_on("py-safetensors@0.5:", type="run")
    depends_on("py-torch@2.6:", type="run")
    depends_on("py-typer@0.15:", type="run")

    def setup_build_environment(self, env: EnvironmentModifications) -> None:
        """Build with the wrapper of the MPI that Spack chose."""
        env.set("MPICC", self.spec["mpi"].mpicc)
        if self.spec.satisfies("~fortran"):
            env.set("FC", "")
