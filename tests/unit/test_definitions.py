import pytest

from mpiserve.launch import definitions

PACKAGE = {
    "plain.py": "def f(x): pass\nclass C: pass\nvalue = 3\nimport os as system\n",
    "maybe.py": "try:\n    from nowhere import g\nexcept ImportError:\n    def g(): pass\n",
    "star.py": "from plain import *\nfrom maybe import *\n",
    "made.py": "globals()['anything'] = 3\n",
    "lazy.py": "def __getattr__(name): pass\n",
    "setting.py": "class S:\n    def m(self):\n        setattr(self, 'x', 1)\n",
    "circle.py": "from circle import *\n",
    "broken.py": "def f(:\n",
    "deep.py": "x = " + "(" * 150 + ")" * 150 + "\n" + "x = " + "-" * 9000 + "1\n",
    "boom.py": "def f(): pass\nraise SystemExit('run')\n",
    "encoded.py": "# -*- coding: latin-1 -*-\ndef f(): 'Z\xfcrich'\n",
    "sub/file.py": "from . import no\ndef f(a): pass\n",
    "pack/__init__.py": "from .inner import deep\nfrom pack.inner import deep as again\n",
    "pack/inner.py": "def deep(a, b=1, *, c, **d): pass\n",
    "pack/other.py": "raise SystemExit('run')\n",
}


@pytest.fixture
def folder(tmp_path):
    for name, text in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="latin-1")
    return tmp_path


@pytest.mark.parametrize(
    "spec",
    ["plain:f", "plain:C", "plain:value", "plain:system", "maybe:g", "star:f", "star:g", "boom:f"]
    + ["pack:deep", "pack:again", "pack:inner", "pack.inner:deep", "./plain.py:f", "sub/file.py:f"]
    + ["torch.nn:ReLU", "numpy:mean", "encoded:f", "lazy:__getattr__"],
)
def test_what_is_there_is_found(folder, spec):
    definitions.find(spec, folder)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("plain:g", "the module has no 'g'"),
        ("plain:valuee", r"did you mean 'value'\?"),
        ("nowhere_at_all:f", "no module 'nowhere_at_all'"),
        ("pack.nowhere:f", "no module 'pack.nowhere'"),
        ("plain.inner:f", "no module 'plain.inner'"),
        ("pack:shallow", "the module has no 'shallow'"),
        ("star:h", "the module has no 'h'"),
        ("setting:x", "the module has no 'x'"),
        ("torch.nn:RelU", "the module has no 'RelU'"),
        ("broken:f", r"broken\.py: line 1: "),
        ("./nowhere.py:f", "no such file"),
    ],
)
def test_missing_objects_are_reported(folder, spec, text):
    with pytest.raises(definitions.Missing, match=text):
        definitions.find(spec, folder)


@pytest.mark.parametrize(
    "spec", ["made:anything", "lazy:anything", "circle:f", "deep:f", "sys:path", "os.path:join"]
)
def test_objects_that_only_an_import_can_show_are_not_refused(folder, spec):
    with pytest.raises(definitions.Unknown):
        definitions.find(spec, folder)


def test_arguments_are_those_of_the_definition(folder):
    node = definitions.find("pack:deep", folder)
    assert str(definitions.signature(node)) == "(a, b=None, *, c, **d)"
    assert str(definitions.signature(definitions.find("plain:C", folder))) == "()"
    assert definitions.signature(definitions.find("torch.nn:ReLU", folder)).parameters.keys() == {
        "inplace"
    }
