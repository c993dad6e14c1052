# cython: language_level=3, boundscheck=False, wraparound=False
"""Requests and answers on their way from an inference rank to the process that writes a capture.

By csrc/base/ring, which is no part of libmpiserve, so that process loads no MPI.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcpy, memset

cdef extern from "base/ring.h" nogil:
    enum:
        MSI_RING_TEXT
    ctypedef struct msi_ring_shared:
        uint64_t dropped
        uint32_t given_up
        char *text
    ctypedef struct msi_record:
        uint64_t bytes
        uint32_t rows, at
        int32_t rank
        uint16_t service, generation
        uint32_t model, batch_rows, batch_requests, source
        uint64_t sequence
        int64_t batch, step, time_ns
    ctypedef struct msi_ring:
        msi_ring_shared *shared
    void msi_ring_open(msi_ring *, void *, size_t)
    int msi_ring_is_closed(const msi_ring *)
    const msi_record *msi_ring_next(const msi_ring *)
    void msi_ring_take(const msi_ring *, const msi_record *)
    void msi_ring_close(const msi_ring *)

# What is known of a row beside its tensors: in the order of `fields` below.
FIELDS = {
    "rank": np.int32,
    "request": np.int64,
    "step": np.int64,
    "time": np.int64,
    "batch": np.int64,
    "row_in_batch": np.int32,
    "batch_rows": np.int32,
    "batch_requests": np.int32,
    "generation": np.int32,
    "model": np.int32,
    "source": np.uint8,
}

cdef enum:
    MOST = 32  # tensors

cdef struct fields:
    int32_t *rank
    int64_t *request
    int64_t *step
    int64_t *time
    int64_t *batch
    int32_t *row_in_batch
    int32_t *batch_rows
    int32_t *batch_requests
    int32_t *generation
    int32_t *model
    uint8_t *source


cdef size_t address_of(object array) except? 0:
    return array.__array_interface__["data"][0]


cdef class Table:
    """Rows of one service.

    Args:
        row_bytes: The bytes of a row of each tensor: inputs, then outputs.
        capacity: The most rows.

    Attributes:
        rows: How many there are.
        capacity: The most.
        tensors: An array [capacity, bytes] of each tensor.
        columns: An array [capacity] of each of FIELDS, by name.
    """

    cdef readonly tuple tensors
    cdef readonly dict columns
    cdef public int64_t rows
    cdef readonly int64_t capacity
    cdef int _n
    cdef uint8_t *_data[MOST]
    cdef size_t _bytes[MOST]
    cdef fields _fields

    def __init__(self, row_bytes, int64_t capacity):
        cdef int i
        if len(row_bytes) > MOST:
            raise ValueError(f"at most {MOST} tensors")
        self.capacity, self._n = capacity, len(row_bytes)
        self.tensors = tuple([np.empty((capacity, size), np.uint8) for size in row_bytes])
        self.columns = {name: np.empty(capacity, dtype) for name, dtype in FIELDS.items()}
        for i in range(self._n):
            self._data[i] = <uint8_t *>address_of(self.tensors[i])
            self._bytes[i] = row_bytes[i]
        places = [address_of(column) for column in self.columns.values()]
        self._fields = fields(
            <int32_t *><size_t>places[0], <int64_t *><size_t>places[1],
            <int64_t *><size_t>places[2], <int64_t *><size_t>places[3],
            <int64_t *><size_t>places[4], <int32_t *><size_t>places[5],
            <int32_t *><size_t>places[6], <int32_t *><size_t>places[7],
            <int32_t *><size_t>places[8], <int32_t *><size_t>places[9],
            <uint8_t *><size_t>places[10],
        )

    cdef bint put(self, const msi_record *record) noexcept nogil:
        """Copy a record; False: there is no room."""
        cdef const uint8_t *data = <const uint8_t *>(record + 1)
        cdef int64_t at = self.rows, k
        cdef size_t size
        cdef fields *f = &self._fields
        cdef int i
        if record.rows > self.capacity - at:
            return False
        for i in range(self._n):
            size = record.rows * self._bytes[i]
            memcpy(self._data[i] + at * self._bytes[i], data, size)
            data += size
        for k in range(record.rows):
            f.rank[at + k] = record.rank
            f.request[at + k] = record.sequence
            f.step[at + k] = record.step
            f.time[at + k] = record.time_ns
            f.batch[at + k] = record.batch
            f.row_in_batch[at + k] = record.at + k
            f.batch_rows[at + k] = record.batch_rows
            f.batch_requests[at + k] = record.batch_requests
            f.generation[at + k] = record.generation
            f.model[at + k] = record.model
            f.source[at + k] = <uint8_t>record.source
        self.rows += record.rows
        return True


cdef class Ring:
    """Either side of the memory that a rank and its writer map.

    Args:
        memory: A writable buffer, all 0 at first.

    Attributes:
        address: Where it is mapped.
        bytes: Its bytes.
    """

    cdef msi_ring _ring
    cdef unsigned char[::1] _memory
    cdef readonly size_t address, bytes

    def __init__(self, memory):
        self._memory = memory
        self.bytes = len(self._memory)
        self.address = <size_t>&self._memory[0]
        msi_ring_open(&self._ring, <void *>self.address, self.bytes)

    @property
    def dropped(self):
        """The rows that found no room."""
        return self._ring.shared.dropped

    @property
    def closed(self):
        """Why the writer takes no more; None: it does."""
        if self._ring.shared.given_up:
            return "its writer has taken nothing for 10 s"
        if not msi_ring_is_closed(&self._ring):
            return None
        return (<bytes>self._ring.shared.text).decode("utf-8", "replace")

    def take(self, list tables):
        """Move what is there to the tables, by service.

        Returns:
            The service whose table is full, or -1: nothing is left.
        """
        cdef const msi_record *record
        cdef Table table
        while True:
            record = msi_ring_next(&self._ring)
            if record == NULL:
                return -1
            if record.rows:
                table = tables[record.service]
                if not table.put(record):
                    return record.service
            msi_ring_take(&self._ring, record)

    def close(self, str why):
        """Take no more."""
        cdef bytes data = why.encode()[: MSI_RING_TEXT - 1]
        cdef const char *text = data
        memset(self._ring.shared.text, 0, MSI_RING_TEXT)
        memcpy(self._ring.shared.text, text, len(data))
        msi_ring_close(&self._ring)
