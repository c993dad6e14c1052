"""The generator of libmpiserve_world.so, csrc/preload/wrappers.py, on made-up headers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "csrc/preload/wrappers.py"
spec = importlib.util.spec_from_file_location("wrappers", SCRIPT)
wrappers = importlib.util.module_from_spec(spec)
sys.modules["wrappers"] = wrappers  # which its dataclasses look up
spec.loader.exec_module(wrappers)

# A prototype as headers have it, and as it is read: None where it is no function of MPI's own.
PROTOTYPES = {
    "int MPI_Comm_rank(MPI_Comm comm, int *rank);": "int MPI_Comm_rank(MPI_Comm comm, int * rank)",
    "extern int MPI_Barrier(MPI_Comm) ;": "int MPI_Barrier(MPI_Comm a1)",
    "int MPI_Finalize(void);": "int MPI_Finalize()",
    '__attribute__((visibility("default"))) int MPI_Test(\n  int n,\n  const int x[][3]);': (
        "int MPI_Test(int n, const int x[][3])"
    ),
    'int MPI_Old(const MPI_Comm c) __attribute__((deprecated("use (another)")));': (
        "int MPI_Old(const MPI_Comm c)"
    ),
    "MPI_Comm MPI_Comm_f2c(MPI_Fint comm);": "MPI_Comm MPI_Comm_f2c(MPI_Fint comm)",
    "const char *MPIX_Name(MPI_Comm c);": "const char * MPIX_Name(MPI_Comm c)",
    "int MPI_Words(char *argv[], char **all[]);": "int MPI_Words(char * argv[], char ** all[])",
    "int MPI_Pcontrol(const int level, ...);": None,
    "int PMPI_Barrier(MPI_Comm comm);": None,
    "typedef int MPI_Copy_function(MPI_Comm old, int key);": None,
    "typedef int (MPI_Other)(MPI_Comm old);": None,
    "static inline int other(MPI_Comm c) { return MPI_Barrier(c); }": None,
}


@pytest.mark.parametrize("text", PROTOTYPES)
def test_prototypes_are_read(text):
    found = wrappers.prototypes(f"struct s {{ int i; }};\n{text}\nint other(void);\n")
    assert [f.declaration for f in found] == ([PROTOTYPES[text]] if PROTOTYPES[text] else [])


def only(text):
    (function,) = wrappers.prototypes(text)
    return function


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        ("int MPI_A(MPI_Comm comm);", True),
        ("int MPI_A(int i, const MPI_Comm comm);", True),
        ("int MPI_A(MPI_Comm *comm);", False),
        ("int MPI_A(MPI_Comm comms[]);", False),
        ("int MPI_A(MPI_Comm_errhandler_function *f);", False),
    ],
)
def test_communicators_by_value_are_replaced(text, takes):
    assert only(text).takes_comm is takes


@pytest.mark.parametrize("name", ["MPI_Abort", "MPI_Comm_c2f", "MPI_Comm_toint"])
def test_what_means_the_real_world_is_left_alone(name):
    assert wrappers.wrapped(wrappers.prototypes(f"int {name}(MPI_Comm comm);")) == []


def test_each_communicator_of_a_call_is_replaced():
    text = wrappers.c_wrapper(only("int MPI_A(MPI_Comm c, int i, MPI_Comm d, MPI_Comm *e);"))
    assert "return PMPI_A(msp_comm(c), i, msp_comm(d), e);" in text


def test_fortran_has_the_error_and_the_lengths_of_texts_behind_the_arguments_of_c():
    function = only("int MPI_A(const char *s, MPI_Comm c, char *argv[], int n);")
    text = next(wrappers.fortran_wrappers(function))
    assert "next(a1, msp_comm_f(a2), a3, a4, a5, a6, a7);" in text
    assert (
        "void mpi_a_(void *a1, void *a2, void *a3, void *a4, void *a5, void *a6, void *a7) {"
        in (text)
    )


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        (
            "MPI_Send",
            {"mpi_send_", "MPI_SEND", "mpi_send_f08_", "mpi_send_f08ts_"},
            {"mpi_send_c_"},
        ),
        ("MPI_Send_c", {"mpi_send_f08ts_large_"}, {"mpi_send_", "mpi_send_c_"}),
        ("MPI_Win_allocate", {"mpi_win_allocate_", "mpi_win_allocate_cptr_"}, set()),
    ],
)
def test_names_in_fortran(name, has, has_not):
    names = set(wrappers.fortran_names(name))
    assert has <= names
    assert not has_not & names


def test_error_handlers_are_set_for_both_worlds_and_attributes_looked_up_in_both():
    handler = only("int MPI_Comm_set_errhandler(MPI_Comm c, MPI_Errhandler e);")
    text = wrappers.c_wrapper(handler)
    assert (
        "PMPI_Comm_set_errhandler(c, e);\n  return PMPI_Comm_set_errhandler(msp_comm(c), e);"
        in (text)
    )
    attribute = only("int MPI_Comm_get_attr(MPI_Comm c, int k, void *v, int *flag);")
    assert "code || *flag ? code : PMPI_Comm_get_attr(c, k, v, flag)" in wrappers.c_wrapper(
        attribute
    )
    assert "if (!*(MPI_Fint *)a4) next(a1, a2, a3, a4, a5);" in "".join(
        wrappers.fortran_lines(attribute, 5)
    )
