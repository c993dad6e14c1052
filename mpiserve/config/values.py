"""Limits for values of a configuration, and their form in error texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from math import prod
from typing import Any

from mpiserve.errors import Code, ConfigError

Location = tuple[int | str, ...]

# "module:object" or "folder/file.py:object"
OBJECT = re.compile(r"(?:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*|[^:]*\w\.py):[A-Za-z_]\w*")

MAX_DEPTH = 32
INT64 = range(-(2**63), 2**63)
SHOWN = 80  # characters of a value
SHOWN_DEPTH = 6  # keys of a location
LINE = 800  # characters of an error's text

MAX_RANKS = 2**16  # of a service's replicas, of a pool
MAX_PARALLEL = 1024
MAX_THREADS = 1024
MAX_ROWS = 2**30
MAX_SECONDS = 1e7  # four months
MAX_BYTES = 2**44  # of a pool's memory, or of a batch
MAX_DIMENSION = 2**31 - 1
MAX_VALUES = 2**40  # of a row
MAX_WARMUPS = 64


def shown(value: Any, most: int = SHOWN) -> str:
    """Write a value as Python does, on one line and shortened."""
    if isinstance(value, str):
        return cut(repr(value[:most])) + _length_note(value, most)
    try:
        return cut(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits; endless levels
        return f"a very large {type(value).__name__}"


def cut(text: str, most: int = SHOWN + 2) -> str:
    """Shorten a text, and append its length."""
    return text[:most] + _length_note(text, most)


def _length_note(text: str, most: int) -> str:
    return f"... ({len(text)} characters)" if len(text) > most else ""


def escaped(text: str, most: int = LINE) -> str:
    """Escape characters that break a line or move a terminal's cursor."""
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:most])
    return escaped + _length_note(text, most)


def suggest(word: str, known: Sequence[str]) -> str:
    """Name the known word that is closest to an unknown one, or all known words."""
    if not known:
        return "(there are none)"
    near = get_close_matches(word[:SHOWN], known, 1)
    return f"(did you mean '{near[0]}'?)" if near else f"(one of: {cut(', '.join(known), 400)})"


def line_error(source: object, text: str) -> ConfigError:
    """Make an error that names a file."""
    return ConfigError(Code.ECONFIG, f"{escaped(str(source))}: {escaped(text)}")


def key_of(location: Location) -> str:
    """Write the location of a value as a dotted key."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{cut(part)}" for part in location]
    return "".join(parts).lstrip(".")


def name_problem(name: str, size: int) -> str | None:
    """Say why ranks in other languages cannot use a name, or return None."""
    if not name.isprintable():
        char = next(char for char in name if not char.isprintable())
        return f"a name must not have the character {shown(char)}, got {shown(name)}"
    if not 0 < len(name.encode()) < size:
        return f"a name must have 1 to {size - 1} bytes, {shown(name)} has {len(name.encode())}"
    if name != name.strip():
        return f"a name must not begin or end with a blank, got {shown(name)}"
    if name != unicodedata.normalize("NFC", name):
        composed = unicodedata.normalize("NFC", name)
        return f"{shown(name)} is in decomposed characters: write it composed (NFC), {composed!r}"
    return None


def shape_problem(shape: tuple[int, ...], most: int) -> str | None:
    """Say why a shape is not that of a tensor, with rows or without, or return None."""
    said = shown(list(shape))
    if len(shape) > most:
        return f"at most {most} dimensions, got {len(shape)}"
    fixed = [size for size in shape if size != -1]
    if any(size < 1 for size in fixed):
        return f"every dimension must be positive, or -1 for rows or if it is free, got {said}"
    if any(size > MAX_DIMENSION for size in fixed):
        return f"every dimension must be below 2^31, got {said}"
    if (values := prod(fixed)) > MAX_VALUES:
        return f"a row of {values} values does not fit into any memory, got {said}"
    return None


def max_shape_problem(
    shape: tuple[int, ...], most: tuple[int, ...] | None, free: int
) -> str | None:
    """Say why a largest shape does not bound the free dimensions of a shape, or return None."""
    said = f"shape is {shown(list(shape))}"
    if most is None:
        if -1 not in shape[1:]:
            return None
        example = [64 if i and size == -1 else size for i, size in enumerate(shape)]
        return f"missing; {said}: say how large free dimensions can be, such as {example}"
    got = f"{said}, got {shown(list(most))}"
    if len(most) != len(shape):
        return f"must have as many dimensions as shape; {got}"
    for i, (size, bound) in enumerate(zip(shape, most, strict=True)):
        if size != -1 and bound != size:
            return f"dimension {i} is not free and must be the same as in shape; {got}"
        if size == -1 and bound < 1 and (i or bound != -1):
            return f"dimension {i} must be positive; {got}"
    if shape.count(-1) > free:
        return f"at most {free} dimensions can be free; {got}"
    problem = shape_problem(most, len(most))
    return problem


def value_problem(tables: Mapping[str, Any]) -> tuple[Location, str] | None:
    """Find the first value that no key may have.

    Returns:
        The location of the value, and what is wrong with it; or None.
    """
    waiting: list[tuple[Location, Any]] = [((), tables)]
    while waiting:
        where, value = waiting.pop()
        if text := _unfit(where, value):
            return where[:SHOWN_DEPTH], text
        inside: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, Mapping):
            inside = value.items()
        elif isinstance(value, (list, tuple)):
            inside = enumerate(value)
        waiting += reversed([((*where, key), item) for key, item in inside])
    return None


def _unfit(where: Location, value: Any) -> str | None:
    if len(where) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} levels of tables and lists"
    if type(value) is int and value not in INT64:
        return f"an integer must fit into 64 bits, got {shown(value)}"
    if where[:1] == ("service",) and where[2:3] == ("options",):
        return None  # the model decides which texts are valid there
    texts = [part for part in (*where[-1:], value) if isinstance(part, str)]
    for text in texts:
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text):
            return f"a text must not have control characters or line ends, got {shown(text)}"
    return None


def check_object(spec: str | None) -> str | None:
    """Refuse a text that names no callable."""
    if spec is not None and not OBJECT.fullmatch(spec):
        raise ValueError(f"must be 'module:callable' or 'file.py:callable', got {shown(spec)}")
    return spec
