"""The reference: every key, variable, code and function is there, with its text."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mpiserve
from mpiserve.config import Config
from mpiserve.errors import Code

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs/generate"))

import configuration  # noqa: E402
import errors_table  # noqa: E402
import header  # noqa: E402
import module  # noqa: E402

SOURCES = ("mpiserve/**/*.py", "mpiserve/**/*.p[yx][dix]", "csrc/**/*.[ch]", "jobscripts/*")
READ = re.compile(
    r"""(?:getenv\(|environ\.get\(|environ\[|seconds\(|number\()\s*["'](MPISERVE_\w+)|\$\{(MPISERVE_\w+)"""
)


def reference(name: str) -> str:
    return (ROOT / f"docs/reference/{name}.md").read_text()


def test_every_key_of_the_configuration_has_a_description():
    tables = [Config, *configuration.tables().values()]
    assert len(tables) == 10
    keys = {f"{t.__name__}.{key}": f for t in tables for key, f in t.model_fields.items()}
    assert len(keys) > 40
    assert [key for key, field in keys.items() if not field.description] == []


def test_the_page_of_the_configuration_has_every_key():
    page = configuration.page()
    for table in configuration.tables().values():
        for key, field in table.model_fields.items():
            assert f"### `{key}` {{ #" in page
            assert field.description in page


def test_constraints_and_defaults_are_those_of_the_models():
    page = configuration.page()
    assert "*integer · from 1 to 1,024 · default: `1`*" in page
    assert "*number · above 0 to 1 · default: `0.25`*" in page
    assert '*`"wait"` or `"reject"` · default: `"wait"`*' in page


def test_every_variable_that_the_code_reads_is_listed():
    files = [path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()]
    read = {name for path in files for pair in READ.findall(path.read_text()) for name in pair}
    read.discard("")
    assert {"MPISERVE_TRANSPORT", "MPISERVE_LOG", "MPISERVE_PMI", "MPISERVE_GRACE"} <= read
    listed = set(re.findall(r"`(MPISERVE_\w+)`", reference("environment")))
    assert read == listed


def test_every_code_is_in_the_table_of_errors():
    page = errors_table.page()
    for code in Code:
        assert f"| {code.value} | `MPISERVE_{code.name}` |" in page


def test_every_function_of_the_header_has_a_contract():
    _, parts = header.sections(header.HEADER.read_text())
    contracts = header.functions(parts)
    exported = re.findall(r"(mpiserve_\w+);", (ROOT / "csrc/mpiserve.map").read_text())
    assert sorted(contracts) == sorted(exported)
    known = {name for part in parts for item in part.items for name in item.names}
    for part in parts[1:]:
        for item in part.items:
            named = re.findall(r"\w+", item.text.partition(":")[0])
            assert named and set(named) <= known, item.text
    assert [name for name, text in contracts.items() if len(text) < 20] == []
    page = header.page()
    assert [name for name in exported if f"{name}(" not in page] == []


def test_every_public_name_of_the_fortran_module_is_described():
    text = module.sources()
    page = module.page()
    assert {kind.name for kind in module.types(text)} >= {"session", "service", "request"}
    for name in module.public(text):
        assert re.search(rf"#{name} }}|`{name}`", page), name
    assert all(kind.text for kind in module.types(text))


def test_every_procedure_of_a_fortran_type_is_described():
    text = module.sources()
    described = {name for kind in module.types(text) for own in kind.bound for name in own.names}
    bound = set(re.findall(r"(?:^    (?:generic|procedure) ::|,) (\w+) =>", text, re.MULTILINE))
    assert len(bound) > 15
    assert bound == described
    for kind in module.types(text):
        for own in kind.bound:
            assert all(f"{name}(" in own.text for name in own.names), own


def test_every_public_name_of_python_is_in_the_reference():
    pages = reference("python") + reference("errors")
    for name in mpiserve.__all__:
        shown = re.search(rf"^::: mpiserve(\._lib\.core)?\.{name}$", pages, re.MULTILINE)
        assert shown or getattr(mpiserve, name).__module__ == "mpiserve.errors", name
    assert "::: mpiserve.errors\n" in pages


def rooms() -> dict[str, set[str]]:
    """Return the files that the architecture's table of each room lists, without suffixes."""
    text = (ROOT / "docs/internals/architecture.md").read_text()
    found: dict[str, set[str]] = {}
    for title, body in re.findall(r"^#### (.+)\n\n((?:\|.*\n)+)", text, re.MULTILINE):
        cells = " ".join(line.split("|")[1] for line in body.splitlines())
        names = {Path(name).stem for name in re.findall(r"`([\w./]+)`", cells)}
        found |= dict.fromkeys(re.findall(r"`([\w/]+)/`", title), names)
    return found


def test_the_tables_of_rooms_list_every_file():
    said = rooms()
    assert len(said) > 12
    for folder, names in said.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".c", ".h")]
        files += [*(ROOT / folder).glob("*.p[yx][xi]")]
        shared = [f for f in said if said[f] is names]  # one table for two folders
        there = {path.stem for path in files if path.stem[0] != "_" and path.suffix != ".pyi"}
        assert there <= names, f"{folder}: {there - names}"
        if len(shared) == 1:
            known = {path.stem for path in (ROOT / folder).rglob("*.*")}
            assert names <= known, f"{folder}: {names - known}"


def test_the_page_of_faults_has_every_number_and_no_job_that_went_wrong():
    page = (ROOT / "docs/internals/faults.md").read_text()
    found = re.findall(r"^\| (\d+) .*\| (\d+) of (\d+) \|$", page, re.MULTILINE)
    assert {int(number) for number, _, _ in found} == set(range(1, 24))
    assert [row for row in found if row[1] != row[2]] == []
