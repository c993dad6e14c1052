"""The library of mpiserve._lib.core: its version, its MPI, and memory that it frees."""


cdef extern from *:
    """
    #include <malloc.h>
    static void keep_freed(void) {
    #ifdef __GLIBC__
      mallopt(M_MMAP_THRESHOLD, 32 << 20); /* the most that glibc takes */
      mallopt(M_TRIM_THRESHOLD, 1 << 30);
      mallopt(M_TOP_PAD, 64 << 20);
    #endif
    }
    """
    void keep_freed()


def keep_freed_memory():
    """Make malloc keep freed memory, which would else be mapped anew for each result."""
    keep_freed()


def version():
    """Return the version of libmpiserve."""
    return mpiserve_version().decode()


def mpi_build():
    """Return the MPI that libmpiserve was built for, as "Open MPI 5.0.11"."""
    return mpiserve_mpi_build().decode()


def mpi_runtime():
    """Return the MPI that is loaded, in the same form."""
    return mpiserve_mpi_runtime().decode()
