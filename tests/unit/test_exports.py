"""One contract in three places: mpiserve.h, the map of exported names, and the Python tables."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import mpiserve
from mpiserve import config, errors
from mpiserve._lib import core
from mpiserve.observe import parts, ranks
from mpiserve.serving import reload
from mpiserve.serving.placement import breaker

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "csrc/include/mpiserve.h").read_text()
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
CODE = COMMENT.sub("", HEADER)
PACKAGE = Path(mpiserve.__file__).parent
LIBRARY = PACKAGE / "lib/libmpiserve.so"


def declared() -> set[str]:
    return set(re.findall(r"\b(mpiserve_\w+)\(", CODE))


def mapped() -> list[str]:
    text = (ROOT / "csrc/mpiserve.map").read_text()
    return re.findall(r"(\w+);", text.partition("global:")[2].partition("local:")[0])


def enum(name: str, prefix: str) -> dict[str, int]:
    body = re.search(rf"enum {name} {{(.*?)}}", CODE, re.DOTALL)
    assert body
    return {key: int(value) for key, value in re.findall(rf"{prefix}(\w+) = (-?\d+)", body[1])}


def test_the_map_lists_what_the_header_declares():
    assert len(declared()) > 20
    assert sorted(mapped()) == sorted(declared())


ENVIRONMENT = ("OPEN_TIMEOUT", "CLOSE_TIMEOUT", "WAIT_NOTICE", "END_WITH_LAUNCHER")
ENVIRONMENT += ("CAPTURE", "PROFILE", "PROFILE_FILE", "TRANSPORT")
ENVIRONMENT += ("E",)  # of the names of codes


def names_in_comments_only(header: str) -> set[str]:
    """The names of this library in comments of a header that its code does not have."""
    code = set(re.findall(r"\w+", COMMENT.sub("", header)))
    comments = " ".join(COMMENT.findall(header))
    return set(re.findall(r"\b(?:mpiserve|MPISERVE)_\w+", comments)) - code


def test_comments_name_what_the_header_declares():
    read_from_the_environment = {f"MPISERVE_{name}" for name in ENVIRONMENT}
    assert names_in_comments_only(HEADER) == read_from_the_environment


def test_a_comment_about_a_function_that_does_not_exist_is_found():
    planted = HEADER + "/* mpiserve_gone: returns MPISERVE_EGONE. */\nint mpiserve_here(void);\n"
    new = names_in_comments_only(planted) - names_in_comments_only(HEADER)
    assert new == {"mpiserve_gone", "MPISERVE_EGONE"}


def test_the_library_exports_what_the_header_declares():
    command = ["nm", "-D", "--defined-only", LIBRARY]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = [line.split()[-1].partition("@")[0] for line in text.splitlines() if " T " in line]
    assert sorted(exported) == sorted(declared())


def test_the_library_exports_no_data():
    command = ["nm", "-D", "--defined-only", LIBRARY]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A is the name of the version itself.
    assert {line.split()[-2] for line in text.splitlines()} == {"A", "T"}


def test_the_soname_has_the_number_of_the_binary_interface():
    number = re.search(r"#define MPISERVE_ABI_VERSION (\d+)", CODE)[1]
    text = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True)
    assert f"Library soname: [libmpiserve.so.{number}]" in text.stdout
    assert (LIBRARY.parent / f"libmpiserve.so.{number}").exists()
    assert f"LIBMPISERVE_{number} {{" in (ROOT / "csrc/mpiserve.map").read_text()


def test_the_installed_header_is_the_one_of_the_source():
    assert (PACKAGE / "include/mpiserve.h").read_text() == HEADER


def test_error_codes_are_those_of_the_header():
    assert {code.name: code.value for code in errors.Code} == enum("mpiserve_code", "MPISERVE_")


def test_dtypes_are_those_of_the_header():
    names = {name.upper(): number for number, name in enumerate(config.DTYPES)}
    assert names == enum("mpiserve_dtype", "MPISERVE_")


def test_states_are_those_of_the_header():
    names = {name.upper(): number for number, name in enumerate(core.STATES)}
    assert names == enum("mpiserve_state", "MPISERVE_")
    assert f"#define MPISERVE_STATES {len(names)} " in CODE


def test_stages_are_those_of_the_header():
    names = {name.replace(" ", "_").upper(): number for number, name in enumerate(parts.STAGES)}
    assert names == enum("mpiserve_stage", "MPISERVE_STAGE_")
    assert f"#define MPISERVE_STAGES {len(names)} " in CODE


def test_changes_of_a_model_are_those_of_the_header():
    assert {change.name: change.value for change in reload.Change} == enum(
        "mpiserve_change", "MPISERVE_"
    )


def in_fortran() -> dict[str, int]:
    text = (ROOT / "csrc/fortran/mpiserve_c.f90").read_text()
    found = re.findall(r"parameter :: (mpiserve_\w+) = (-?\d+)$", text, re.MULTILINE)
    return {name.upper(): int(value) for name, value in found}


def test_codes_dtypes_and_limits_of_fortran_are_those_of_the_header():
    same = {f"MPISERVE_{name}": value for name, value in enum("mpiserve_code", "MPISERVE_").items()}
    same |= {f"MPISERVE_{key}": n for key, n in enum("mpiserve_dtype", "MPISERVE_").items()}
    same |= {f"MPISERVE_{key}": n for key, n in enum("mpiserve_transport", "MPISERVE_").items()}
    same |= {f"MPISERVE_{key}": n for key, n in enum("mpiserve_source", "MPISERVE_").items()}
    same |= {f"MPISERVE_{key}": n for key, n in enum("mpiserve_state", "MPISERVE_").items()}
    limits = re.findall(r"#define (MPISERVE_(?:MAX_DIMS|MAX_TENSORS|NAME_SIZE|STATES)) (\d+)", CODE)
    assert in_fortran() == same | {name: int(value) for name, value in limits}


def test_limits_are_those_of_the_header():
    limits = dict(re.findall(r"#define MPISERVE_(MAX_\w+|NAME_SIZE) (\d+)", CODE))
    assert {name: int(limits[name]) for name in ("MAX_DIMS", "MAX_TENSORS", "NAME_SIZE")} == {
        name: getattr(config, name) for name in ("MAX_DIMS", "MAX_TENSORS", "NAME_SIZE")
    }


def test_the_version_is_that_of_the_header():
    numbers = re.findall(r"#define MPISERVE_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", CODE)
    assert mpiserve.__version__ == ".".join(numbers)


def test_readers_know_what_a_placement_is():
    body = re.search(r"struct mpiserve_placement {(.*?)}", CODE, re.DOTALL)
    fields = re.findall(r"int64_t ([\w, ]+);", body[1])
    assert [name for line in fields for name in line.split(", ")] == list(ranks.PLACEMENT)
    sides = enum("mpiserve_side", "MPISERVE_SIDE_")
    assert sides == {name.upper(): i for i, name in enumerate(ranks.SIDES) if i}
    assert breaker.STATES == ranks.BREAKER
