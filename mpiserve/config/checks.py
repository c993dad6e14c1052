"""What a configuration may hold at all, and how its values stand in the line of an error."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from mpiserve.errors import Code, ConfigError

Location = tuple[int | str, ...]

MAX_DEPTH = 32
INT64 = range(-(2**63), 2**63)
SHOWN = 80  # characters of a value
SHOWN_DEPTH = 6  # keys of a place
LINE = 800  # characters of an error's line

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
    """Write a value as Python does, on one line, and no more of it than helps."""
    if isinstance(value, str):
        return cut(repr(value[:most])) + _rest(value, most)
    try:
        return cut(repr(value), most)
    except (ValueError, RecursionError):  # an integer of thousands of digits; endless levels
        return f"a very large {type(value).__name__}"


def cut(text: str, most: int = SHOWN + 2) -> str:
    """Cut a text, and say how long it was."""
    return text[:most] + _rest(text, most)


def _rest(text: str, most: int) -> str:
    return f"... ({len(text)} characters)" if len(text) > most else ""


def one_line(text: str, most: int = LINE) -> str:
    """Write out what would break a line or move a terminal's cursor."""
    escaped = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text[:most])
    return escaped + _rest(text, most)


def line_error(source: object, text: str) -> ConfigError:
    """Make the error of a file."""
    return ConfigError(Code.ECONFIG, f"{one_line(str(source))}: {one_line(text)}")


def key_of(location: Location) -> str:
    """Write where a value stands as the file does."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{cut(part)}" for part in location]
    return "".join(parts).lstrip(".")


def name_problem(name: str, size: int) -> str | None:
    """Say why other ranks, in other languages, could not find a name, or None."""
    if not name.isprintable():
        char = next(char for char in name if not char.isprintable())
        return f"a name has no character such as {shown(char)}, got {shown(name)}"
    if not 0 < len(name.encode()) < size:
        return f"a name has 1 to {size - 1} bytes, {shown(name)} has {len(name.encode())}"
    if name != name.strip():
        return f"a name neither begins nor ends with a blank, got {shown(name)}"
    if name != unicodedata.normalize("NFC", name):
        composed = unicodedata.normalize("NFC", name)
        return f"{shown(name)} is in decomposed characters: write it composed (NFC), {composed!r}"
    return None


def shape_problem(shape: tuple[int, ...], most: int) -> str | None:
    """Say why a shape is none of a tensor of rows, or None."""
    said = shown(list(shape))
    if not shape or shape[0] != -1:
        return f"the first dimension is the rows and must be -1, got {said}"
    if len(shape) > most:
        return f"at most {most} dimensions, got {len(shape)}"
    if any(size < 1 for size in shape[1:]):
        return f"every dimension after the first must be positive, got {said}"
    if any(size > MAX_DIMENSION for size in shape[1:]):
        return f"every dimension must be below 2^31, got {said}"
    if (values := prod(shape[1:])) > MAX_VALUES:
        return f"a row of {values} values is more than any memory holds, got {said}"
    return None


def value_problem(tables: Mapping[str, Any]) -> tuple[Location, str] | None:
    """Find the first value that no key may have, whatever the key means.

    Returns:
        Where it stands, and what is wrong with it.
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
        return f"an integer has 64 bits, got {shown(value)}"
    if where[:1] == ("service",) and where[2:3] == ("options",):
        return None  # what a text may hold there is the model's affair
    texts = [part for part in (*where[-1:], value) if isinstance(part, str)]
    for text in texts:
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text):
            return f"a text without control characters and line ends is needed, got {shown(text)}"
    return None
