"""Models, backends and functions that are named by a file: "folder/file.py:object"."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mpiserve import backends
from mpiserve.backends.base import import_object, module_of, read_again
from mpiserve.config import Config
from mpiserve.errors import ConfigError, ModelError
from mpiserve.serving.reload import Versions

IO = [{"name": "x", "dtype": "float32", "shape": [-1]}]
ONES = np.ones(1, np.float32)


@pytest.fixture(autouse=True)
def imports(monkeypatch):
    """Forget what a test has imported."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub folder").mkdir()
    (tmp_path / "beside_it.py").write_text("factor = 2\n")
    (tmp_path / "by_path.py").write_text(
        "import beside_it\ndef f(x):\n    return beside_it.factor * x\n"
    )
    (tmp_path / "sub folder/helper_there.py").write_text("factor = 3\n")
    (tmp_path / "sub folder/my-model.py").write_text(
        "import mpiserve\nfrom helper_there import factor\ndef f(x):\n    return factor * x\n"
        "class Own(mpiserve.Backend):\n    def run(self, inputs):\n        return f(inputs[0])\n"
    )
    return tmp_path


def service(folder, **table):
    base = {"backend": "python", "model": "by_path:f", "inputs": IO, "outputs": IO}
    return Config.from_dict({"service": {"s": base | table}}, folder=folder).services[0]


@pytest.mark.parametrize("spec", ["./by_path.py:f", "by_path.py:f", "sub folder/../by_path.py:f"])
def test_a_file_of_the_folder_is_the_module_of_its_name(folder, spec):
    found = import_object(spec, folder)
    assert found(ONES) == 2
    assert import_object("by_path:f", folder) is found
    assert found.__module__ == module_of(spec, folder) == "by_path"


def test_a_file_elsewhere_finds_what_is_beside_it(folder):
    for spec in ("sub folder/my-model.py:f", f"{folder}/sub folder/my-model.py:f"):
        assert import_object(spec, folder)(ONES) == 3


def test_a_file_named_as_a_module_of_python_is_not_that_module(folder):
    for name in ("random", "json", "numpy"):
        (folder / f"{name}.py").write_text("def f(x): return 7\n")
        spec = f"./{name}.py:f"
        assert import_object(spec, folder)(1) == 7
        assert module_of(spec, folder) != name
        assert import_object(spec, folder) is import_object(spec, folder)
    import json

    assert json.dumps([]) == "[]"


def test_two_files_of_one_name_are_two_modules(folder):
    (folder / "sub folder/by_path.py").write_text("def f(x):\n    return 5\n")
    assert import_object("by_path.py:f", folder)(1) == 2
    assert import_object("sub folder/by_path.py:f", folder)(1) == 5


def test_a_file_is_read_again(folder):
    spec = "sub folder/my-model.py:f"
    first = import_object(spec, folder)
    (folder / "sub folder/my-model.py").write_text("def f(x):\n    return 9\n")
    read_again(module_of(spec, folder))
    assert import_object(spec, folder)(ONES) == 9
    assert first(ONES) == 3


def test_a_reload_reads_files_again(folder):
    def make(table):
        backend = backends.create(table)
        backend.load()
        answers.append(float(backend.run((ONES,))[0]))
        return backend

    answers = []
    table = service(folder, model="./by_path.py:f", isolate=False)
    model = SimpleNamespace(configured=table, current=table, let_go=id, load_version=make)
    versions = Versions(model)
    versions.load("")
    (folder / "by_path.py").write_text("def f(x):\n    return 8 * x\n")
    versions.load("")
    assert answers == [2, 8]


def test_what_is_not_there_is_named(folder):
    with pytest.raises(ModelError, match=r"by-path\.py: no such file"):
        import_object("./by-path.py:f", folder)
    with pytest.raises(ModelError, match="the module has no 'g'"):
        import_object("./by_path.py:g", folder)


def test_a_service_may_name_files_for_all_that_it_calls(folder):
    table = {"backend": "./sub folder/my-model.py:Own", "model": None}
    functions = {"preprocess": "by_path.py:f", "postprocess": "./sub folder/my-model.py:f"}
    backend = backends.create(service(folder, **table, **functions))
    backend.load()
    assert backend.run((ONES,)) == 2 * 3 * 3
    backend = backends.create(service(folder, model="./by_path.py:f"))
    backend.load()
    assert backend.run((ONES,)) == 2


@pytest.mark.parametrize("spec", ["x.py", "a b:f", ".py:f", "x.py:f g", "a..b:f", "a.:f"])
def test_other_words_are_no_names_of_objects(folder, spec):
    with pytest.raises(ConfigError, match=r"must be 'module:callable' or 'file\.py:callable'"):
        service(folder, preprocess=spec)
