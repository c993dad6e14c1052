"""The simulation side of mpiserve._lib.core: in-place memory."""


@cython.no_gc_clear
cdef class Buffer:
    """Memory of one mpiserve_buffer; given back when no array views it any more."""

    cdef Session _session
    cdef Service _service
    cdef mpiserve_buffer _buffer
    cdef bint _inputs_free, _outputs_free
    cdef object __weakref__

    cdef object _views(self, bint outputs):
        cdef void **data = &self._buffer.outputs[0] if outputs else &self._buffer.inputs[0]
        cdef list specs = self._service._output_specs if outputs else self._service._input_specs
        cdef Py_ssize_t rows = NO_ROWS if self._service._whole else self._buffer.rows
        views = [
            view_rows(data[i], dtype, shape, rows, True, self)
            for i, (dtype, shape) in enumerate(specs)
        ]
        return views[0] if len(views) == 1 else tuple(views)

    def __dealloc__(self):
        cdef Leftover leftover
        # The window itself is gone after close; its memory is kept for those who look at it.
        if self._buffer.id and self._session._holds():
            leftover = Leftover.__new__(Leftover)
            leftover.service = self._service._service
            leftover.buffer = self._buffer
            self._session._drop(leftover)
