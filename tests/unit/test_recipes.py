"""The recipes in packaging/ state this version, and what setup.py requires."""

from __future__ import annotations

import ast
import re
from importlib import metadata

import pytest
from jobs import ROOT

import mpiserve

PACKAGING = ROOT / "packaging"
EASYCONFIG = PACKAGING / f"easybuild/mpiserve-{mpiserve.__version__}-foss-2025b.eb"
# What EasyBuild's Python-bundle-PyPI and SciPy-bundle have.
IN_BUNDLES = {"numpy", "rich"}


def requirements() -> dict[str, str]:
    """Return the bounds of each package that mpiserve requires, such as {"numpy": ">=2.0"}."""
    found = [need for need in metadata.requires("mpiserve") or () if "extra ==" not in need]
    pairs = [re.fullmatch(r"([\w-]+)(.*)", need.replace(" ", "")).groups() for need in found]
    return {name.replace("-", "_"): ",".join(sorted(bounds.split(","))) for name, bounds in pairs}


def easyconfig() -> dict[str, object]:
    """Return the parameters of the easyconfig, which are assignments of literals."""
    tree = ast.parse(EASYCONFIG.read_text())
    found = {}
    for line in tree.body:
        text = ast.unparse(line.value).replace("(name, version,", "('mpiserve', '', ")
        found[line.targets[0].id] = ast.literal_eval(text)
    return found


@pytest.mark.parametrize(
    "file",
    [
        "conda/recipe.yaml",
        "spack/py-mpiserve/package.py",
        "modulefiles/mpiserve.lua",
        EASYCONFIG.relative_to(PACKAGING).as_posix(),
    ],
)
def test_recipes_are_of_this_version(file):
    text = (PACKAGING / file).read_text()
    versions = set(re.findall(r"(?<![\d.])0\.\d+\.0\b(?!-)", text))
    assert mpiserve.__version__ in versions


def test_the_recipe_of_conda_requires_the_same():
    text = (PACKAGING / "conda/recipe.yaml").read_text()
    run = text.partition("\n  run:\n")[2].partition("\n\n")[0]
    needs = dict(re.findall(r"^    - ([a-z]\w*) ?(.*)$", run, re.MULTILINE))
    needs["torch"] = needs.pop("pytorch")
    assert needs.pop("python") == ""
    needs = {name: ",".join(sorted(bounds.split(","))) for name, bounds in needs.items()}
    assert needs == requirements()


def test_the_recipe_of_spack_requires_the_same():
    text = (PACKAGING / "spack/py-mpiserve/package.py").read_text()
    needs = dict(re.findall(r'depends_on\("py-([\w-]+)@([\w.:]+)", type=.*"run"', text))
    needs = {name.replace("-", "_"): bounds for name, bounds in needs.items()}
    wanted = requirements()
    assert needs.keys() == wanted.keys()
    for name, bounds in needs.items():
        lowest = re.search(r">=([\d.]+)", wanted[name])[1]
        assert [int(part) for part in re.findall(r"\d+", bounds)] == [
            int(part) for part in lowest.removesuffix(".0").split(".")
        ]


def test_the_recipe_of_easybuild_has_all_that_is_required():
    found = easyconfig()
    listed = [*found["dependencies"], *found["exts_list"]]
    names = {entry[0].lower() for entry in listed} | IN_BUNDLES
    names = {"torch" if name == "pytorch" else name.replace("-", "_") for name in names}
    assert requirements().keys() - names == set()
