"""Read the tables of a TOML file, with quick and one-line errors for any other file."""

from __future__ import annotations

import codecs
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

from mpiserve.config.values import MAX_DEPTH, cut, line_error

MAX_SIZE = 4 << 20  # bytes; a service takes about 500

# tomllib's time for a key of n parts grows with n squared. The possessive quantifiers keep this
# expression linear.
PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+"""
LONG_KEY = re.compile(rf"(?<![\w-])(?:{PART}){{{2 * MAX_DEPTH}}}")
LONG_INTEGER = re.compile(r"(?<!\d)\d(?:_?\d){1000}")
OTHER_TEXT = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_tables(path: str | Path) -> dict[str, Any]:
    """Read the tables of a TOML file.

    Raises:
        ConfigError: With one line that names the file.
    """
    try:
        return _parsed(_text(_bytes(Path(path))))
    except OSError as error:
        raise line_error(path, (error.strerror or str(error)).lower()) from None
    except RecursionError:
        raise line_error(path, f"more than {MAX_DEPTH} levels of tables and lists") from None
    except ValueError as error:
        raise line_error(path, str(error)) from None


def _bytes(path: Path) -> bytes:
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise ValueError("is a directory; name the TOML file in it")
    if not stat.S_ISREG(found.st_mode):  # a pipe may never end
        raise ValueError("is not a regular file")
    if found.st_size > MAX_SIZE:
        text = f"has {found.st_size} bytes, more than the {MAX_SIZE} that a configuration may have"
        raise ValueError(text)
    return path.read_bytes()


def _text(data: bytes) -> str:
    for mark, name in OTHER_TEXT.items():
        if data.startswith(mark):
            raise ValueError(f"is {name} text; save it as UTF-8, as TOML must be")
    if b"\0" in data[:4]:
        raise ValueError("not UTF-8 text, as TOML must be; is it UTF-16, or a binary file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: not UTF-8 text, as TOML must be") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parsed(text: str) -> dict[str, Any]:
    if long := LONG_KEY.search(text):
        line = text.count("\n", 0, long.start()) + 1
        raise ValueError(f"line {line}: a key of more than {MAX_DEPTH} levels")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_syntax(str(error))) from None
    except ValueError as error:  # an integer with too many digits, or an invalid date
        long = LONG_INTEGER.search(text)
        line = text.count("\n", 0, long.start()) + 1 if long else 0
        reason = "an integer must fit into 64 bits, this one has thousands of digits"
        raise ValueError(f"line {line}: {reason}" if long else cut(str(error), 200)) from None


def _syntax(text: str) -> str:
    """Put the position before the reason."""
    where = re.search(r"\s*\(at (.+)\)$", text)
    if not where:
        return cut(text, 200)
    return f"{where.group(1)}: {cut(text[: where.start()], 200)}"
