# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""Engines: what runs a model in C. No MPI is started here, so any process may try them."""

from libc.stdint cimport int64_t
from libc.string cimport memset
from mpiserve._lib.arrays cimport result_at
from mpiserve._lib.libmpiserve cimport *

cdef extern from "engine/chunks.h" nogil:
    int msi_engine_run_chunks(const mpiserve_engine *, int64_t, const void **, void **, int, int,
                              const size_t *, const size_t *, char *, size_t)

from mpiserve import errors
from mpiserve._lib.arrays import DTYPE_CODES, DTYPES, row_shape


cdef int fill(mpiserve_spec *specs, tensors) except -1:
    for i, tensor in enumerate(tensors[:MPISERVE_MAX_TENSORS]):
        specs[i].dtype = DTYPE_CODES[tensor.dtype]
        specs[i].ndim = len(tensor.shape)
        name = tensor.name.encode()[: MPISERVE_NAME_SIZE - 1]
        for k in range(len(name)):
            specs[i].name[k] = name[k]
        for d, length in enumerate(tensor.shape[:MPISERVE_MAX_DIMS]):
            specs[i].shape[d] = length
    return 0


cdef tuple arrays_of(tensors):
    return tuple([(DTYPES[DTYPE_CODES[t.dtype]], row_shape(t.shape)) for t in tensors])


cdef int find(const void **data, tuple specs, arrays, int64_t rows) except -1:
    cdef int i = 0
    for dtype, shape in specs:
        data[i] = result_at(arrays[i], dtype, shape, rows)
        i += 1
    return 0


ctypedef int (*run_function)(void *, int64_t, const void *const *, void *const *, char *,
                             size_t) noexcept nogil


cdef class Engine:
    """An engine for the tensors of a signature; wraps mpiserve_engine.

    Args:
        library: The path of the library that makes it, or None for the one that copies inputs.
        model: What the library makes it of.
        inputs: The tensors of the signature.
        outputs: The same.
        max_batch_rows: The most rows that it will get.
        chunk_rows: The most rows that it gets at a time; 0: all.

    Raises:
        ModelError: If the library cannot make one, with the reason.
    """

    def __init__(self, library, str model, inputs, outputs, int64_t max_batch_rows,
                 int64_t chunk_rows=0):
        cdef mpiserve_description description
        cdef bytes path = (library or "").encode(), data = model.encode()
        cdef int code
        cdef const char *where = NULL
        cdef const char *what = data
        if library is not None:
            where = path
        memset(&description, 0, sizeof(description))
        description.n_inputs, description.n_outputs = len(inputs), len(outputs)
        description.max_batch_rows = max_batch_rows
        fill(description.inputs, inputs)
        fill(description.outputs, outputs)
        with nogil:
            code = mpiserve_engine_load(where, what, &description, &self.engine)
        if code:
            text = (<bytes>mpiserve_last_error()).decode("utf-8", "replace")
            raise errors.from_code(code, text)
        self.engine.chunk_rows = chunk_rows
        self._inputs, self._outputs = arrays_of(inputs), arrays_of(outputs)

    @property
    def address(self):
        """Where the engine is in memory, as long as this object lives."""
        return <size_t>&self.engine

    def __dealloc__(self):
        mpiserve_engine_close(&self.engine)

    def run(self, inputs, outputs):
        """Run it on C-contiguous arrays [rows, ...], and write to those of the outputs.

        Raises:
            ModelError: If it fails, with its text.
        """
        cdef const void *ins[16]
        cdef const void *outs[16]
        cdef size_t in_bytes[16]
        cdef size_t out_bytes[16]
        cdef char text[512]
        cdef int64_t rows = len(inputs[0])
        cdef int n_in = len(self._inputs), n_out = len(self._outputs), failed
        find(ins, self._inputs, inputs, rows)
        find(outs, self._outputs, outputs, rows)
        for i in range(n_in):
            in_bytes[i] = inputs[i].nbytes // rows
        for i in range(n_out):
            out_bytes[i] = outputs[i].nbytes // rows
        text[0] = text[511] = 0
        with nogil:
            failed = msi_engine_run_chunks(&self.engine, rows, ins, <void **>outs, n_in, n_out,
                                           in_bytes, out_bytes, text, 511)
        if failed:
            raise errors.from_code(errors.Code.EMODEL, (<bytes>text).decode("utf-8", "replace"))

    @property
    def chunk_rows(self):
        return self.engine.chunk_rows

    @chunk_rows.setter
    def chunk_rows(self, int64_t rows):
        self.engine.chunk_rows = rows


cdef class Forward(Engine):
    """An engine of a function in this process, which gets tensors in the rank's segment alone.

    Args:
        function: Its address; as `run` of mpiserve_engine.
        state: The address of its argument.
        owner: The object to which that belongs.
    """

    def __init__(self, size_t function, size_t state, owner):
        self.engine.run = <run_function>function
        self.engine.state = <void *>state
        self.engine.in_segment = 1
        self._owner = owner
