"""What "module:object" names, read from the source alone: nothing is imported or run."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

MAX_STEPS = 16  # imports that are followed from one module to the next
# They may make any name: a function by the first, the module's own statements by the others.
DYNAMIC = ("globals",)
DYNAMIC_OUTSIDE = ("exec", "eval", "setattr", "vars", "locals")


class Missing(Exception):
    """It is not there."""


class Unknown(Exception):
    """Only an import can tell."""


class _Module(NamedTuple):
    name: str
    path: Path
    package: bool


class _Names:
    """What the statements of a module bind, without running them."""

    def __init__(self, tree: ast.Module) -> None:
        self.definitions: dict[str, ast.stmt] = {}  # at the top level, by one statement
        self.others: set[str] = set()
        self.stars: list[ast.ImportFrom] = []
        for statement in tree.body:
            self._take(statement)
        self.others |= {
            name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names
        }
        self.dynamic = "__getattr__" in self.definitions or _dynamic(tree)

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.definitions[statement.name] = statement
        elif isinstance(statement, ast.ImportFrom):
            self.stars += [statement] * (statement.names[0].name == "*")
            for alias in statement.names:
                self.definitions[alias.asname or alias.name] = statement
        else:
            self.others |= set(_bound(statement))
            self.stars += [
                node
                for node in ast.walk(statement)
                if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            ]


def find(spec: str, folder: Path) -> Definition | None:
    """Find what "module:object" or "file.py:object" names.

    Args:
        spec: Of a form that the configuration takes.
        folder: Of the configuration.

    Returns:
        Its definition; None for what is there, but by an assignment or another way.

    Raises:
        Missing: If it is not there, with the reason.
        Unknown: If only an import can tell.
    """
    place, _, name = spec.partition(":")
    before = list(sys.path)
    own = [str((folder / place).parent)] if place.endswith(".py") else []
    sys.path[:0] = [str(folder), *own]  # where the model will be looked for, too
    try:
        module = _file(folder / place) if place.endswith(".py") else _module(place, folder)
        return _lookup(module, name, MAX_STEPS)
    except (Missing, Unknown):
        raise
    except Exception as error:  # of a finder, or of a file of any kind: an import may do better
        raise Unknown(f"its source cannot be read: {type(error).__name__}: {error}") from None
    finally:
        sys.path[:] = before


def _file(path: Path) -> _Module:
    if not os.path.isfile(path):
        raise Missing(f"{path}: no such file")
    return _Module(path.stem, path, False)


def _module(name: str, folder: Path | None = None) -> _Module:
    top, *parts = name.split(".")
    try:
        spec = find_spec(top)
    except (ValueError, ImportError):
        raise Unknown(f"module '{top}' has no place") from None
    if spec is None:
        raise Missing(f"no module '{top}' in {folder or 'sight'} or on the Python path")
    for part in parts:
        spec = _submodule(spec, f"{spec.name}.{part}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise Unknown(f"module '{name}' is no plain Python file")
    return _Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def _submodule(parent: ModuleSpec, name: str) -> ModuleSpec:
    places = parent.submodule_search_locations
    found = PathFinder.find_spec(name, list(places)) if places is not None else None
    if found is not None:
        return found
    if parent.origin is None:
        source = ""  # a folder without a file of its own
    elif parent.origin.endswith(".py"):
        source = Path(parent.origin).read_text(encoding="utf-8", errors="replace")
    else:
        source = "sys.modules"  # compiled, and may do anything
    if "sys.modules" in source or "__path__" in source:
        raise Unknown(f"only an import can tell whether there is a module '{name}'")
    raise Missing(f"no module '{name}'")


def _lookup(module: _Module, name: str, steps: int) -> Definition | None:
    names = _Names(_tree(module.path))
    found = names.definitions.get(name)
    if name in names.others:
        return None  # one of several ways, perhaps
    if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return found
    if isinstance(found, ast.ImportFrom):
        alias = next(alias for alias in found.names if name in (alias.asname, alias.name))
        return _followed(module, found, alias.name, steps)
    return _from_stars(module, names, name, steps)


def _followed(module: _Module, node: ast.ImportFrom, name: str, steps: int) -> Definition | None:
    """Follow an import, whose own failure is another matter."""
    try:
        return _imported(module, node, name, steps)
    except (Missing, Unknown):
        return None


def _imported(module: _Module, node: ast.ImportFrom, name: str, steps: int) -> Definition | None:
    if steps == 0:
        raise Unknown(f"{module.name} imports from module to module")
    base = module.name.split(".")
    base = base[: len(base) - node.level + module.package] if node.level else []
    target = ".".join([*base, *([node.module] if node.module else [])])
    return _lookup(_module(target), name, steps - 1)


def _from_stars(module: _Module, names: _Names, name: str, steps: int) -> Definition | None:
    unknown = names.dynamic
    for star in names.stars:
        try:
            return _imported(module, star, name, steps)
        except Missing as error:
            unknown = unknown or "no module" in str(error)  # a path that only running it makes
        except Unknown:
            unknown = True
    if module.package and PathFinder.find_spec(f"{module.name}.{name}", [str(module.path.parent)]):
        return None
    if unknown:
        raise Unknown(f"only an import can tell whether {module.name} has '{name}'")
    near = get_close_matches(name, [*names.definitions, *names.others], 1)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    raise Missing(f"the module has no '{name}'{hint}")


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise Missing(f"{path.name}: line {error.lineno}: {error.msg}") from None
    except ValueError as error:  # a zero byte
        raise Missing(f"{path.name}: {error}") from None


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement of another kind binds, and those inside of it."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)


def _dynamic(tree: ast.Module) -> bool:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.modules":
            return True
        if isinstance(node, ast.Name) and node.id in DYNAMIC:
            return True
    outside = (node for node in _outside(tree) if isinstance(node, ast.Name))
    return any(node.id in DYNAMIC_OUTSIDE for node in outside)


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """Walk through what is in no function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _outside(child)


def signature(node: Definition, *, method: str = "__init__") -> inspect.Signature | None:
    """The arguments of a function, or of a class or its objects.

    Args:
        node: The definition.
        method: Of a class: "__init__" or "__call__".

    Returns:
        None if the definition does not tell.
    """
    if node.decorator_list:
        return None
    if not isinstance(node, ast.ClassDef):
        return _arguments(node)
    methods = {item.name: item for item in node.body if isinstance(item, Function)}
    if node.keywords or "__new__" in methods:
        return None
    found = methods.get(method)
    if found is None:
        return None if method == "__call__" or not plain(node) else inspect.Signature()
    if found.decorator_list:
        return None
    whole = _arguments(found)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def plain(node: ast.ClassDef) -> bool:
    """Tell whether a class has nothing that it does not define."""
    bases = [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
    return not node.keywords and not node.decorator_list and set(bases) <= {"object"}


def has_method(node: ast.ClassDef, name: str) -> bool:
    """Tell whether a class itself defines a method, or anything of its name."""
    return any(name in [getattr(item, "name", ""), *_bound(item)] for item in node.body)


def _arguments(node: Function) -> inspect.Signature:
    kinds = inspect.Parameter
    arguments = node.args
    positional = [
        *((arg, kinds.POSITIONAL_ONLY) for arg in arguments.posonlyargs),
        *((arg, kinds.POSITIONAL_OR_KEYWORD) for arg in arguments.args),
    ]
    filled = len(positional) - len(arguments.defaults)
    found = [_parameter(arg, kind, at >= filled) for at, (arg, kind) in enumerate(positional)]
    found += [_parameter(arg, kinds.VAR_POSITIONAL, False) for arg in _some(arguments.vararg)]
    found += [
        _parameter(arg, kinds.KEYWORD_ONLY, default is not None)
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    found += [_parameter(arg, kinds.VAR_KEYWORD, False) for arg in _some(arguments.kwarg)]
    return inspect.Signature(found)


def _parameter(arg: ast.arg, kind: inspect._ParameterKind, filled: bool) -> inspect.Parameter:
    return inspect.Parameter(arg.arg, kind, default=None if filled else inspect.Parameter.empty)


def _some(arg: ast.arg | None) -> Sequence[ast.arg]:
    return [arg] if arg else []
