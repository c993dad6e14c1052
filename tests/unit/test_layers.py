"""The layers of docs/architecture.md, enforced."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpiserve"
CSRC = ROOT / "csrc"

# Who may import whom: cli -> server | session -> _broker, backends -> errors, config.
BASE = {"errors", "tensor", "config"}
MEASURES = {"bench", "bench.machine", "bench.plan", "bench.report", "bench.stats", "errors"}
PYTHON = {
    "errors": set(),
    "failure": {"errors"},
    "logs": {"errors", "failure"},
    "notices": {"_broker", "environment"},
    "text": {"errors"},
    "tensor": set(),
    "_check": {"errors"},
    "config_checks": {"errors"},
    "config_file": {"config_checks"},
    "service_config": {"errors", "config_checks"},
    "config": {"errors", "config_checks", "config_file", "service_config"},
    "programs": {"errors"},
    "partition": BASE,
    "terminal": set(),
    "source": set(),
    "static_check": {"backends", "backends.deepspeed_backend", "backends.language"}
    | {"config", "config_checks", "service_config", "source"},
    "trial": BASE | {"failure", "loading", "service_config", "terminal"},
    "plan": BASE | {"partition", "terminal"},
    "jobscript": {"errors", "partition", "plan"},
    "findings": {"_check"},
    "doctor": BASE | {"_broker", "_check", "findings", "launch", "static_check", "terminal"},
    "backends.base": BASE,
    "backends.group": {"failure"},
    "backends.texts": {"errors", "text"},
    "backends.model_limits": set(),
    "backends.caches": {"errors"},
    "backends.language": BASE | {"backends.base", "backends.model_limits", "backends.texts"},
    "backends.generation_settings": BASE | {"backends.texts"},
    "backends.sequences": {"errors", "backends.caches", "backends.generation_settings"},
    "backends.self_check": BASE | {"backends.model_limits", "backends.sequences"},
    "backends.generate": BASE
    | {"backends.base", "backends.generation_settings", "backends.language"}
    | {"backends.self_check", "backends.sequences"},
    "backends.dtypes": {"errors"},
    "backends.file_kinds": set(),
    "backends.gradients": set(),
    "backends.saved_weights": BASE | {"backends", "backends.dtypes", "backends.file_kinds"},
    "backends.model_files": BASE
    | {"backends", "backends.base", "backends.dtypes", "backends.file_kinds"}
    | {"backends.language", "backends.saved_weights"},
    "backends.torch_backend": BASE
    | {"backends", "backends.base", "backends.dtypes", "backends.generate", "backends.language"}
    | {"backends.gradients", "backends.model_files"},
    "backends.weights": BASE | {"backends.group"},
    "backends.deepspeed_backend": BASE
    | {"backends", "backends.base", "backends.dtypes", "backends.group", "backends.language"}
    | {"backends.model_files", "backends.torch_backend", "backends.weights", "failure"},
    "backends.onnx_backend": BASE | {"backends", "backends.base", "backends.file_kinds"},
    "backends.python_backend": BASE | {"backends.base"},
    "backends.echo_backend": BASE | {"backends.base"},
    "backends.arrays": BASE,
    "backends.processed": BASE | {"backends.arrays", "backends.base", "failure"},
    "backends": BASE | {"backends.base", "backends.language", "backends.processed", "terminal"},
    "foreign": {"errors"},
    "_arrays": {"errors", "foreign"},
    "_broker": BASE | {"_arrays", "failure"},
    "probe": {"failure"},
    "warmup": BASE | {"backends.arrays", "backends.base", "backends.group", "failure", "probe"},
    "loading": BASE | {"backends", "backends.base", "backends.group", "failure", "warmup"},
    "splitting": {"errors", "failure", "_broker"},
    "stepping": {"errors", "failure", "_broker", "backends.base"},
    "versions": BASE | {"_broker", "backends.base", "failure"},
    "team": {"errors", "_broker", "backends.group", "failure"},
    "server": BASE
    | {"_broker", "backends.arrays", "backends.base", "partition"}
    | {"failure", "loading", "logs", "notices", "splitting", "stepping", "team", "versions"},
    "adaptive": {"config"},
    "pool": {"errors", "notices", "partition", "server", "_broker"},
    "moving": BASE
    | {"_broker", "adaptive", "backends.base", "backends.group", "partition", "pool", "server"}
    | {"failure", "loading"},
    # A session hands itself over to its server in serve(); the server never looks back.
    "session": BASE
    | {"_broker", "_check", "partition", "pool", "server"}
    | {"failure", "moving", "notices"},
    "binding": {"partition"},
    "environment": set(),
    "wire": {"environment"},
    "launch": BASE
    | {"_check", "binding", "environment", "failure", "logs", "partition", "session"}
    | {"static_check", "wire"},
    # The benchmark is a user of all of it, and nobody but the command line uses the benchmark.
    "bench": set(),
    "bench.plan": set(),
    "bench.stats": set(),
    "bench.models": set(),
    "bench.machine": set(),
    "bench.report": {"terminal"},
    "bench.job": {"errors"},
    "bench._native": {"errors"},
    "bench.baseline": {"bench.models"},
    "bench.plots": {"bench.report"},
    "bench.places": {"binding"},
    "bench.coupled": {"bench.models", "bench.places", "config", "partition", "session"},
    "bench.scale": MEASURES | {"bench.job"},
    "bench.rivals": MEASURES,
    "bench.overlap": MEASURES | {"bench.coupled", "session"},
    "bench.worker": {"bench.models"},
    "bench.child": {"bench", "bench.job", "errors"},
    "bench.lockstep": MEASURES
    | {
        "bench.baseline",
        "bench.coupled",
        "bench.places",
        "bench.child",
        "bench.models",
        "bench.worker",
        "session",
    },
    "bench.latency": MEASURES
    | {"bench._native", "bench.coupled", "bench.models", "bench.rivals", "config", "session"},
    "bench.strong_scaling": MEASURES
    | {"bench._native", "bench.coupled", "bench.models", "partition", "session"},
    "bench.main": MEASURES
    | {"bench.job", "bench.latency", "bench.lockstep", "bench.overlap", "bench.plots"}
    | {"bench.scale", "bench.strong_scaling", "_broker", "session"},
    "cli": BASE
    | {
        "plan",
        "jobscript",
        "doctor",
        "_broker",
        "_check",
        "partition",
        "server",
        "session",
        "launch",
        "programs",
        "static_check",
        "terminal",
        "trial",
    }
    | {"bench", "bench.main"},
    "__main__": {"cli"},
}
CYTHON = {"_arrays", "_broker", "bench._native"}  # the pyx files
LATE = {"torch", "deepspeed", "safetensors", "transformers", "onnxruntime"}

# A file may include what has a lower number; the sides never meet below api.
LEVELS = {
    "mpiserve": 0,
    "error": 1,
    "wait": 1,
    "live": 2,
    "tensor": 2,
    "pool": 2,
    "balance": 2,
    "batch": 2,
    "held": 3,
    "slot": 3,
    "world": 3,
    "window": 4,
    "thread": 6,
    "link": 5,
    "port": 5,
    "lease": 6,
    "call": 9,
    "calls": 7,
    "again": 8,
    "assembly": 6,
    "control": 6,
    "client": 10,
    "reload": 10,
    "broker": 7,
    "answer": 8,
    "serving": 8,
    "late": 9,
    "session": 11,
    "turn": 12,
    "api": 12,
    "api_serving": 12,
}
CLIENT_SIDE = {"client", "call", "calls", "again", "lease", "link", "balance", "reload"}
BROKER_SIDE = {"broker", "assembly", "control", "port", "pool", "batch", "held", "thread"}
BROKER_SIDE |= {"answer", "serving", "late"}
WITHOUT_MPI = ("error", "tensor", "slot", "balance", "batch", "pool", "wait", "live", "held")


def module_name(path):
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def python_files():
    files = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    files.pop("__init__")  # re-exports only
    return files


def imports(tree):
    """Yield (module, node) for every import in a tree; of names that are modules too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module, node
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node


def internal(tree):
    known = {*python_files(), *CYTHON}
    names = {name.removeprefix("mpiserve.") for name, _ in imports(tree)}
    return {name for name in names if name in known}


def at_import(tree):
    """The statements that run when a module is imported, without type checkers' own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import(node)


def imported_at_once(tree):
    for node in at_import(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from imports(ast.Module([node], []))


def tree_of(name):
    return ast.parse(python_files()[name].read_text())


def test_every_python_module_has_its_layer():
    assert set(python_files()) | CYTHON == set(PYTHON)


@pytest.mark.parametrize("name", sorted(set(PYTHON) - CYTHON))
def test_python_modules_import_only_lower_layers(name):
    assert internal(tree_of(name)) <= PYTHON[name]


@pytest.mark.parametrize("name", sorted(CYTHON))
def test_cython_modules_import_only_lower_layers(name):
    text = (PACKAGE / name.replace(".", "/")).with_suffix(".pyx").read_text()
    pattern = r"^(?:from|import) mpiserve(?:\.(\w+))?(?: c?import (\w+))?"
    found = {module or name for module, name in re.findall(pattern, text, re.M)}
    assert found - {"libmpiserve"} <= PYTHON[name]


def test_only_cython_modules_touch_the_library():
    for name, path in python_files().items():
        used = {module for module, _ in imports(ast.parse(path.read_text()))}
        # The baseline talks to malloc.
        assert not used & {"ctypes", "cffi"} or name == "bench.baseline", name
    assert {module_name(path) for path in PACKAGE.rglob("*.pyx")} == CYTHON
    calls = re.findall(r"\bmpiserve_\w+\(", (PACKAGE / "_arrays.pyx").read_text())
    assert set(calls) == {"mpiserve_dtype_name("}


@pytest.mark.parametrize("name", python_files())
def test_torch_is_imported_late_and_by_backends_and_the_benchmark_only(name):
    tree = tree_of(name)
    used = {module.split(".")[0] for module, _ in imports(tree)} & LATE
    assert not used or name.startswith(("backends.", "bench."))
    assert not {module.split(".")[0] for module, _ in imported_at_once(tree)} & LATE


@pytest.mark.parametrize(
    "name",
    ["errors", "tensor", "config", "partition", "plan", "jobscript", "programs", "_check", "cli"]
    + ["source", "static_check", "terminal", "trial"]
    + [f"bench.{name}" for name in ("models", "baseline", "job", "plots", "scale")],
)
def test_modules_that_need_no_mpi_do_not_start_it(name):
    assert not {m for m, _ in imported_at_once(tree_of(name)) if m.startswith("mpi4py.MPI")}


def c_files():
    return sorted(path for path in CSRC.iterdir() if path.suffix in (".c", ".h"))


def code_of(path):
    """A C file without its comments."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.DOTALL)


def included(path):
    names = re.findall(r'#include "(?:\w+/)*(\w+)\.h"', code_of(path))
    return set(names) - {path.stem}


def test_every_c_file_has_its_layer():
    assert {path.stem for path in c_files()} <= set(LEVELS)


@pytest.mark.parametrize("path", c_files(), ids=lambda path: path.name)
def test_c_files_include_only_lower_layers(path):
    level = LEVELS[path.stem]
    assert {name for name in included(path) if LEVELS[name] >= level} == set()


@pytest.mark.parametrize("path", c_files(), ids=lambda path: path.name)
def test_client_and_broker_never_include_each_other(path):
    for mine, other in ((CLIENT_SIDE, BROKER_SIDE), (BROKER_SIDE, CLIENT_SIDE)):
        if path.stem in mine:
            assert not included(path) & other


@pytest.mark.parametrize("path", c_files(), ids=lambda path: path.name)
def test_only_window_calls_rma(path):
    calls = re.findall(
        r"\bMPI_(?:Win_\w+|R?Put|R?Get|R?Accumulate|Fetch_and_op)\s*\(", code_of(path)
    )
    assert not calls or path.name == "window.c"


@pytest.mark.parametrize("name", WITHOUT_MPI)
def test_policy_and_arithmetic_call_no_mpi(name):
    for path in c_files():
        if path.stem == name:
            assert not re.findall(r"\bMPI_[A-Z]\w*\s*\(", code_of(path))


@pytest.mark.parametrize("path", c_files(), ids=lambda path: path.name)
def test_the_library_never_prints_exits_or_aborts(path):
    calls = r"\b(?:printf|puts|putchar|perror|f(?:printf|puts)|exit|_exit|abort|MPI_Abort)\s*\("
    assert not re.findall(calls, code_of(path))
