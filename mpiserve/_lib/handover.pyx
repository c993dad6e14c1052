# cython: language_level=3, boundscheck=False, wraparound=False
"""Calls from an inference rank to the child process that runs its model, by csrc/base/handover.

It is no part of libmpiserve, so the child loads no MPI.
"""

from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from posix.mman cimport PROT_READ, PROT_WRITE, mprotect
from posix.unistd cimport _SC_PAGESIZE, sysconf
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "base/handover.h" nogil:
    enum:
        MSI_HANDOVER_PLACES
        MSI_HANDOVER_LATE
        MSI_HANDOVER_ROWS
        MSI_HANDOVER_ENDED
        MSI_HANDOVER_DEAD
    ctypedef struct msi_place:
        uint64_t memory, offset
    ctypedef struct msi_handover:
        uint32_t operation, places
        int64_t rows
        uint64_t size
        msi_place *place
        int64_t rows_done
        int code
        uint64_t answer_size
        uint32_t looks
    ctypedef struct msi_handover_side:
        msi_handover *shared
    void msi_handover_open(msi_handover_side *, msi_handover *)
    void msi_handover_post(msi_handover_side *)
    int msi_handover_wait(msi_handover_side *, int64_t, int)
    int msi_handover_taken(const msi_handover_side *)
    int msi_handover_dead(int)
    void msi_handover_rows(msi_handover_side *, int64_t)
    void msi_handover_end(msi_handover_side *, int, uint64_t)
    int64_t msi_deadline(double)
    int64_t msi_now()

cdef extern from "base/forward.h" nogil:
    ctypedef struct msi_forward:
        msi_handover_side *parent
        uint32_t operation
        int inputs, outputs
        const void *begin
        size_t bytes
        uint64_t memory
        msi_place last
        int pidfd, is_open, found
        int64_t posted_ns
    int msi_forward_run(void *, int64_t, const void *const *, void *const *, char *, size_t)

cdef extern from "mpiserve.h" nogil:
    enum:
        MAX_TENSORS "MPISERVE_MAX_TENSORS"
    ctypedef struct mpiserve_engine:
        pass

cdef extern from "engine/child.h" nogil:
    enum:
        MSI_CHILD_MEMORIES
    ctypedef struct msi_child_tensors:
        int n_inputs, n_outputs
        size_t *row_bytes
    ctypedef struct msi_child_memory:
        const char *inputs
        char *outputs
        size_t bytes
    ctypedef struct msi_child:
        msi_handover_side *side
        const mpiserve_engine *engine
        msi_child_tensors tensors
        msi_child_memory *memories
        uint64_t n_memories
        uint32_t operation
    int msi_child_next(msi_child *, int64_t)

cdef extern from *:
    """
    #include <signal.h>
    #ifdef __linux__
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/prctl.h>
    #ifndef MADV_COLLAPSE /* glibc before 2.37 */
    #define MADV_COLLAPSE 25
    #endif
    static int collapse_(uintptr_t at, size_t n) { return madvise((void *)at, n, MADV_COLLAPSE); }
    static int die_with_parent_(int number) { return prctl(PR_SET_PDEATHSIG, number, 0, 0, 0); }
    static int adopt_orphans_(void) { return prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }
    #else
    static int die_with_parent_(int number) { return 0 * number; }
    static int adopt_orphans_(void) { return 0; }
    static int collapse_(uintptr_t at, size_t n) { return 0 * at * n; }
    #endif
    """
    int die_with_parent_(int number)
    int adopt_orphans_()
    int collapse_(size_t, size_t) nogil

SIZE = sizeof(msi_handover)  # bytes of the memory of a Handover
PLACES = MSI_HANDOVER_PLACES  # the most tensors of a call
ROWS, ENDED, DEAD, LATE = MSI_HANDOVER_ROWS, MSI_HANDOVER_ENDED, MSI_HANDOVER_DEAD, MSI_HANDOVER_LATE

# A wait is cut into pieces, between which Python may handle signals.
cdef double SLICE = 0.1


def die_with_parent(int number):
    """Have the kernel send this process a signal when the thread ends that made it."""
    if die_with_parent_(number):
        PyErr_SetFromErrno(OSError)


def write_only(unsigned char[::1] memory, ranges):
    """Let this process write to parts of a mapping alone; another write is a SIGSEGV.

    Args:
        memory: The whole mapping.
        ranges: Offset and bytes of each part, which becomes larger where it ends within a page.
    """
    cdef size_t page = sysconf(_SC_PAGESIZE), size = memory.shape[0], begin, end
    if mprotect(&memory[0], size, PROT_READ):
        PyErr_SetFromErrno(OSError)
    for offset, length in ranges:
        begin, end = offset // page * page, min(offset + length, size)
        if mprotect(&memory[begin], end - begin, PROT_READ | PROT_WRITE):
            PyErr_SetFromErrno(OSError)


def adopt_orphans():
    """Become the parent of all descendants whose parents end, so that they can be ended too."""
    if adopt_orphans_():
        PyErr_SetFromErrno(OSError)


def collapse(size_t address, size_t size):
    """Make huge pages of memory of this process; return whether the kernel has.

    Args:
        address: Where it begins, a multiple of the size of a huge page.
        size: Its bytes, such a multiple too.
    """
    return not collapse_(address, size)


def dead(int pidfd):
    """Return whether the process of a pidfd has ended. Never waits."""
    return bool(msi_handover_dead(pidfd))


cdef int fill_tensors(msi_child_tensors *tensors, tuple inputs, tuple outputs) except -1:
    cdef int i = 0
    if max(len(inputs), len(outputs)) > MAX_TENSORS:
        raise ValueError(f"at most {MAX_TENSORS} tensors")
    tensors.n_inputs, tensors.n_outputs = len(inputs), len(outputs)
    for size in (*inputs, *outputs):
        tensors.row_bytes[i] = size
        i += 1
    return 0


cdef class Handover:
    """One side of the calls. One thread at a time uses it.

    Args:
        memory: A writable buffer of SIZE bytes, all 0 at first, which both sides map.
    """

    cdef msi_handover_side _side
    cdef msi_forward _forward
    cdef msi_child _child
    cdef unsigned char[::1] _memory
    cdef object _kept

    def __init__(self, memory):
        self._memory = memory
        if self._memory.shape[0] < <Py_ssize_t>sizeof(msi_handover):
            raise ValueError(f"a hand-over needs {sizeof(msi_handover)} bytes")
        msi_handover_open(&self._side, <msi_handover *>&self._memory[0])
        self._forward.parent = self._child.side = &self._side

    # ---- the parent

    def post(self, uint32_t operation, int64_t rows=0, tuple places=(), uint64_t size=0):
        """Post a call, while none is open.

        Args:
            operation: A number that the child knows.
            rows: The rows of a batch.
            places: For each tensor the number of its memory and the bytes before it, in one tuple.
            size: The bytes of the message that the child finds.
        """
        cdef msi_handover *shared = self._side.shared
        cdef Py_ssize_t i, n = len(places) // 2
        if n > MSI_HANDOVER_PLACES:
            raise ValueError(f"at most {MSI_HANDOVER_PLACES} tensors")
        shared.operation = operation
        shared.rows = rows
        shared.size = size
        shared.places = <uint32_t>n
        for i in range(n):
            shared.place[i].memory = places[2 * i]
            shared.place[i].offset = places[2 * i + 1]
        msi_handover_post(&self._side)

    def wait(self, double seconds, int pidfd):
        """Wait for the end of the call, at most so many seconds; below 0 without end.

        Returns:
            ENDED, ROWS if more rows are done, DEAD if the child is, or LATE.
        """
        cdef int64_t end = msi_deadline(seconds), piece
        cdef int found = self._forward.found
        self._forward.found = MSI_HANDOVER_LATE
        while not found:
            piece = min(end, msi_deadline(SLICE))
            with nogil:
                found = msi_handover_wait(&self._side, piece, pidfd)
            PyErr_CheckSignals()
            if not found and msi_now() >= end:
                break
        return found

    def forward(self, uint32_t operation, int inputs, int outputs, tuple memory, tuple last,
                int pidfd):
        """Prepare to post and wait for batches in C, as csrc/base/forward does.

        Args:
            operation: As of `post`.
            inputs: How many there are.
            outputs: The same.
            memory: The number, the address and the bytes of memory that the child maps.
            last: The place that goes with each batch behind those of its tensors.
            pidfd: Of the child.

        Returns:
            The addresses of a function and of its argument, for an engine.
        """
        number, address, size = memory
        self._forward.operation, self._forward.pidfd = operation, pidfd
        self._forward.inputs, self._forward.outputs = inputs, outputs
        self._forward.begin = <const void *><size_t>address
        self._forward.memory, self._forward.bytes = number, size
        self._forward.last.memory, self._forward.last.offset = last
        return <size_t>&msi_forward_run, <size_t>&self._forward

    def resume(self):
        """Go on with the call that `forward` has left open, if there is one: `wait` is next.

        Returns:
            When it was posted, in seconds of time.monotonic(); 0 if there is none.
        """
        if not self._forward.is_open:
            return 0.0
        self._forward.is_open = 0
        return self._forward.posted_ns * 1e-9

    @property
    def looks(self):
        """How often the child's caller of `next` has come, as the child says."""
        return self._side.shared.looks

    @property
    def taken(self):
        """Whether the child had begun the call that was posted last."""
        return bool(msi_handover_taken(&self._side))

    @property
    def rows_done(self):
        """The first rows of all outputs that are final, as the child says."""
        return self._side.shared.rows_done

    @property
    def answer(self):
        """The code and the bytes of the message of the call that has ended, as the child says."""
        return self._side.shared.code, self._side.shared.answer_size

    # ---- the child

    def serve(self, uint32_t operation, size_t engine, tuple tensors, list memories, kept):
        """Have an engine answer the batches that come.

        Args:
            operation: The number of a batch.
            engine: The address of an mpiserve_engine; 0: all calls are the caller's again.
            tensors: The bytes of a row of each input and of each output: two tuples.
            memories: Of each the address to read it at, that to write it at, and its bytes.
            kept: What must live as long as this is so.
        """
        fill_tensors(&self._child.tensors, tensors[0], tensors[1])
        self._child.n_memories = min(len(memories), MSI_CHILD_MEMORIES)
        for i in range(self._child.n_memories):
            self._child.memories[i].inputs = <const char *><size_t>memories[i][0]
            self._child.memories[i].outputs = <char *><size_t>memories[i][1]
            self._child.memories[i].bytes = memories[i][2]
        self._child.operation = operation
        self._child.engine = <const mpiserve_engine *>engine
        self._kept = kept

    def next(self, double seconds):
        """Wait for a call that no engine answers, at most so many seconds.

        Returns:
            Whether there is one.
        """
        cdef int64_t end = msi_deadline(seconds)
        cdef int found
        self._side.shared.looks += 1
        with nogil:
            found = msi_child_next(&self._child, end)
        PyErr_CheckSignals()
        return bool(found)

    @property
    def operation(self):
        """The operation of the call."""
        return self._side.shared.operation

    @property
    def rows(self):
        """The rows of the call."""
        return self._side.shared.rows

    @property
    def size(self):
        """The bytes of the message of the call."""
        return self._side.shared.size

    @property
    def places(self):
        """The places of the call's tensors, as they were posted."""
        cdef msi_handover *shared = self._side.shared
        cdef uint32_t i
        found = []
        for i in range(min(shared.places, <uint32_t>MSI_HANDOVER_PLACES)):
            found.append(shared.place[i].memory)
            found.append(shared.place[i].offset)
        return tuple(found)

    def report(self, int64_t rows):
        """Report that the first rows of all outputs are final."""
        msi_handover_rows(&self._side, rows)

    def end(self, int code, uint64_t size=0):
        """End the call."""
        msi_handover_end(&self._side, code, size)
