# cython: language_level=3, boundscheck=False
"""What the benchmark measures in C: floors, rivals and a C client. See csrc/bench/bench.h."""

import numpy as np

from mpiserve.errors import Code, Error

from libc.stdint cimport int64_t

cdef extern from "bench.h" nogil:
    ctypedef int MPI_Fint
    ctypedef struct MPI_Comm:  # by value, and never looked into
        pass
    MPI_Comm MPI_Comm_f2c(MPI_Fint)
    ctypedef struct bench_client:
        pass
    const char *bench_floor_rma(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_floor_put_get(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_floor_flag(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_floor_wake(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_floor_wake_both(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_handover_spinning(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_handover_asleep(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_handover_both_asleep(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_send_recv(MPI_Comm, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_client_open(MPI_Comm, bench_client **)
    const char *bench_client_sample(bench_client *, int, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_client_close(bench_client *)
    void bench_client_handles(const bench_client *, void **, void **)
    const char *bench_client_row(bench_client *, int64_t, int64_t, int64_t, int64_t *)
    const char *bench_engine_sample(const char *, const char *, int64_t, int64_t, int64_t,
                                    int64_t *)

ctypedef const char *(*sampler)(MPI_Comm, int64_t, int64_t, int64_t, int64_t *) noexcept nogil


cdef int check(const char *failed) except -1:
    if failed != NULL:
        raise Error(Code.ESTATE, (<bytes>failed).decode("utf-8", "replace"))
    return 0


cdef sample(sampler measure, comm, int64_t size, int64_t warm, int64_t rounds):
    cdef MPI_Fint world = comm.py2f()
    cdef const char *failed
    made = np.zeros(rounds, np.int64)
    cdef int64_t[::1] samples = made
    with nogil:
        failed = measure(MPI_Comm_f2c(world), size, warm, rounds, &samples[0])
    check(failed)
    return made


def floor_rma(comm, size, warm, rounds):
    """Measure Put and flush of payload and flag, there and back. Collective over 2 ranks."""
    return sample(bench_floor_rma, comm, size, warm, rounds)


def floor_put_get(comm, size, warm, rounds):
    """Measure Put and flush there, Get and flush back. Collective over 2 ranks."""
    return sample(bench_floor_put_get, comm, size, warm, rounds)


def floor_flag(comm, size, warm, rounds):
    """Measure two atomic words of shared memory, there and back. Collective over 2 ranks."""
    return sample(bench_floor_flag, comm, size, warm, rounds)


def floor_wake(comm, size, warm, rounds):
    """Measure a futex that wakes a sleeper, which answers. Collective over 2 ranks."""
    return sample(bench_floor_wake, comm, size, warm, rounds)


def floor_wake_both(comm, size, warm, rounds):
    """Measure the same, where the first rank sleeps until the answer. Collective over 2 ranks."""
    return sample(bench_floor_wake_both, comm, size, warm, rounds)


def handover_spinning(comm, size, warm, rounds):
    """Measure a call of a head to a child that looks for calls. Collective over 2 ranks."""
    return sample(bench_handover_spinning, comm, size, warm, rounds)


def handover_asleep(comm, size, warm, rounds):
    """Measure a call of a head to a child that sleeps. Collective over 2 ranks."""
    return sample(bench_handover_asleep, comm, size, warm, rounds)


def handover_both_asleep(comm, size, warm, rounds):
    """Measure the same, where the head sleeps until the end. Collective over 2 ranks."""
    return sample(bench_handover_both_asleep, comm, size, warm, rounds)


def send_recv(comm, size, warm, rounds):
    """Measure MPI_Send and MPI_Recv, there and back. Collective over 2 ranks."""
    return sample(bench_send_recv, comm, size, warm, rounds)


def engine(str library, str model, int64_t width, int64_t warm, int64_t rounds):
    """Return the nanoseconds of an engine in C for a row of float32 [width], in this process."""
    cdef bytes where = library.encode(), what = model.encode()
    cdef const char *path = where
    cdef const char *data = what
    cdef const char *failed
    made = np.zeros(rounds, np.int64)
    cdef int64_t[::1] samples = made
    with nogil:
        failed = bench_engine_sample(path, data, width, warm, rounds, &samples[0])
    check(failed)
    return made


cdef class Client:
    """A C program's session as a simulation rank, with the service "bench".

    Open and close are collective over the world, in which another rank serves.
    """

    cdef bench_client *_client

    def __init__(self, comm):
        cdef MPI_Fint world = comm.py2f()
        cdef const char *failed
        with nogil:
            failed = bench_client_open(MPI_Comm_f2c(world), &self._client)
        check(failed)

    def sample(self, bint in_place, int64_t size, int64_t warm, int64_t rounds):
        """Return the nanoseconds of each of so many requests of size bytes each way."""
        cdef const char *failed
        made = np.zeros(rounds, np.int64)
        cdef int64_t[::1] samples = made
        with nogil:
            failed = bench_client_sample(self._client, in_place, size, warm, rounds, &samples[0])
        check(failed)
        return made

    def row(self, int64_t width, int64_t warm, int64_t rounds):
        """Return the nanoseconds of each of so many requests of one row of float32 [width]."""
        cdef const char *failed
        made = np.zeros(rounds, np.int64)
        cdef int64_t[::1] samples = made
        with nogil:
            failed = bench_client_row(self._client, width, warm, rounds, &samples[0])
        check(failed)
        return made

    def handles(self):
        """Return the addresses of the session and of the service."""
        cdef void *session
        cdef void *service
        bench_client_handles(self._client, &session, &service)
        return <size_t>session, <size_t>service

    def close(self):
        """Leave the session."""
        cdef const char *failed
        with nogil:
            failed = bench_client_close(self._client)
        self._client = NULL
        check(failed)
