# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The only module that touches libmpiserve: sessions, services, requests, batches.

Users meet these classes through `mpiserve.open`. Every failure raises the class of
`mpiserve.errors` that stands for the library's code, with the library's text.
"""

import weakref
from collections import namedtuple
from math import prod

import numpy as np
from mpi4py import MPI

from mpiserve import errors, failure
from mpiserve._arrays import DTYPE_CODES, DTYPES
from mpiserve.tensor import Tensor

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from mpiserve._arrays cimport as_input, as_output, new_array, result_at, view_rows
from mpiserve.libmpiserve cimport *

ROWS = ("independent", "together")  # in the order of mpiserve_rows
_ROLES = {"simulation": MPISERVE_SIMULATION, "inference": MPISERVE_INFERENCE}

cdef enum:
    LARGE = 1 << 18  # bytes of a copy during which other Python threads may run
    MAX_BATCHES = 256  # whose arrays are kept for the next batch of the same rows

# A wait is cut into pieces, between which Python may handle signals.
cdef double SLICE = 0.1


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
    """Make malloc keep what is freed: results of a model are else faulted in anew each time."""
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


cdef str text_of(const char *text):
    # The library cuts long texts at a byte, which may be inside a character.
    return (<bytes>text).decode("utf-8", "replace")


cdef bytes line_of(str text):
    # Of any origin: with an end of C's inside, or what UTF-8 cannot say.
    return failure.one_line(text, MPISERVE_TEXT_SIZE - 1).encode()


cdef int check(int code) except -1:
    if code != MPISERVE_OK:
        raise errors.from_code(code, text_of(mpiserve_last_error()))
    return 0


cdef tuple tensors_of(mpiserve_spec *specs, int n):
    return tuple([
        Tensor(
            specs[i].name.decode(),
            DTYPES[specs[i].dtype].name,
            tuple([specs[i].shape[d] for d in range(specs[i].ndim)]),
        )
        for i in range(n)
    ])


include "_serving.pxi"


cdef class Session:
    """One rank's membership of a coupled world; wraps mpiserve_session.

    Args:
        comm: The world.
        role: "simulation" or "inference".

    Collective over the world. On simulation ranks it returns when every service
    was published; on inference ranks `publish` must follow.
    """

    cdef mpiserve_session *_session
    cdef readonly str role
    cdef readonly object comm
    cdef readonly tuple roles
    cdef list _signatures  # of the services that this rank published
    cdef tuple _outputs  # and those of the batch that it answers now
    cdef dict _services, _batches
    cdef int64_t _rows
    cdef int _requests

    def __init__(self, comm, role):
        cdef MPI_Fint world = comm.py2f(), peers
        cdef int code, number = _ROLES[role], other
        with nogil:
            code = mpiserve_open_f(world, number, &self._session)
        check(code)
        self.role = role
        check(mpiserve_comm_f(self._session, &peers))
        self.comm = MPI.Comm.f2py(peers)
        self._services = {}
        self._batches = {}
        roles = []
        for rank in range(comm.size):
            check(mpiserve_role_of(self._session, rank, &other))
            roles.append("simulation" if other == MPISERVE_SIMULATION else "inference")
        self.roles = tuple(roles)

    @staticmethod
    def open_failed(comm, role, code, text):
        """Make every rank's open raise this error. Collective; called in place of it."""
        cdef MPI_Fint world = comm.py2f()
        cdef bytes data = line_of(text)
        cdef const char *message = data
        cdef int number = _ROLES[role], reason = code, result
        with nogil:
            result = mpiserve_open_failed_f(world, number, reason, message)
        check(result)

    cdef int _alive(self) except -1:
        if self._session == NULL:
            raise errors.from_code(errors.Code.ESTATE, "the session is closed")
        return 0

    def counters(self):
        """Return this rank's counters, by the names of mpiserve_counters."""
        cdef mpiserve_counters counters
        self._alive()
        check(mpiserve_counters_get(self._session, &counters))
        return counters

    def fail(self, text):
        """Announce that this simulation rank ended with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_fail(self._session, message)
        check(code)

    def close(self):
        """Leave. Collective over the world; a second call does nothing."""
        cdef mpiserve_session *session = self._session
        cdef int code
        self._session = NULL
        with nogil:
            code = mpiserve_close(session)
        check(code)

    # ---- simulation ranks

    def services(self):
        """Return the services that can be asked. Local."""
        cdef int count
        cdef mpiserve_service *found
        self._alive()
        check(mpiserve_service_count(self._session, &count))
        services = []
        for i in range(count):
            # One whose model could not be loaded is not in the list; asking for it says why.
            if mpiserve_service_at(self._session, i, &found) == MPISERVE_OK:
                services.append(self._wrap(found))
        return services

    def service(self, name):
        """Find a service by name. Local."""
        cdef bytes data = name.encode()
        cdef mpiserve_service *found
        self._alive()
        check(mpiserve_service_find(self._session, data, &found))
        return self._wrap(found)

    def reload(self, name, version, double timeout):
        """Load another version of a service's model at all its replicas."""
        cdef bytes service = name.encode(), wanted = version.encode()
        cdef const char *service_text = service
        cdef const char *version_text = wanted
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_reload(self._session, service_text, version_text, timeout)
        check(code)

    def unload(self, name, double timeout):
        """Let the model of a service go at all its replicas."""
        cdef bytes service = name.encode()
        cdef const char *text = service
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_unload(self._session, text, timeout)
        check(code)

    cdef _wrap(self, mpiserve_service *found):
        cdef mpiserve_description description
        check(mpiserve_service_describe(found, &description, NULL, NULL, NULL))
        name = description.name.decode()
        if name not in self._services:
            self._services[name] = make_service(self, found)
        return self._services[name]

    # ---- inference ranks

    def publish(self, *services):
        """Announce what this rank serves, ready or failed. Collective over the world.

        Args:
            services: Of each the arguments of Description, by name.
        """
        cdef mpiserve_description *all = NULL
        cdef int code, n = len(services)
        self._alive()
        made = [Description(**service) for service in services]
        self._signatures = [((<Description>d).inputs, (<Description>d).outputs) for d in made]
        all = <mpiserve_description *>calloc(n, sizeof(mpiserve_description))
        if all == NULL:
            raise MemoryError
        for i in range(n):
            all[i] = (<Description>made[i]).description
        with nogil:
            code = mpiserve_publish_all(self._session, n, all)
        free(all)
        check(code)

    def next_batch(self, double timeout):
        """Wait for a batch, at most timeout seconds.

        Returns:
            The batch, or None after the time-out.

        Raises:
            ClosedError: If every simulation rank has left.
            ControlError: Once for each, if a client asks for another model.
        """
        cdef mpiserve_batch batch
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_batch_next(self._session, timeout, &batch)
        if code == MPISERVE_ETIMEOUT:
            return None
        check(code)
        return self._batch_of(&batch)

    cdef Batch _batch_of(self, mpiserve_batch *batch):
        """Find or make the arrays. Rows that repeat lie at the same place: all is there."""
        cdef Batch made
        key = (batch.service, <size_t>batch.inputs[0], <size_t>batch.outputs[0], batch.rows)
        found = self._batches.get(key)
        if found is None:
            found = Batch.__new__(Batch)
            if len(self._batches) >= MAX_BATCHES:
                self._batches.clear()
            self._batches[key] = found
        made = found
        inputs, self._outputs = self._signatures[batch.service]
        if made.inputs is None:
            made.service = batch.service
            made.rows = batch.rows
            made.inputs = tuple([
                view_rows(batch.inputs[i], dtype, shape, batch.rows, False, None)
                for i, (dtype, shape) in enumerate(inputs)
            ])
            made.outputs = tuple([
                view_rows(batch.outputs[i], dtype, shape, batch.rows, True, None)
                for i, (dtype, shape) in enumerate(self._outputs)
            ])
        made.requests = batch.requests
        made.in_place = batch.in_place
        self._rows = batch.rows
        self._requests = batch.requests
        return made

    def reply(self, outputs):
        """Answer the batch: one C-contiguous array [rows, ...] per output, of its dtype."""
        cdef const void *data[16]
        cdef int code
        self._find_results(data, outputs)
        with nogil:
            code = mpiserve_batch_reply(self._session, data)
        check(code)

    def reply_rows(self, int64_t rows, outputs):
        """Answer the requests whose results are among the first rows of the outputs."""
        cdef const void *data[16]
        self._find_results(data, outputs)
        check(mpiserve_batch_reply_rows(self._session, rows, data))

    cdef int _find_results(self, const void **data, outputs) except -1:
        return self._find_rows(data, self._outputs, outputs, self._rows)

    cdef int _find_rows(
        self, const void **data, tuple specs, outputs, int64_t rows
    ) except -1:
        cdef int i = 0
        self._alive()
        for dtype, shape in specs:
            data[i] = result_at(outputs[i], dtype, shape, rows)
            i += 1
        return 0

    def fail_batch(self, int code, text):
        """Answer every request of the batch with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        self._alive()
        check(mpiserve_batch_fail(self._session, code, message))

    def hold_batch(self):
        """End the batch without an answer: each request is to be answered by its ticket.

        Returns:
            A ticket for each of its requests. The batch's arrays are valid no longer.
        """
        self._alive()
        cdef mpiserve_ticket *tickets = <mpiserve_ticket *>malloc(
            max(1, self._requests) * sizeof(mpiserve_ticket)
        )
        cdef Ticket ticket
        if tickets == NULL:
            raise MemoryError
        made = []
        try:
            check(mpiserve_batch_hold(self._session, tickets))
            for i in range(self._requests):
                ticket = Ticket.__new__(Ticket)
                ticket._ticket = tickets[i]
                made.append(ticket)
        finally:
            free(tickets)
        return made

    def wants(self, Ticket ticket):
        """Tell whether anybody still waits for a held request; if not, it has been answered."""
        cdef int wanted
        self._alive()
        check(mpiserve_ticket_wanted(self._session, &ticket._ticket, &wanted))
        return bool(wanted)

    def reply_ticket(self, Ticket ticket, outputs):
        """Answer a held request: one C-contiguous array [ticket.rows, ...] per output."""
        cdef const void *data[16]
        specs = self._signatures[ticket._ticket.service][1]
        self._find_rows(data, specs, outputs, ticket._ticket.rows)
        check(mpiserve_ticket_reply(self._session, &ticket._ticket, data))

    def fail_ticket(self, Ticket ticket, int code, text):
        """Answer a held request with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        self._alive()
        check(mpiserve_ticket_fail(self._session, &ticket._ticket, code, message))

    def poll(self):
        """Hear what clients say, and form no batch."""
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_poll(self._session)
        check(code)

    def serve_echo(self, double timeout):
        """Answer with copies of the inputs, in C, until the time-out."""
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_serve_echo(self._session, timeout)
        if code != MPISERVE_ETIMEOUT:
            check(code)

    def batch_clients(self):
        """Return an int32 array: the world rank that asked for each row of the batch."""
        clients = np.empty(self._rows, np.int32)
        cdef int32_t[::1] view = clients
        self._alive()
        check(mpiserve_batch_clients(self._session, &view[0]))
        return clients

    def control(self):
        """Return (service, what, world rank, version) of what a client asks of a model."""
        cdef mpiserve_control control
        self._alive()
        check(mpiserve_control_get(self._session, &control))
        return control.service, control.what, control.client, text_of(control.version)

    def control_reply(self, int service, int code, text):
        """Answer it."""
        cdef bytes data = line_of(text)
        self._alive()
        check(mpiserve_control_reply(self._session, service, code, <const char *>data))

    def rest(self, int service, resting):
        """Let one of this rank's services rest here, or serve again."""
        cdef int code, rests = bool(resting)
        self._alive()
        with nogil:
            code = mpiserve_rest(self._session, service, rests)
        check(code)

    def set_rows(self, int service, rows):
        """Say whether requests of one of this rank's services may share a batch from now on."""
        self._alive()
        check(mpiserve_rows_set(self._session, service, ROWS.index(rows)))

    def queue_rows(self, int service):
        """Return the rows that wait here for a batch of a service."""
        cdef int64_t rows
        self._alive()
        check(mpiserve_queue_get(self._session, service, &rows))
        return rows

    def mpi_take(self):
        """Take MPI from the broker thread, while a batch is being answered."""
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_mpi_take(self._session)
        check(code)

    def mpi_give(self):
        """Give MPI back to the broker thread."""
        self._alive()
        check(mpiserve_mpi_give(self._session))

    def peer_error(self):
        """Return (world rank or -1, simulation ranks that remain, text). Local."""
        cdef int rank, remaining
        cdef char text[512]
        self._alive()
        check(mpiserve_peer_error(self._session, &rank, &remaining, text))
        return rank, remaining, text_of(text)

    def waiting(self):
        """Return (mpiserve_waits, text): whom this rank has waited for since long, if it has."""
        cdef int why
        cdef char text[512]
        self._alive()
        check(mpiserve_waiting_get(self._session, &why, text))
        return why, text_of(text)


include "_service.pxi"
