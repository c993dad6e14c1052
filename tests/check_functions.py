"""Check the lengths of functions and files, and print them: make lint.

A function's length is that of its body, without docstring, comments and blank lines; one that lies
inside another counts by itself.

    python tests/check_functions.py [FOLDER ...]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import lizard

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "mpiserve", "tests", "examples", "jobscripts", "docs", "setup.py")
LANGUAGES = {".c": "C", ".h": "C", ".py": "Python", ".pyx": "Python", ".pxi": "Python"}
OTHERS = (".f90", ".pxd", ".pyi")
BUILT = re.compile(r"mpiserve/.*\.[ch]$|mpiserve/(include|share)/|/out/")
MEDIAN, LONGEST, FILE = 10, 60, 450
# The C interface is one header, and that is the whole contract: 310 lines of it are declarations.
WHOLE = ("csrc/include/mpiserve.h",)

# lizard reads Python: a function of Cython becomes one.
CYTHON = re.compile(r"^( *)cp?def (?!class|extern)[^\n(:=]*?(\w+)\(", re.MULTILINE)
SIGNATURE = {"C": re.compile(r"\{"), "Python": re.compile(r":( *#.*)?$")}


class Function(NamedTuple):
    """Where a function is, and how many lines its body has."""

    place: str
    lines: int


def functions(name: str, text: str) -> Iterator[Function]:
    """Yield the functions of a file of C, Python or Cython."""
    language = LANGUAGES[Path(name).suffix]
    code = CYTHON.sub(r"\1def \2(", text) if language == "Python" else text
    reader = {"C": "a.c", "Python": "a.py"}[language]
    for found in lizard.analyze_file.analyze_source_code(reader, code).function_list:
        lines = text.splitlines()[found.start_line - 1 : found.end_line]
        ends = [i for i, line in enumerate(lines, 1) if SIGNATURE[language].search(line)]
        around = (ends or [1])[0] + (language == "C")  # the signature, and the last brace
        yield Function(f"{name}:{found.start_line} {found.name}", max(1, found.nloc - around))


def sources(folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of all files, without what a build makes."""
    for folder in folders:
        for path in sorted([ROOT / folder, *(ROOT / folder).rglob("*")]):
            name = str(path.relative_to(ROOT))
            if path.suffix in (*LANGUAGES, *OTHERS) and not BUILT.search(name):
                yield name, path.read_text()


def check(files: list[tuple[str, str]]) -> list[str]:
    """Print the figures, and return what is too long."""
    lengths = {name: text.count("\n") for name, text in files if name not in WHOLE}
    wrong = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > FILE]
    for language in ("C", "Python"):
        mine = [file for file in files if LANGUAGES.get(Path(file[0]).suffix) == language]
        found = [function for file in mine for function in functions(*file)]
        if not found:
            continue
        middle, longest = median(f.lines for f in found), max(f.lines for f in found)
        print(f"{language}: {len(found)} functions, median {middle:g} lines, longest {longest}")
        wrong += [f"{f.place}: {f.lines} lines" for f in found if f.lines > LONGEST]
        if middle > MEDIAN:
            wrong.append(f"{language}: the median is {middle:g} lines")
    return wrong


def main() -> int:
    wrong = check(list(sources(tuple(sys.argv[1:]) or FOLDERS)))
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if wrong:
        print(f"at most {LONGEST} lines a function, {MEDIAN} the median, {FILE} lines a file")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
