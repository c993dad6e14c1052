# cython: language_level=3, boundscheck=False, wraparound=False
"""numpy arrays as tensors of the library, and memory of the library as arrays.

Everything here is on the path of each request: it goes by numpy's C interface.
"""

from math import prod

import ml_dtypes
import numpy as np

from mpiserve import errors
from mpiserve._lib import foreign_arrays

cimport numpy as cnp
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from mpiserve._lib.libmpiserve cimport (
    MPISERVE_BFLOAT16,
    MPISERVE_COMPLEX128,
    MPISERVE_MAX_DIMS,
    mpiserve_dtype_name,
    mpiserve_tensor,
)

cdef extern from "numpy/arrayobject.h":
    object PyArray_NewFromDescr(
        cnp.PyTypeObject *, cnp.dtype, int, cnp.npy_intp *, cnp.npy_intp *, void *, int, object
    )

cnp.import_array()

DTYPES = tuple(
    np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name in (mpiserve_dtype_name(i).decode() for i in range(MPISERVE_COMPLEX128 + 1))
)
DTYPE_CODES = {dtype.name: code for code, dtype in enumerate(DTYPES)}

cdef enum:
    MAX_TYPES = 32  # numpy's own; bfloat16 is registered by ml_dtypes, beyond them

cdef int[MAX_TYPES] _codes
cdef int _bfloat16 = DTYPES[DTYPE_CODES["bfloat16"]].num


cdef void fill_codes():
    for i in range(MAX_TYPES):
        _codes[i] = -1
    # Some C types share a size: all that mean int64, for one, are its code.
    for letter in "?bBhHiIlLqQefdFD":
        dtype = np.dtype(letter)
        _codes[dtype.num] = DTYPE_CODES.get(dtype.name, -1)


fill_codes()


cdef int code_of(cnp.ndarray array) noexcept:
    cdef int number = cnp.PyArray_TYPE(array)
    if not cnp.PyArray_ISNOTSWAPPED(array):
        return -1
    if number == _bfloat16:
        return MPISERVE_BFLOAT16
    return _codes[number] if 0 <= number < MAX_TYPES else -1


cdef str where(str service, list names, int i):
    """Return the beginning of error texts: input i of those names, or an output."""
    if names is None:
        return f"service '{service}', out"
    return f"service '{service}', input '{names[i] if i < len(names) else i}'"


cdef int describe(mpiserve_tensor *tensor, cnp.ndarray array, str service, list names,
                  int i) except -1:
    cdef int d, code = code_of(array), ndim = cnp.PyArray_NDIM(array)
    if code < 0:
        raise errors.from_code(
            errors.Code.EDTYPE,
            f"{where(service, names, i)}: dtype {array.dtype} is not supported: "
            + foreign_arrays.advice(array.dtype),
        )
    if ndim > MPISERVE_MAX_DIMS:
        raise errors.from_code(
            errors.Code.ESHAPE, f"{where(service, names, i)}: an array of {ndim} dimensions"
        )
    tensor.name = NULL
    tensor.dtype = code
    tensor.ndim = ndim
    for d in range(ndim):
        tensor.shape[d] = cnp.PyArray_DIM(array, d)
    tensor.data = cnp.PyArray_DATA(array)
    return 0


cdef object as_input(mpiserve_tensor *tensor, object value, str service, list names, int i):
    """Describe input i of those names; returns the array that must stay alive."""
    array = value if type(value) is np.ndarray else (
        foreign_arrays.as_input(value, where(service, names, i))
    )
    if not cnp.PyArray_IS_C_CONTIGUOUS(array):
        array = np.ascontiguousarray(array)
    describe(tensor, array, service, names, i)
    return array


cdef int as_output(mpiserve_tensor *tensor, object value, str service) except -1:
    """Describe memory that the caller gave for results: it is used as it is, or refused."""
    array = value if type(value) is np.ndarray else foreign_arrays.as_output(value, where(service, None, 0))
    if not cnp.PyArray_IS_C_CONTIGUOUS(array) or not cnp.PyArray_ISWRITEABLE(array):
        raise errors.from_code(
            errors.Code.EARG,
            f"service '{service}': out must be a writable C-contiguous array, one per output",
        )
    return describe(tensor, array, service, None, 0)


cdef int check_apart(mpiserve_tensor *tensors, int n, str service) except -1:
    """Refuse outputs that share memory: one would hide the other."""
    cdef int i, j
    for i in range(n):
        for j in range(i):
            if begin(&tensors[i]) < end(&tensors[j]) and begin(&tensors[j]) < end(&tensors[i]):
                raise errors.from_code(
                    errors.Code.EARG,
                    f"service '{service}': arrays {j} and {i} of out share memory: "
                    "each output needs its own",
                )
    return 0


cdef size_t begin(mpiserve_tensor *tensor) noexcept:
    return <size_t>tensor.data


cdef size_t end(mpiserve_tensor *tensor) noexcept:
    cdef size_t size = DTYPES[tensor.dtype].itemsize
    cdef int d
    for d in range(tensor.ndim):
        size *= tensor.shape[d]
    return begin(tensor) + size


cdef object beginning(object array, const int64_t *dims):
    """Return an array of as many dimensions with the first values of a dense one."""
    shape = tuple([dims[d] for d in range(array.ndim)])
    if array.shape == shape:
        return array
    return array.reshape(-1)[: prod(shape)].reshape(shape).copy()


def row_shape(shape):
    """Return the dimensions of a row; a tensor without a dimension of rows is one row."""
    return tuple(shape[1:]) if tuple(shape[:1]) == (-1,) else tuple(shape)


cdef object make(object dtype, tuple shape, Py_ssize_t rows, void *data, int flags):
    cdef cnp.npy_intp dims[9]
    cdef int d, first = rows >= 0, ndim = first + len(shape)
    dims[0] = rows
    for d in range(first, ndim):
        dims[d] = shape[d - first]
    Py_INCREF(dtype)  # which the new array takes over
    return PyArray_NewFromDescr(
        <cnp.PyTypeObject *>cnp.ndarray, <cnp.dtype>dtype, ndim, dims, NULL, data, flags, None
    )


cdef object new_array(object dtype, tuple shape, Py_ssize_t rows):
    """Allocate an array [rows, *shape], or [*shape] if rows is NO_ROWS; not initialised."""
    return make(dtype, shape, rows, NULL, 0)


cdef object view_rows(const void *data, object dtype, tuple shape, Py_ssize_t rows, bint writable,
                      object owner):
    """View memory as such an array, which keeps owner alive."""
    cdef int flags = cnp.NPY_ARRAY_C_CONTIGUOUS | cnp.NPY_ARRAY_ALIGNED
    if writable:
        flags |= cnp.NPY_ARRAY_WRITEABLE
    array = make(dtype, shape, rows, <void *>data, flags)
    cnp.set_array_base(array, owner)
    return array


cdef const void *result_at(object array, object dtype, tuple shape, Py_ssize_t rows) except NULL:
    """Find a result's memory. What is not dense, or not of that many bytes, is refused."""
    cdef Py_ssize_t size = rows * dtype.itemsize
    for length in shape:
        size *= length
    if not cnp.PyArray_Check(array) or not cnp.PyArray_IS_C_CONTIGUOUS(array) or (
        cnp.PyArray_NBYTES(array) != size
    ):
        raise ValueError(f"a result must be a C-contiguous array of {size} bytes")
    return cnp.PyArray_DATA(array)
