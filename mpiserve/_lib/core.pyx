# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The only module that touches libmpiserve: sessions, services, requests, batches.

Users meet these classes through `mpiserve.open`. Every failure raises the class of
`mpiserve.errors` that stands for the library's code, with the library's text.
"""

import logging
import threading
import weakref
from collections import namedtuple
from math import prod
from operator import index

import numpy as np
from mpi4py import MPI

from mpiserve import errors, failure
from mpiserve._lib import described, waiting
from mpiserve._lib.arrays import DTYPE_CODES, DTYPES, row_shape
from mpiserve._lib.fallbacks import Fallback
from mpiserve.config.tensor import Tensor

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.math cimport INFINITY, isinf
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from mpiserve._lib.arrays cimport (
    NO_ROWS,
    as_input,
    as_output,
    beginning,
    check_apart,
    new_array,
    result_at,
    view_rows,
)
from mpiserve._lib.engine cimport Engine
from mpiserve._lib.libmpiserve cimport *

logger = logging.getLogger("mpiserve")

ROWS = ("independent", "together", "none", "ragged")  # in the order of mpiserve_rows
SOURCES = ("model", "local", "fallback")  # in the order of mpiserve_source
_ROLES = {
    "simulation": MPISERVE_SIMULATION,
    "inference": MPISERVE_INFERENCE,
    "gateway": MPISERVE_GATEWAY,
    "trainer": MPISERVE_TRAINER,
}
PAIR = ("simulation", "inference")  # the ranks of a session without a world
_ROLE_NAMES = {number: role for role, number in _ROLES.items()}

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
include "inference.pxi"


cdef int handle_signals(void *opening) noexcept with gil:
    """Let Python handle signals while a session is opened; return whether one ended that."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Session>opening)._raised = error
        return 1
    return 0


@cython.no_gc_clear
cdef class Session(InferenceCalls):
    """One rank's membership of a coupled world; wraps mpiserve_session.

    Threads may use it at the same time: they take turns. A forked child may not.

    Args:
        comm: The world.
        role: "simulation", "inference", "gateway" or "trainer".
        pair: Of a session without a world: the file and the other process, as descriptors.

    Collective over the world. On simulation ranks it returns when every service
    is published; on inference ranks `publish` must follow.
    """

    cdef readonly str role
    cdef readonly int rank  # of the world
    cdef readonly object comm
    cdef readonly bint alone  # a session of one process, beside which another one infers
    cdef readonly tuple roles
    cdef dict _services
    cdef object _raised  # by a handler of signals, while it was opened

    def __init__(self, comm, role, pair=None):
        cdef MPI_Fint peers
        cdef int number = _ROLES[role], other
        if forks:
            refuse_fork()
        lock_init(&self._lock)
        if pair is None:
            self._open(comm.py2f(), number)
        else:
            self._open_pair(pair[0], pair[1], number)
        self.alone = pair is not None
        size = comm.size if pair is None else len(PAIR)
        self.role, self.rank = role, comm.rank if pair is None else PAIR.index(role)
        check(mpiserve_comm_f(self._session, &peers))
        self.comm = MPI.Comm.f2py(peers)
        self._services = {}
        roles = []
        for rank in range(size):
            check(mpiserve_role_of(self._session, rank, &other))
            roles.append(_ROLE_NAMES[other])
        self.roles = tuple(roles)

    cdef int _open(self, MPI_Fint world, int role) except -1:
        cdef int code
        with nogil:
            code = mpiserve_open_f(world, role, &self._session)
        return check(code)

    cdef int _open_pair(self, int file, int peer, int role) except -1:
        cdef int code
        with nogil:
            code = mpiserve_open_pair(
                file, peer, role, handle_signals, <void *>self, &self._session
            )
        if self._raised is not None:
            raise self._raised
        return check(code)

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

    def step(self):
        """Mark the begin of a time step. Local."""
        self._enter()
        self._leave(mpiserve_step(self._session))

    def profile(self):
        """Return whether the session is profiled, which rank reports, and where. Local."""
        cdef mpiserve_profile profile
        self._enter()
        self._leave(mpiserve_profile_get(self._session, &profile))
        return {
            "on": bool(profile.on),
            "reports": bool(profile.reports),
            "run": profile.run,
            "file": text_of(profile.file),
        }

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

    def scale(self, name, replicas, timeout):
        """Let so many replicas of a service serve; None: as many as the configuration has."""
        cdef bytes service = encode(name)
        cdef const char *text = service
        cdef double seconds = seconds_of(timeout, "timeout")
        cdef int code, starts = replicas is None, n = 0 if replicas is None else replicas
        self._enter()
        with nogil:
            if starts:
                code = mpiserve_start(self._session, text, seconds)
            else:
                code = mpiserve_scale(self._session, text, n, seconds)
        self._leave(code)

    cdef _wrap(self, mpiserve_service *found):
        cdef mpiserve_description description
        self._enter()
        self._leave(mpiserve_service_describe(found, &description, NULL, NULL, NULL))
        name = description.name.decode()
        if name not in self._services:
            self._services[name] = make_service(self, found)
        return self._services[name]

    # ---- how others are

    def peer_error(self):
        """Return (world rank or -1, simulation ranks that remain, text). Local."""
        cdef int rank, remaining
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_peer_error(self._session, &rank, &remaining, text))
        return rank, remaining, text_of(text)

    def irregular(self, int service):
        """Return (number, text) of the rounds of a reproducible service that lacked ranks. Local."""
        cdef int64_t rounds
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_irregular_get(self._session, service, &rounds, text))
        return rounds, text_of(text)

    def crowded(self, int service):
        """Return (batches, rows) of a service: those of one request that others waited for."""
        cdef int64_t batches, rows
        self._enter()
        self._leave(mpiserve_crowded_get(self._session, service, &batches, &rows))
        return batches, rows

    def waiting(self):
        """Return (mpiserve_waits, text): the ranks that this one has waited for since long."""
        cdef int why
        cdef char text[512]
        self._enter()
        self._leave(mpiserve_waiting_get(self._session, &why, text))
        return why, text_of(text)


include "buffer.pxi"
include "service.pxi"
include "streams.pxi"
include "published.pxi"
include "requests.pxi"
include "pace.pxi"
include "fallback.pxi"
