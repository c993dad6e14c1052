"""Find the definition of "module:object" in source code, without importing or running it."""

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

MAX_STEPS = 16  # imports to follow from one module to the next
# Calls that may define any name: the first in any function, the others only at module level.
DYNAMIC = ("globals",)
DYNAMIC_OUTSIDE = ("exec", "eval", "setattr", "vars", "locals")


class Missing(Exception):
    """The object does not exist."""


class Unknown(Exception):
    """Only an import can show whether the object exists."""


class _Module(NamedTuple):
    name: str
    path: Path
    package: bool


class _Names:
    """The names that the statements of a module bind."""

    def __init__(self, tree: ast.Module) -> None:
        self.definitions: dict[str, ast.stmt] = {}  # by statements at the top level
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
    """Find the definition of "module:object" or "file.py:object".

    Args:
        spec: The object, in a form that the configuration accepts.
        folder: The folder of the configuration.

    Returns:
        The definition; None if the object exists, but by an assignment or in another way.

    Raises:
        Missing: If the object does not exist, with the reason.
        Unknown: If only an import can show whether it exists.
    """
    module_or_file, _, name = spec.partition(":")
    before = list(sys.path)
    own = [str((folder / module_or_file).parent)] if module_or_file.endswith(".py") else []
    sys.path[:0] = [str(folder), *own]  # as when the model is loaded
    try:
        module = (
            _file(folder / module_or_file)
            if module_or_file.endswith(".py")
            else _module(module_or_file, folder)
        )
        return _lookup(module, name, MAX_STEPS)
    except (Missing, Unknown):
        raise
    except Exception as error:  # from a finder, or an unusual file: an import may still work
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
        raise Unknown(f"module '{top}' cannot be located") from None
    if spec is None:
        raise Missing(f"no module '{top}' in {folder or 'sight'} or on the Python path")
    for part in parts:
        spec = _submodule(spec, f"{spec.name}.{part}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise Unknown(f"module '{name}' is not a plain Python file")
    return _Module(name, Path(spec.origin), spec.submodule_search_locations is not None)


def _submodule(parent: ModuleSpec, name: str) -> ModuleSpec:
    locations = parent.submodule_search_locations
    found = PathFinder.find_spec(name, list(locations)) if locations is not None else None
    if found is not None:
        return found
    if parent.origin is None:
        source = ""  # a folder without a file of its own
    elif parent.origin.endswith(".py"):
        source = Path(parent.origin).read_text(encoding="utf-8", errors="replace")
    else:
        source = "sys.modules"  # a compiled module may do anything
    if "sys.modules" in source or "__path__" in source:
        raise Unknown(f"only an import can show whether there is a module '{name}'")
    raise Missing(f"no module '{name}'")


def _lookup(module: _Module, name: str, steps: int) -> Definition | None:
    names = _Names(_tree(module.path))
    found = names.definitions.get(name)
    if name in names.others:
        return None  # it may be bound in several ways
    if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return found
    if isinstance(found, ast.ImportFrom):
        alias = next(alias for alias in found.names if name in (alias.asname, alias.name))
        return _followed(module, found, alias.name, steps)
    return _from_stars(module, names, name, steps)


def _followed(module: _Module, node: ast.ImportFrom, name: str, steps: int) -> Definition | None:
    """Follow an import; a failure of that import is not an error here."""
    try:
        return _imported(module, node, name, steps)
    except (Missing, Unknown):
        return None


def _imported(module: _Module, node: ast.ImportFrom, name: str, steps: int) -> Definition | None:
    if steps == 0:
        raise Unknown(f"{module.name} imports it through more than {MAX_STEPS} modules")
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
            unknown = unknown or "no module" in str(error)  # code may extend the path when it runs
        except Unknown:
            unknown = True
    if module.package and PathFinder.find_spec(f"{module.name}.{name}", [str(module.path.parent)]):
        return None
    if unknown:
        raise Unknown(f"only an import can show whether {module.name} has '{name}'")
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
    """Yield the names that a statement binds, with those of the statements inside it."""
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
    """Walk through the nodes that are not inside a function."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _outside(child)


def signature(node: Definition, *, method: str = "__init__") -> inspect.Signature | None:
    """Return the arguments of a function, of a class, or of the objects of a class.

    Args:
        node: The definition.
        method: The method of a class: "__init__" or "__call__".

    Returns:
        The signature; None if the definition does not determine it.
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
    """Return whether a class has only attributes that it defines itself."""
    bases = [base.id if isinstance(base, ast.Name) else "" for base in node.bases]
    return not node.keywords and not node.decorator_list and set(bases) <= {"object"}


def has_method(node: ast.ClassDef, name: str) -> bool:
    """Return whether a class itself binds the name of a method."""
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
