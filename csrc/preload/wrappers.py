"""Write the wrappers of libmpiserve_world.so, a C file, from a preprocessed mpi.h.

    mpicc -E -P declarations.c >declarations.i && python wrappers.py declarations.i >wrappers.c

Each function of C that takes an MPI_Comm gets a wrapper that replaces MPI_COMM_WORLD by what
preload.h says, and so does each name that a Fortran library may give it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# MPI_Abort ends the whole job. The others give the number of a handle, and a program
# compares that with Fortran's MPI_COMM_WORLD.
UNTOUCHED = {"MPI_Abort", "MPI_Comm_c2f", "MPI_Comm_toint"}

# Functions that start MPI, with the number of their Fortran arguments, without the error.
INIT = {"MPI_Init": 0, "MPI_Init_thread": 2}

# MPI calls the handler of the real world for errors that belong to no communicator.
BOTH = {"MPI_Comm_set_errhandler", "MPI_Errhandler_set"}

# The attributes that MPI itself sets, such as MPI_TAG_UB, may be on the real world alone.
ASK_BOTH = {"MPI_Comm_get_attr", "MPI_Attr_get"}

# Names in mpif.h and module mpi, as compilers differ in them, then in module mpi_f08: with and
# without descriptors. Functions with large counts are overloads there, those that take a c_ptr
# for memory are overloads in module mpi.
FORTRAN = ("{lower}_", "{lower}__", "{lower}", "{upper}", "{lower}_f08_", "{lower}_f08ts_")
FORTRAN_POINTER = ("{lower}_cptr_", "{lower}_cptr__", "{lower}_cptr", "{upper}_CPTR")
FORTRAN_LARGE = ("{lower}_f08_large_", "{lower}_f08ts_large_")

HEAD = """\
/* Written by csrc/preload/wrappers.py from the mpi.h of this MPI. */
#include "preload.h"
#if __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif
"""


@dataclass(frozen=True)
class Parameter:
    """One parameter of C, such as `const int dims[]`."""

    type: str
    name: str
    array: str = ""

    def __str__(self) -> str:
        return f"{self.type} {self.name}{self.array}"

    @property
    def is_comm(self) -> bool:
        """Is it a communicator by value? Those by address are results, or are to be freed."""
        return not self.array and self.type.removeprefix("const ") == "MPI_Comm"

    @property
    def is_text(self) -> bool:
        """Has it a length in Fortran?"""
        return self.type.replace("*", " ").removeprefix("const ").split()[0] == "char"


@dataclass(frozen=True)
class Prototype:
    """One function of C."""

    result: str
    name: str
    parameters: tuple[Parameter, ...]

    @property
    def takes_comm(self) -> bool:
        """Is a communicator among the parameters?"""
        return any(parameter.is_comm for parameter in self.parameters)

    @property
    def declaration(self) -> str:
        """The prototype as text."""
        return f"{self.result} {self.name}({', '.join(map(str, self.parameters))})"


def after_brackets(text: str) -> str:
    """Drop what is in the brackets that a text begins with, whatever brackets are in it."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[index + 1 :]
    return ""


def without_attributes(text: str) -> str:
    """Drop every __attribute__((...))."""
    first, *others = re.split(r"__attribute__\s*", text)
    return " ".join([first, *map(after_brackets, others)])


def parameter(text: str, index: int) -> Parameter:
    """Parse one parameter, and name it if the header does not."""
    match = re.fullmatch(r"(.*?)((?:\s*\[[^]]*\])*)", text.strip())
    front, array = match[1], match[2].replace(" ", "")
    named = re.fullmatch(r"(.*[\s*])(\w+)", front)
    if named and named[1].strip() not in ("const", "struct", "unsigned"):
        return Parameter(named[1].strip(), named[2], array)
    return Parameter(front, f"a{index}", array)


def prototypes(text: str) -> list[Prototype]:
    """Find the functions of MPI that a preprocessed header declares, each once.

    Those with variable arguments, and with parameters that are functions, take no
    communicator and are left out.
    """
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\s+", " ", without_attributes(text))
    pattern = r"(?:^|[;}])\s*(?:extern )?(\w[\w ]*?[ *]+)(MPIX?_\w+) ?\(([^()]*)\) ?(?=;)"
    found = {}
    for result, name, arguments in re.findall(pattern, text):
        if "..." not in arguments and "typedef" not in result:
            parts = [] if arguments.strip() in ("", "void") else arguments.split(",")
            listed = tuple(parameter(part, index) for index, part in enumerate(parts, 1))
            found.setdefault(name, Prototype(result.strip(), name, listed))
    return list(found.values())


def wrapped(functions: list[Prototype]) -> list[Prototype]:
    """Choose the functions that get a wrapper, but for those of INIT."""
    return [f for f in functions if f.takes_comm and f.name not in UNTOUCHED]


def c_call(function: Prototype, *, real: bool) -> str:
    """Write the call of the PMPI function, with the real world or with ours."""
    arguments = [
        f"msp_comm({p.name})" if p.is_comm and not real else p.name for p in function.parameters
    ]
    return f"P{function.name}({', '.join(arguments)})"


def c_wrapper(function: Prototype) -> str:
    """Write the wrapper of one function of C.

    The weak PMPI function need not be there: headers declare more than libraries have.
    """
    ours, real = c_call(function, real=False), c_call(function, real=True)
    lines = [f"return {ours};"]
    if function.name in BOTH:
        lines = [f"{real};", *lines]
    if function.name in ASK_BOTH:
        flag = function.parameters[-1].name
        lines = [f"int code = {ours};", f"return code || *{flag} ? code : {real};"]
    return (
        f"#undef {function.name}\n#undef P{function.name}\n"
        f"{function.declaration.replace(function.name, 'P' + function.name, 1)};\n"
        f"#pragma weak P{function.name}\n"
        f"MSP_PUBLIC {function.declaration} {{\n  {'  '.join(line + chr(10) for line in lines)}}}\n"
    )


def c_init(function: Prototype) -> str:
    """Write the wrapper of a function of C that starts MPI."""
    return (
        f"MSP_PUBLIC {function.declaration} {{\n"
        f"  int code = {c_call(function, real=True)};\n  msp_begin();\n  return code;\n}}\n"
    )


def fortran_names(name: str) -> list[str]:
    """List what a function of C may be called in Fortran; MPI_Send_c is a name of MPI_Send."""
    name, forms = (name[:-2], FORTRAN_LARGE) if name.endswith("_c") else (name, FORTRAN)
    if forms is FORTRAN and name.startswith("MPI_Win_allocate"):
        forms = FORTRAN + FORTRAN_POINTER
    return [form.format(lower=name.lower(), upper=name.upper()) for form in forms]


def fortran_wrapper(name: str, count: int, lines: list[str]) -> str:
    """Write one function of Fortran of so many arguments, which `next` forwards to."""
    types = ", ".join(["void *"] * count)
    arguments = ", ".join(f"void *a{index}" for index in range(1, count + 1))
    return (
        f"MSP_PUBLIC void {name}({arguments});\nMSP_PUBLIC void {name}({arguments}) {{\n"
        f"  static msp_function *known;\n"
        f'  void (*next)({types}) = (void (*)({types}))msp_next(&known, "{name}");\n'
        f"  {'  '.join(line + chr(10) for line in lines)}}}\n"
    )


def fortran_lines(function: Prototype, count: int) -> list[str]:
    """Write the statements of a wrapper with so many arguments a1, a2, ..."""
    comms = {index for index, p in enumerate(function.parameters, 1) if p.is_comm}
    indices = range(1, count + 1)
    ours = ", ".join(f"msp_comm_f(a{i})" if i in comms else f"a{i}" for i in indices)
    real = ", ".join(f"a{i}" for i in indices)
    lines = [f"next({ours});"]
    if function.name in BOTH:
        lines = [f"next({real});", *lines]
    if function.name in ASK_BOTH:
        flag = len(function.parameters)
        lines += [f"if (!*(MPI_Fint *)a{flag}) next({real});"]
    return lines


def fortran_wrappers(function: Prototype) -> Iterator[str]:
    """Write the wrappers of a function under each of its Fortran names.

    Fortran has the parameters of C, by address, then the error, then the length
    of each text by value: all of them words, whatever they mean.
    """
    texts = sum(p.is_text for p in function.parameters)
    count = len(function.parameters) + 1 + texts
    for name in fortran_names(function.name):
        yield fortran_wrapper(name, count, fortran_lines(function, count))


def fortran_inits(function: Prototype) -> Iterator[str]:
    """Write the wrappers of a function that starts MPI under each of its Fortran names."""
    count = INIT[function.name] + 1
    call = ", ".join(f"a{index}" for index in range(1, count + 1))
    for name in fortran_names(function.name):
        yield fortran_wrapper(name, count, [f"next({call});", "msp_begin();"])


def generate(header: str) -> str:
    """Write the C file for a preprocessed header."""
    functions = prototypes(header)
    parts = [HEAD]
    for function in functions:
        if function.name in INIT:
            parts += [c_init(function), *fortran_inits(function)]
    for function in wrapped(functions):
        parts += [c_wrapper(function), *fortran_wrappers(function)]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(generate(Path(sys.argv[1]).read_text()))
