"""What mpiserve._lib.core uses of mpiserve._lib.arrays."""

from libc.stdint cimport int64_t
from mpiserve._lib.libmpiserve cimport mpiserve_tensor

cdef enum:
    NO_ROWS = -1  # in place of rows: the array has no such dimension

cdef object as_input(mpiserve_tensor *tensor, object value, str service, list names, int i)
cdef int as_output(mpiserve_tensor *tensor, object value, str service) except -1
cdef object beginning(object array, const int64_t *dims)
cdef int check_apart(mpiserve_tensor *tensors, int n, str service) except -1
cdef object new_array(object dtype, tuple shape, Py_ssize_t rows)
cdef object view_rows(const void *data, object dtype, tuple shape, Py_ssize_t rows, bint writable,
                      object owner)
cdef const void *result_at(object array, object dtype, tuple shape, Py_ssize_t rows) except NULL
