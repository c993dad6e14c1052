"""The check of lengths finds what is too long, and nothing else."""

from __future__ import annotations

import check_functions
import pytest
from check_functions import FILE, LONGEST, check, functions

C = """\
/* A function
 * that has a comment. */
static int add(int a,
               int b) {{
  /* Not counted. */

{body}
  return a + b; // counted
}}

int one(void) {{ return 1; }}
"""
PYTHON = '''\
def add(
    a: int,  # not counted
) -> int:
    """Not counted.

    Neither is this.
    """
    # Nor this.
{body}
    return a


def one():
    return 1
'''
CYTHON = """\
cdef class Session:
    cdef int count

    cdef inline int add(self, const char *a) except -1 nogil:
{body}
        return 1

    cpdef bytes one(self):
        return b""
"""
SOURCES = {
    "a.c": (C, "  a += b;\n"),
    "a.py": (PYTHON, "    a += 1\n"),
    "a.pyx": (CYTHON, "        self.count += 1\n"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_body_is_counted_without_comments_and_docstring(name):
    form, line = SOURCES[name]
    found = list(functions(name, form.format(body=9 * line)))
    assert [function.lines for function in found] == [10, 1]
    assert [function.place.split()[-1].split("::")[-1] for function in found] == ["add", "one"]


@pytest.mark.parametrize("name", SOURCES)
def test_a_function_that_is_too_long_is_found(name, capsys):
    form, line = SOURCES[name]
    fits, too_long = (form.format(body=n * line) for n in (LONGEST - 1, LONGEST))
    short = form.format(body=line)
    assert check([(name, short), (name, fits), (name, short)]) == []
    (wrong,) = check([(name, short), (name, too_long), (name, short)])
    assert wrong.startswith(f"{name}:") and wrong.endswith(f"add: {LONGEST + 1} lines")
    assert f"6 functions, median 1.5 lines, longest {LONGEST + 1}" in capsys.readouterr().out


def test_the_median_is_checked_by_language():
    form, line = SOURCES["a.c"]
    long = ("a.c", form.format(body=40 * line).partition("int one")[0])
    short = ("a.py", PYTHON.format(body=""))
    assert check([long, short, short]) == ["C: the median is 41 lines"]


@pytest.mark.parametrize("name", ["a.py", "a.f90", "a.h", "a.pxd"])
def test_a_file_that_is_too_long_is_found(name):
    assert check([(name, FILE * "\n")]) == []
    assert check([(name, (FILE + 1) * "\n")]) == [f"{name}: {FILE + 1} lines"]


def test_each_folder_of_sources_is_read():
    names = {name.partition("/")[0] for name, _ in check_functions.sources(check_functions.FOLDERS)}
    assert names >= {"csrc", "mpiserve", "tests", "examples", "setup.py"}
