# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The only module that touches libmpiserve: sessions, services, requests, batches.

Users meet these classes through `mpiserve.open`. Every failure raises the class of
`mpiserve.errors` that stands for the library's code, with the library's text.
"""

import threading
import weakref
from collections import namedtuple
from math import prod
from operator import index

import numpy as np
from mpi4py import MPI

from mpiserve import errors, failure
from mpiserve._lib.arrays import DTYPE_CODES, DTYPES
from mpiserve._lib.fallbacks import Fallback
from mpiserve.config.tensor import Tensor

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.math cimport INFINITY, isinf
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from mpiserve._lib.arrays cimport (
    as_input,
    as_output,
    check_apart,
    new_array,
    result_at,
    view_rows,
)
from mpiserve._lib.engine cimport Engine
from mpiserve._lib.libmpiserve cimport *

ROWS = ("independent", "together")  # in the order of mpiserve_rows
_ROLES = {"simulation": MPISERVE_SIMULATION, "inference": MPISERVE_INFERENCE}

cdef enum:
    LARGE = 1 << 18  # bytes of a copy during which other Python threads may run

# A wait is cut into pieces, between which Python may handle signals.
cdef double SLICE = 0.1


include "library.pxi"
include "text.pxi"
include "fork.pxi"
include "launcher.pxi"
include "lock.pxi"
include "serving.pxi"


@cython.no_gc_clear
cdef class Session(Handle):
    """One rank's membership of a coupled world; wraps mpiserve_session.

    Threads may use it at the same time: they take turns. A forked child may not.

    Args:
        comm: The world.
        role: "simulation" or "inference".

    Collective over the world. On simulation ranks it returns when every service
    is published; on inference ranks `publish` must follow.
    """

    cdef readonly str role
    cdef readonly object comm
    cdef readonly tuple roles
    cdef list _signatures  # of the services that this rank published
    cdef tuple _outputs  # of the batch that is open
    cdef dict _services, _batches, _engines
    cdef int64_t _rows
    cdef int _requests

    def __init__(self, comm, role):
        cdef MPI_Fint world = comm.py2f(), peers
        cdef int code, number = _ROLES[role], other
        if forks:
            refuse_fork()
        lock_init(&self._lock)
        with nogil:
            code = mpiserve_open_f(world, number, &self._session)
        check(code)
        self.role = role
        check(mpiserve_comm_f(self._session, &peers))
        self.comm = MPI.Comm.f2py(peers)
        self._services = {}
        self._batches = {}
        self._engines = {}
        roles = []
        for rank in range(comm.size):
            check(mpiserve_role_of(self._session, rank, &other))
            roles.append("simulation" if other == MPISERVE_SIMULATION else "inference")
        self.roles = tuple(roles)

    @staticmethod
    def open_failed(comm, role, code, text):
        """Make every rank's open raise this error. Collective; replaces the open of this rank."""
        cdef MPI_Fint world = comm.py2f()
        cdef bytes data = line_of(text)
        cdef const char *message = data
        cdef int number = _ROLES[role], reason = code, result
        with nogil:
            result = mpiserve_open_failed_f(world, number, reason, message)
        check(result)

    def counters(self):
        """Return this rank's counters, by the names of mpiserve_counters."""
        cdef mpiserve_counters counters
        self._enter()
        self._leave(mpiserve_counters_get(self._session, &counters))
        return counters

    def fail(self, text):
        """Announce that this simulation rank ended with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        cdef int code
        self._enter()
        with nogil:
            code = mpiserve_fail(self._session, message)
        self._leave(code)

    def lost(self):
        """Return (number, text) of the ranks of the world that are known to have died. Local."""
        cdef int count
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_lost_get(self._session, &count, text))
        return count, text_of(text)

    def close(self, timeout=None):
        """Leave. Collective over the world; a second call does nothing.

        A thread that waits for a request gets an error, with code ESTATE.
        """
        cdef mpiserve_session *session
        cdef int code, limited = timeout is not None
        cdef double seconds = seconds_of(timeout, "timeout")
        self._take()
        session = self._session
        self._session = NULL
        self._closing = True
        lock_give(&self._lock)
        with nogil:
            code = mpiserve_close_within(session, seconds) if limited else mpiserve_close(session)
        self._closing = False
        self._leftovers = None
        check(code)

    # ---- simulation ranks

    def services(self):
        """Return the services that can serve. Local."""
        cdef int code, count
        cdef mpiserve_service *found
        self._enter()
        self._leave(mpiserve_service_count(self._session, &count))
        services = []
        for i in range(count):
            self._enter()
            code = mpiserve_service_at(self._session, i, &found)
            self._leave(MPISERVE_OK)
            # A service whose model failed to load is left out; service() says why it failed.
            if code == MPISERVE_OK:
                services.append(self._wrap(found))
        return services

    def service(self, name):
        """Find a service by name. Local."""
        cdef bytes data = encode(name)
        cdef const char *text = data
        cdef mpiserve_service *found
        cdef int code
        self._enter()
        with nogil:  # it may wait for a free slot
            code = mpiserve_service_find(self._session, text, &found)
        self._leave(code)
        return self._wrap(found)

    def states(self, name):
        """Return the states of the replicas of a service, those that could not load included."""
        found, n = [], 0
        while (state := self.state(name, n)) is not None:
            found.append(state)
            n += 1
        return tuple(found)

    def state(self, name, int n=-1):
        """Return the state of the n-th replica, or None; of the best one if n is -1."""
        cdef bytes data = encode(name)
        cdef const char *text = data
        cdef mpiserve_replica_state state
        cdef int code
        self._enter()
        with nogil:  # it may wait for a Get
            code = mpiserve_service_state_get(self._session, text, n, &state)
        self._leave(MPISERVE_OK if code == MPISERVE_EARG else code)
        return None if code == MPISERVE_EARG else state_of(&state)

    def wait_ready(self, name, timeout):
        """Wait until a service can serve."""
        cdef bytes data = encode(name)
        cdef const char *text = data
        cdef double left = seconds_of(timeout, "timeout")
        cdef double until = clock_now() + left if left >= 0 else 0
        cdef int code = MPISERVE_ETIMEOUT
        while True:
            self._enter()
            with nogil:
                code = mpiserve_service_wait_ready(
                    self._session, text, SLICE if left < 0 or left > SLICE else left
                )
            if timeout is not None:
                left = max(0.0, until - clock_now())
            if code != MPISERVE_ETIMEOUT or left == 0:
                return self._leave(code)
            self._leave(MPISERVE_OK)
            PyErr_CheckSignals()

    def reload(self, name, version, timeout):
        """Load another version of a service's model at all its replicas."""
        cdef bytes service = encode(name), wanted = encode(version)
        cdef const char *service_text = service
        cdef const char *version_text = wanted
        cdef double seconds = seconds_of(timeout, "timeout")
        cdef int code
        self._enter()
        with nogil:
            code = mpiserve_reload(self._session, service_text, version_text, seconds)
        self._leave(code)

    def unload(self, name, timeout):
        """Free the model of a service at all its replicas."""
        cdef bytes service = encode(name)
        cdef const char *text = service
        cdef double seconds = seconds_of(timeout, "timeout")
        cdef int code
        self._enter()
        with nogil:
            code = mpiserve_unload(self._session, text, seconds)
        self._leave(code)

    cdef _wrap(self, mpiserve_service *found):
        cdef mpiserve_description description
        self._enter()
        self._leave(mpiserve_service_describe(found, &description, NULL, NULL, NULL))
        name = description.name.decode()
        if name not in self._services:
            self._services[name] = make_service(self, found)
        return self._services[name]

    # ---- inference ranks

    def publish(self, *services):
        """Announce the services of this rank, ready or failed. Collective over the world.

        Args:
            services: For each service the arguments of Description, by name.
        """
        cdef mpiserve_description *all = NULL
        cdef int code, n = len(services)
        made = [Description(**service) for service in services]
        self._signatures = [((<Description>d).inputs, (<Description>d).outputs) for d in made]
        all = <mpiserve_description *>calloc(n, sizeof(mpiserve_description))
        if all == NULL:
            raise MemoryError
        for i in range(n):
            all[i] = (<Description>made[i]).description
        try:
            self._enter()
            with nogil:
                code = mpiserve_publish(self._session, n, all)
            self._leave(code)
        finally:
            free(all)

    def next_batch(self, double timeout):
        """Wait for a batch, at most timeout seconds.

        Batches of services with an engine are answered meanwhile, without Python.

        Returns:
            The batch, or None after the time-out.

        Raises:
            ClosedError: If every simulation rank has left.
            ChangeError: Once for each change of a model that a client requests.
        """
        cdef mpiserve_batch batch
        cdef int code
        self._enter()
        with nogil:
            code = mpiserve_batch_next(self._session, timeout, &batch)
        failure = text_of(mpiserve_last_error()) if code == MPISERVE_EMODEL else ""
        answers = code == MPISERVE_ETIMEOUT or code == MPISERVE_EMODEL
        self._leave(MPISERVE_OK if answers else code)
        return None if code == MPISERVE_ETIMEOUT else batch_of(self, &batch, failure)

    def reply(self, outputs):
        """Answer the batch: one C-contiguous array [rows, ...] per output, of its dtype."""
        cdef const void *data[16]
        cdef int code
        find_rows(data, self._outputs, outputs, self._rows)
        self._enter()
        with nogil:
            code = mpiserve_batch_reply(self._session, data)
        self._leave(code)

    def reply_rows(self, int64_t rows, outputs):
        """Answer the requests whose results are among the first rows of the outputs."""
        cdef const void *data[16]
        find_rows(data, self._outputs, outputs, self._rows)
        self._enter()
        self._leave(mpiserve_batch_reply_rows(self._session, rows, data))

    def fail_batch(self, int code, text):
        """Answer every request of the batch with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        self._enter()
        self._leave(mpiserve_batch_fail(self._session, code, message))

    def hold_batch(self):
        """End the batch without an answer; a ticket answers each request later.

        Returns:
            A ticket for each of its requests. The batch's arrays are no longer valid.
        """
        cdef int n = max(1, self._requests)
        cdef mpiserve_ticket *tickets = <mpiserve_ticket *>malloc(n * sizeof(mpiserve_ticket))
        if tickets == NULL:
            raise MemoryError
        try:
            self._enter()
            self._leave(mpiserve_batch_hold(self._session, tickets))
            return tickets_of(tickets, self._requests)
        finally:
            free(tickets)

    def wants(self, Ticket ticket):
        """Return whether the client still waits for a held request; else it has been answered."""
        cdef int wanted
        self._enter()
        self._leave(mpiserve_ticket_wanted(self._session, &ticket._ticket, &wanted))
        return bool(wanted)

    def reply_ticket(self, Ticket ticket, outputs):
        """Answer a held request: one C-contiguous array [ticket.rows, ...] per output."""
        cdef const void *data[16]
        specs = self._signatures[ticket._ticket.service][1]
        find_rows(data, specs, outputs, ticket._ticket.rows)
        self._enter()
        self._leave(mpiserve_ticket_reply(self._session, &ticket._ticket, data))

    def fail_ticket(self, Ticket ticket, int code, text):
        """Answer a held request with an error."""
        cdef bytes data = line_of(text)
        cdef const char *message = data
        self._enter()
        self._leave(mpiserve_ticket_fail(self._session, &ticket._ticket, code, message))

    def set_engine(self, int service, Engine engine):
        """Have the batches of one of this rank's services answered by an engine; None: by nobody.

        `next_batch` returns those on which it fails.
        """
        cdef mpiserve_engine *wanted = NULL if engine is None else &engine.engine
        self._enter()
        self._leave(mpiserve_engine_set(self._session, service, wanted))
        self._engines[service] = engine

    def batch_clients(self):
        """Return an int32 array: the world rank that submitted each row of the batch."""
        clients = np.empty(self._rows, np.int32)
        cdef int32_t[::1] view = clients
        self._enter()
        self._leave(mpiserve_batch_clients(self._session, &view[0]))
        return clients

    def change_get(self):
        """Return (service, what, world rank, version) of the change that a client requests."""
        cdef mpiserve_change_request change
        self._enter()
        self._leave(mpiserve_change_get(self._session, &change))
        return change.service, change.what, change.client, text_of(change.version)

    def change_reply(self, int service, int code, text):
        """Answer the change."""
        cdef bytes data = line_of(text)
        self._enter()
        self._leave(mpiserve_change_reply(self._session, service, code, <const char *>data))

    def suspend(self, int service, suspended):
        """Suspend one of this rank's services here, or resume it."""
        cdef int code, yes = bool(suspended)
        self._enter()
        with nogil:
            code = mpiserve_suspend(self._session, service, yes)
        self._leave(code)

    def set_state(self, int service, state):
        """Say in which state one of this rank's services is here."""
        cdef int number = STATES.index(state)
        self._enter()
        self._leave(mpiserve_state_set(self._session, service, number))

    def set_rows(self, int service, rows):
        """Set whether requests to one of this rank's services may share a batch from now on."""
        cdef int number = ROWS.index(rows)
        self._enter()
        self._leave(mpiserve_rows_set(self._session, service, number))

    def set_room(self, int service, bint room):
        """Say whether the model of one of this rank's services has room for a batch."""
        self._enter()
        self._leave(mpiserve_room_set(self._session, service, room))

    def queue_rows(self, int service):
        """Return the rows that wait here for a batch of a service."""
        cdef int64_t rows
        self._enter()
        self._leave(mpiserve_queue_get(self._session, service, &rows))
        return rows

    def segments(self):
        """Return (file descriptor, address, bytes) of the memory in which all batches lie."""
        cdef mpiserve_segment segment
        self._enter()
        self._leave(mpiserve_segment_get(self._session, &segment))
        return [(segment.fd, <size_t>segment.memory, segment.bytes)]

    def locate(self, array):
        """Return (index in segments(), offset) of a contiguous array, or None: it is elsewhere."""
        return locate(self.segments(), array)

    def mpi_take(self):
        """Take MPI from the broker thread, while a batch is being answered."""
        cdef int code
        self._enter()
        with nogil:
            code = mpiserve_mpi_take(self._session)
        self._leave(code)

    def mpi_give(self):
        """Give MPI back to the broker thread."""
        self._enter()
        self._leave(mpiserve_mpi_give(self._session))

    def peer_error(self):
        """Return (world rank or -1, simulation ranks that remain, text). Local."""
        cdef int rank, remaining
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_peer_error(self._session, &rank, &remaining, text))
        return rank, remaining, text_of(text)

    def waiting(self):
        """Return (mpiserve_waits, text): the ranks that this one has waited for since long."""
        cdef int why
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_waiting_get(self._session, &why, text))
        return why, text_of(text)


include "buffer.pxi"
include "service.pxi"
include "published.pxi"
include "requests.pxi"
include "fallback.pxi"
