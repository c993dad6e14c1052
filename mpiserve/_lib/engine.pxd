"""For the module core, which gives an engine to a service."""

from mpiserve._lib.libmpiserve cimport mpiserve_engine


cdef class Engine:
    cdef mpiserve_engine engine
    cdef tuple _inputs, _outputs
    cdef object _owner
