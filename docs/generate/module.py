"""Turn the sources of module mpiserve into the Fortran reference.

This reads the form of these sources only: lines of `!>` stand above what they describe, `!<` stands
behind a component, and the comment of a type-bound procedure begins with the form of its call.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent

import header

FOLDER = header.HEADER.parents[1] / "fortran"
FILES = (
    "mpiserve.f90",
    "mpiserve_paces.f90",
    "mpiserve_signatures.f90",
    "mpiserve_arrays.f90",
    "mpiserve_requests.f90",
    "mpiserve_errors.f90",
    "mpiserve_c.f90",
)

TYPE = re.compile(r"((?: *!>.*\n)+) *type, (?:public|bind\(c\)) :: (\w+)\n((?:.*\n)*?) *end type")
BOUND = re.compile(r"((?: *!>.*\n)+)((?:(?! *!>).*\n)*)")
FUNCTION = re.compile(
    r"((?: *!>.*\n)+) *function (\w+)\(([^)]*)\) result\((\w+)\)\n((?:.*::.*\n)+)"
)
INTERFACE = re.compile(
    r"((?: *!>.*\n)+) *subroutine (\w+)\(([^)]*)\)\n((?:(?! *end ).*\n)+) *end subroutine"
)
COMPONENT = re.compile(
    r"^ *((?:integer|real|character|type)\([^!]*?) *(?:!< *(.*))?$", re.MULTILINE
)


@dataclass
class Bound:
    """A procedure of a type.

    Attributes:
        names: What a call says after the `%`.
        text: The comment, which begins with the form of the call.
    """

    names: list[str]
    text: str


@dataclass
class Type:
    """A public type, its comment, its public components and its procedures."""

    name: str
    text: str
    components: list[tuple[str, str]]
    bound: list[Bound]


def sources() -> str:
    """Return the text of all files of the module."""
    return "\n".join((FOLDER / name).read_text() for name in FILES)


def public(text: str) -> set[str]:
    """Return the names that module mpiserve exports, types included."""
    main = text.partition("end module mpiserve\n")[0]
    listed = re.findall(r"^ *public :: ((?:.*&\n)*.*)$", main, re.MULTILINE)
    names = re.findall(r"\w+", " ".join(listed).replace("&", " "))
    return {*names, *re.findall(r"type, public :: (\w+)", main)}


def types(text: str) -> list[Type]:
    """Return the public types, in the order of the sources."""
    found = []
    for comment, name, body in TYPE.findall(text):
        if name not in public(text):
            continue
        data, _, procedures = body.partition("contains\n")
        components = [] if "private" in data else COMPONENT.findall(data)
        found.append(Type(name, _plain(comment), components, _bound(procedures + "\n")))
    return found


def functions(text: str) -> list[tuple[str, str, str]]:
    """Return name, comment and interface of each public function."""
    found = []
    for comment, name, arguments, result, declared in FUNCTION.findall(text):
        if name in public(text):
            kept = [line for line in declared.splitlines() if _declares(line, arguments, result)]
            code = [f"function {name}({arguments}) result({result})", *kept]
            found.append((name, _plain(comment), "\n".join(code)))
    return found


def interfaces(text: str) -> list[tuple[str, str, str]]:
    """Return name, comment and declarations of each interface that users' procedures have."""
    found = []
    for comment, name, arguments, body in INTERFACE.findall(text):
        if name in public(text):
            declared = [line for line in body.splitlines() if "::" in line and "import" not in line]
            code = [f"subroutine {name}({arguments})", *declared]
            found.append(
                (name, _plain(comment), dedent("\n".join(["      " + code[0], *code[1:]])))
            )
    return found


def _declares(line: str, arguments: str, result: str) -> bool:
    names = re.findall(r"\w+", line.rpartition("::")[2].replace("(:)", ""))
    return set(names) <= {result, *re.findall(r"\w+", arguments)}


def _bound(text: str) -> list[Bound]:
    found = []
    for comment, code in BOUND.findall(text):
        names = re.findall(r"(?:(?:generic|procedure) ::|,) (\w+) =>", code)
        if names:
            found.append(Bound(names, _plain(comment)))
    return found


def _plain(comment: str) -> str:
    return "\n".join(re.sub(r"^ *!> ?", "", line) for line in comment.splitlines())


# ---- the page ----------------------------------------------------------------------------------


def page() -> str:
    """Write the reference as Markdown."""
    text = sources()
    known = set(header.functions(header.sections(header.HEADER.read_text())[1]))
    lines = []
    order = ("session", "service", "request")
    kinds = sorted(
        types(text), key=lambda kind: order.index(kind.name) if kind.name in order else 9
    )
    for kind in kinds:
        lines += [f"## `type({kind.name})` {{ #{kind.name} }}", "", _linked(kind.text, known), ""]
        if kind.components:
            lines += ["| component | meaning |", "| --- | --- |"]
            lines += [f"| `{code}` | {_linked(text, known)} |" for code, text in kind.components]
            lines.append("")
        for bound in kind.bound:
            lines += _entry(kind.name, bound, known)
    lines += ["## Functions and interfaces", ""]
    for name, comment, code in functions(text) + interfaces(text):
        lines += [f"### `{name}` {{ #{name} }}", "", "```fortran", code, "```", ""]
        lines += [_linked(comment, known), ""]
    return "\n".join([*lines, "## Constants", "", *_constants(text)])


def _entry(owner: str, bound: Bound, known: set[str]) -> list[str]:
    title = ", ".join(f"`{name}`" for name in bound.names)
    lines = [f"### {title} {{ #{owner}.{bound.names[0]} }}", "", _linked(bound.text, known), ""]
    same = [name for own in bound.names if (name := in_c(owner, own, known))]
    if same:
        links = ", ".join(f"[`{name}`](c.md#{name})" for name in dict.fromkeys(same))
        lines += [f"Contract: {links}", ""]
    return lines


def in_c(owner: str, name: str, known: set[str]) -> str | None:
    """Return the function of mpiserve.h that a procedure calls."""
    plain = name.removeprefix("get_").removesuffix("_tensors")
    places = ("", f"{owner}_", "service_")
    names = [f"mpiserve_{place}{plain}{end}" for place in places for end in ("", "_set", "_get")]
    return next((name for name in names if name in known), None)


def _constants(text: str) -> list[str]:
    names = [name for name in sorted(public(text)) if re.search(rf"parameter :: {name} =", text)]
    codes = [
        f"`{name}`" for name in names if name.startswith("mpiserve_e") or name == "mpiserve_ok"
    ]
    others = [f"`{name}`" for name in names if f"`{name}`" not in codes]
    return [
        f"Codes, which [Errors](errors.md) describes: {', '.join(codes)}.",
        "",
        f"Dtypes, transports and limits, as in [C](c.md): {', '.join(others)}.",
    ]


def _linked(text: str, known: set[str]) -> str:
    call = re.compile(r"\b(\w+\((?:[^()]|\([^()]*\))*\))(?=[:.,;]| and|$)")
    parts = call.split(text)
    coded = (
        f"`{' '.join(part.split())}`" if i % 2 else header.linked(part, known, "c.md")
        for i, part in enumerate(parts)
    )
    return "".join(coded)
