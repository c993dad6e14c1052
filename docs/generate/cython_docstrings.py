"""Docstrings of Cython modules for griffe, which reads their types from a .pyi file beside them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import griffe

CLASS = re.compile(r'^cdef class (\w+)(?:\(.*\))?:\n    """(.*?)"""', re.MULTILINE | re.DOTALL)
METHOD = re.compile(r'^    def (\w+)\(.*?\):\n        """(.*?)"""', re.MULTILINE | re.DOTALL)
FUNCTION = re.compile(r'^def (\w+)\(.*?\)(?: -> .*)?:\n    """(.*?)"""', re.MULTILINE | re.DOTALL)


def docstrings(stub: Path) -> dict[str, str]:
    """Return the docstrings of the module of a .pyi file, by "Class.method" and the like."""
    source = stub.with_suffix(".pyx").read_text()
    parts = re.findall(r'^include "(\S+)"', source, re.MULTILINE)
    found = {}
    for text in (source, *((stub.parent / name).read_text() for name in parts)):
        found |= dict(FUNCTION.findall(text))
        for body in re.split(r"^(?=cdef class )", text, flags=re.MULTILINE)[1:]:
            name, about = CLASS.findall(body)[0] if CLASS.match(body) else ("", "")
            found[name] = about
            found |= {f"{name}.{method}": text for method, text in METHOD.findall(body)}
    return found


class CythonDocstrings(griffe.Extension):
    """Gives objects of a .pyi file the docstrings of the .pyx file beside it."""

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        """Look for the sources when a module has been read."""
        path = mod.filepath
        if (
            not isinstance(path, Path)
            or path.suffix != ".pyi"
            or not path.with_suffix(".pyx").exists()
        ):
            return
        for name, text in docstrings(path).items():
            self._set(mod, name, text)

    def _set(self, mod: griffe.Module, name: str, text: str) -> None:
        owner: Any = mod
        for part in name.split("."):
            owner = owner.members.get(part) if owner is not None else None
        if owner is not None and not owner.is_alias and owner.docstring is None:
            owner.docstring = griffe.Docstring(griffe.Docstring(text).value, parent=owner)
