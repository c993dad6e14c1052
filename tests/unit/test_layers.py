"""The layers of docs/internals/architecture.md, enforced."""

import ast
import re
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mpiserve"
CSRC = ROOT / "csrc"

# mpiserve/: a folder, or a file beside them, may import files of its own room and of these.
BASE = {"errors", "failure"}
SERVES = BASE | {"_lib", "backends", "config", "mpi", "observe"}
ROOMS = {
    "errors": set(),
    "failure": {"errors"},
    "text": {"errors"},
    "terminal": set(),
    "constraints": BASE,
    "wire": set(),
    "config": BASE,
    "mpi": BASE | {"config"},
    "_lib": BASE | {"config"},
    "observe": BASE | {"_lib", "config"},
    "backends": BASE | {"config", "mpi", "observe", "terminal", "text", "wire"},
    "serving": SERVES,
    "interactive": {"errors"},
    "futures": {"errors"},
    "session": SERVES | {"interactive", "serving"},
    "gateway": SERVES | {"serving", "session", "text", "wire"},
    "learning": SERVES | {"serving", "session"},
    "launch": SERVES | {"gateway", "learning", "serving", "session", "terminal"},
    "radical": BASE | {"config", "launch", "session"},
    "tools": SERVES | {"launch", "serving", "terminal"},
    # The benchmark is a user of all of it, and nobody but the command line uses the benchmark.
    "bench": SERVES | {"serving", "session", "terminal"},
    "cli": BASE | {"_lib", "bench", "config", "launch", "mpi", "serving", "terminal", "tools"},
    "__main__": {"cli"},
}
CYTHON = {  # the pyx files
    "_lib.arrays",
    "_lib.core",
    "_lib.engine",
    "_lib.handover",
    "_lib.ring",
    "bench._native",
}
LATE = {"torch", "deepspeed", "safetensors", "transformers", "onnxruntime"}

# csrc/: a file may include, and call, files of its own room and of these.
C_ROOMS = {
    "include": set(),
    "base": {"include"},
    "protocol": {"include", "base"},
    "engine": {"include", "base", "protocol"},
    "mpi": {"include", "base", "protocol"},
    "client": {"include", "base", "protocol", "mpi"},
    "head": {"include", "base", "protocol", "mpi"},
    "api": {"include", "base", "protocol", "engine", "mpi", "client", "head"},
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


def room_of(name):
    return name.split(".")[0]


def python_uses(name, text):
    """The modules of the package that a module imports, by name."""
    if name in CYTHON:
        names = re.findall(
            r"^(?:from|import) mpiserve(?:\.([\w.]+))? (?:c?import (\w+))?", text, re.M
        )
        return {module or name for module, name in names}
    return internal(ast.parse(text))


def with_included(path):
    """The text of a Cython file, and of those that it includes."""
    text = path.read_text()
    included = re.findall(r'^include "([^"]+)"', text, re.M)
    return "\n".join([text, *(with_included(path.parent / name) for name in included)])


def python_sources():
    cython = {name: (PACKAGE / name.replace(".", "/")).with_suffix(".pyx") for name in CYTHON}
    return {name: with_included(path) for name, path in (python_files() | cython).items()}


def wrong_imports(sources):
    """What a module imports from a room that it must not know: (module, imported module)."""
    return [
        (name, used)
        for name, text in sources.items()
        for used in python_uses(name, text)
        if room_of(used) != room_of(name) and room_of(used) not in ROOMS[room_of(name)]
    ]


def test_every_python_module_has_its_room():
    assert {room_of(name) for name in python_sources()} == set(ROOMS)


def test_python_modules_import_only_lower_rooms():
    assert wrong_imports(python_sources()) == []


def test_the_rooms_of_python_have_an_order():
    TopologicalSorter(ROOMS).prepare()


@pytest.mark.parametrize(
    ("name", "text", "used"),
    [
        ("errors", "from mpiserve.config import Config", "config"),
        ("backends.onnx", "import mpiserve.serving.worker", "serving.worker"),
        ("serving.worker", "def f():\n    from mpiserve import session", "session"),
        ("_lib.core", "from mpiserve.backends.base import Backend", "backends.base"),
    ],
)
def test_a_planted_wrong_import_is_found(name, text, used):
    assert (name, used) in wrong_imports({name: text})


def test_a_planted_wrong_import_of_an_included_file_is_found(tmp_path):
    (tmp_path / "core.pyx").write_text('include "one.pxi"\n')
    (tmp_path / "one.pxi").write_text('include "two.pxi"\n')
    (tmp_path / "two.pxi").write_text("from mpiserve.backends.base import Backend\n")
    text = with_included(tmp_path / "core.pyx")
    assert wrong_imports({"_lib.core": text}) == [("_lib.core", "backends.base")]


def test_every_included_file_is_read():
    text = "\n".join(with_included(path) for path in PACKAGE.rglob("*.pyx"))
    for path in PACKAGE.rglob("*.pxi"):
        assert path.read_text() in text, path.name


def test_only_the_room_lib_touches_the_library():
    for name, path in python_files().items():
        used = {module for module, _ in imports(ast.parse(path.read_text()))}
        # The baseline talks to malloc, the judge to a client that it has compiled; deaths crash;
        # families looks which MPI is loaded.
        may = ("bench.baseline", "bench.deaths", "bench.judge", "mpi.families")
        assert not used & {"ctypes", "cffi"} or name in may, name
    assert {module_name(path) for path in PACKAGE.rglob("*.pyx")} == CYTHON
    calls = re.findall(r"\bmpiserve_\w+\(", (PACKAGE / "_lib/arrays.pyx").read_text())
    assert set(calls) == {"mpiserve_dtype_name("}


# Not "mpi" alone, which means something to pytest-mpi.
@pytest.mark.parametrize("name", python_files(), ids="mpiserve.{}".format)
def test_torch_is_imported_late_and_by_backends_and_the_benchmark_only(name):
    tree = tree_of(name)
    used = {module.split(".")[0] for module, _ in imports(tree)} & LATE
    assert not used or room_of(name) in ("backends", "bench")
    assert not {module.split(".")[0] for module, _ in imported_at_once(tree)} & LATE


NO_MPI_ROOMS = {"errors", "failure", "text", "terminal", "config", "cli"}
NO_MPI = {f"launch.{name}" for name in ("plan", "jobscript", "definitions", "static_check")}
NO_MPI |= {"mpi.check", "tools.build_flags", "tools.check_load", "tools.describe"}
NO_MPI |= {f"bench.{name}" for name in ("models", "deaths", "baseline", "job", "plots", "scale")}


def starts_of_mpi(name, sources):
    """The imports that start MPI when a module is imported, its own and those of others."""
    found, seen, left = [], {name}, [name]
    while left:
        user = left.pop()
        for module, _ in imported_at_once(ast.parse(sources[user])):
            used = module.removeprefix("mpiserve.")
            if module.startswith("mpi4py.MPI") or used in CYTHON:
                found.append(f"{user} imports {module}")
            elif module != used and used in sources and used not in seen:
                seen.add(used)
                left.append(used)
    return found


@pytest.mark.parametrize("name", python_files(), ids="mpiserve.{}".format)
def test_modules_that_need_no_mpi_do_not_start_it(name):
    if name in NO_MPI or room_of(name) in NO_MPI_ROOMS:
        sources = {known: path.read_text() for known, path in python_files().items()}
        assert starts_of_mpi(name, sources) == []


def test_a_planted_import_that_starts_mpi_through_others_is_found():
    sources = {
        "errors": "from mpiserve import failure",
        "failure": "from mpiserve.text import one, two",
        "text": "from mpi4py import MPI",
    }
    assert starts_of_mpi("errors", sources) == ["text imports mpi4py.MPI"]
    sources["failure"] = "def late():\n    from mpiserve import text"
    assert starts_of_mpi("errors", sources) == []


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
    ids="<{}>".format,  # not "mpi", which means something to pytest-mpi
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
        # Its launcher has died, and nobody else would end the process.
        assert not re.findall(calls, text) or file == "base/launcher.c", file
