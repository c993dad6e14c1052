"""The layers of docs/architecture.md, enforced."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
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

# csrc/: a file may include, and call, files of its own room and of these.
C_ROOMS = {
    "include": set(),
    "base": {"include"},
    "protocol": {"include", "base"},
    "mpi": {"include", "base", "protocol"},
    "client": {"include", "base", "protocol", "mpi"},
    "head": {"include", "base", "protocol", "mpi"},
    "api": {"include", "base", "protocol", "mpi", "client", "head"},
}


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


def c_files(root=CSRC):
    """The text of each C file of the library by room and name, without comments and strings."""
    paths = sorted(path for room in C_ROOMS for path in (root / room).glob("*.[ch]"))
    noise = r'(#include "[^"]*")|"(?:\\.|[^"\\])*"|/\*.*?\*/|//[^\n]*'
    return {
        path.relative_to(root).as_posix(): re.sub(
            noise, lambda found: found[1] or '""', path.read_text(), flags=re.DOTALL
        )
        for path in paths
    }


def module(file):
    return file.rpartition(".")[0]


def c_calls(files):
    """Yield (module, module, function): who uses whose function."""
    definition = r"^(?!static\b)[a-z][\w *]*?\b((?:msi|mpiserve)_\w+)\([^;{]*\)\s*\{"
    home = {
        function: module(file)
        for file, text in files.items()
        for function in re.findall(definition, text, re.MULTILINE)
    }
    for file, text in files.items():
        if file.startswith("include/"):
            continue  # declares what api defines
        for function in set(re.findall(r"\b(?:msi|mpiserve)_\w+", text)) & home.keys():
            if home[function] != module(file):
                yield module(file), home[function], function


def c_includes(files):
    for file, text in files.items():
        for included in re.findall(r'#include "([^"]*)"', text):
            place = included if "/" in included else f"include/{included}"
            yield module(file), module(place), f'#include "{included}"'


def wrong_directions(files):
    """What crosses from one room into another that it must not know."""
    uses = [*c_calls(files), *c_includes(files)]
    rooms = [(user.split("/")[0], used.split("/")[0], what) for user, used, what in uses]
    return [
        (user, used, what)
        for user, used, what in rooms
        if user != used and used not in C_ROOMS.get(user, ())
    ]


def test_every_c_folder_is_a_room_or_no_part_of_the_library():
    beside = {"bench", "fortran", "install", "preload"}
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == {*C_ROOMS, *beside}
    assert not list(CSRC.glob("*.[ch]"))


def test_c_files_know_only_lower_rooms():
    assert wrong_directions(c_files()) == []


def test_no_c_files_call_each_other_in_a_circle():
    graph = defaultdict(set)
    for user, used, _ in c_calls(c_files()):
        graph[user].add(used)
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("room", "line", "found"),
    [
        ("client", '#include "head/batch.h"', ("client", "head")),
        ("base", '#include "protocol/slot.h"', ("base", "protocol")),
        ("head", "int f(void) { return msi_client_close(0); }", ("head", "client")),
        ("mpi", "int f(void) { return mpiserve_close(0); }", ("mpi", "api")),
    ],
)
def test_a_planted_wrong_include_or_call_is_found(room, line, found):
    files = c_files() | {f"{room}/planted.c": line}
    assert found in {(user, used) for user, used, _ in wrong_directions(files)}


def test_a_planted_circle_is_found():
    files = c_files() | {
        "base/one.c": "int msi_one(void) { return msi_two(); }",
        "base/two.c": "int msi_two(void) { return msi_one(); }",
    }
    graph = defaultdict(set)
    for user, used, _ in c_calls(files):
        graph[user].add(used)
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


def test_only_the_room_mpi_calls_mpi():
    for file, text in c_files().items():
        calls = re.findall(r"\bMPI_[A-Z]\w*\s*\(", text)
        assert not calls or file.startswith("mpi/"), (file, calls)


def test_only_window_calls_rma():
    rma = r"\bMPI_(?:Win_\w+|R?Put|R?Get|R?Accumulate|Fetch_and_op)\s*\("
    for file, text in c_files().items():
        assert not re.findall(rma, text) or file == "mpi/window.c", file


def test_the_library_never_prints_exits_or_aborts():
    calls = r"\b(?:printf|puts|putchar|perror|f(?:printf|puts)|exit|_exit|abort|MPI_Abort)\s*\("
    for file, text in c_files().items():
        assert not re.findall(calls, text), file
