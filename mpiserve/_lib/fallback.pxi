"""The fallback of a service of mpiserve._lib.core: a function that the library calls back."""

_last = threading.local()  # error: of the last fallback that failed in this thread


cdef int run_fallback(void *data, int64_t rows, const void *const *inputs, void *const *outputs,
                      int code, const char *why) noexcept with gil:
    """Answer rows; called by the library, which the thread has entered."""
    cdef bytes text
    try:
        (<Service>data)._answer(rows, inputs, outputs, text_of(why))
        return MPISERVE_OK
    except BaseException as error:
        _last.error = error
        text = line_of(failure.describe(error))
        return mpiserve_error(code, <const char *>text)


cdef object take_failure():
    """Return the exception of the fallback that has just failed in this thread, or None."""
    error = getattr(_last, "error", None)
    _last.error = None
    return error


cdef list arrays_at(const void *const *data, list specs, int64_t rows, bint writable):
    return [
        view_rows(data[i], dtype, shape, rows, writable, None)
        for i, (dtype, shape) in enumerate(specs)
    ]
