# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True
"""The only module that touches libmpiserve: sessions, services, requests, batches.

Users meet these classes through `mpiserve.open`. Every failure raises the class of
`mpiserve.errors` that stands for the library's code, with the library's text.
"""

from collections import namedtuple

import ml_dtypes
import numpy as np
from mpi4py import MPI

from mpiserve import errors
from mpiserve.tensor import Tensor

from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, int64_t, uint64_t, uint8_t
from libc.string cimport memset

cdef extern from "Python.h":
    const int PyBUF_READ
    const int PyBUF_WRITE

cdef extern from "mpiserve.h" nogil:
    ctypedef int MPI_Fint
    enum:
        MPISERVE_OK, MPISERVE_ETIMEOUT, MPISERVE_ECLOSED
        MPISERVE_SIMULATION, MPISERVE_INFERENCE
        MPISERVE_SHARED
        MPISERVE_MAX_DIMS, MPISERVE_MAX_TENSORS, MPISERVE_TEXT_SIZE, MPISERVE_NAME_SIZE
    ctypedef struct mpiserve_session:
        pass
    ctypedef struct mpiserve_service:
        pass
    ctypedef struct mpiserve_request:
        uint64_t id
    ctypedef struct mpiserve_spec:
        char name[64]
        int32_t dtype, ndim
        int64_t shape[8]
    ctypedef struct mpiserve_tensor:
        const char *name
        void *data
        int32_t dtype, ndim
        int64_t shape[8]
    ctypedef struct mpiserve_description:
        char name[64]
        char engine[64]
        int32_t n_inputs, n_outputs
        mpiserve_spec inputs[16]
        mpiserve_spec outputs[16]
        int64_t max_batch_rows, max_delay_ns, pool_bytes
        int32_t replica, error
        char error_text[512]
    ctypedef struct mpiserve_stats:
        int64_t rows, batch_rows, batch_requests, queue_ns, compute_ns, total_ns
    ctypedef struct mpiserve_counters:
        int64_t requests, rows, errors, batches, batches_in_place
        int64_t closed_by_rows, closed_by_census, closed_by_delay
        int64_t rma_operations, rma_to_simulation, thread_polls
    ctypedef struct mpiserve_batch:
        int64_t rows
        int32_t requests, in_place
        const void *inputs[16]
        void *outputs[16]
    const char *mpiserve_version()
    const char *mpiserve_mpi_build()
    const char *mpiserve_mpi_runtime()
    const char *mpiserve_last_error()
    const char *mpiserve_dtype_name(int)
    int mpiserve_open_f(MPI_Fint, int, mpiserve_session **)
    int mpiserve_open_failed_f(MPI_Fint, int, int, const char *)
    int mpiserve_comm_f(mpiserve_session *, MPI_Fint *)
    int mpiserve_role_of(mpiserve_session *, int, int *)
    int mpiserve_counters_get(mpiserve_session *, mpiserve_counters *)
    int mpiserve_fail(mpiserve_session *, const char *)
    int mpiserve_close(mpiserve_session *)
    int mpiserve_service_count(mpiserve_session *, int *)
    int mpiserve_service_at(mpiserve_session *, int, mpiserve_service **)
    int mpiserve_service_find(mpiserve_session *, const char *, mpiserve_service **)
    int mpiserve_service_describe(mpiserve_service *, mpiserve_description *, int *, int *, int *)
    int mpiserve_submit(mpiserve_service *, int, const mpiserve_tensor *, int,
                        const mpiserve_tensor *, mpiserve_request *)
    int mpiserve_test(mpiserve_session *, mpiserve_request *, int *, mpiserve_stats *)
    int mpiserve_wait(mpiserve_session *, mpiserve_request *, double, mpiserve_stats *)
    int mpiserve_cancel(mpiserve_session *, mpiserve_request *)
    int mpiserve_publish(mpiserve_session *, const mpiserve_description *)
    int mpiserve_batch_next(mpiserve_session *, double, mpiserve_batch *)
    int mpiserve_batch_reply(mpiserve_session *, const void *const *)
    int mpiserve_batch_fail(mpiserve_session *, int, const char *)
    int mpiserve_serve_echo(mpiserve_session *, double)
    int mpiserve_peer_error(mpiserve_session *, int *, int *, char *)


DTYPES = tuple(
    np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    for name in (mpiserve_dtype_name(i).decode() for i in range(10))
)
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_DTYPE_NAMES = {dtype.name: code for code, dtype in enumerate(DTYPES)}
_ROLES = {"simulation": MPISERVE_SIMULATION, "inference": MPISERVE_INFERENCE}

# A wait is cut into pieces, between which Python may handle signals.
cdef double SLICE = 0.1


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


cdef int fill_specs(mpiserve_spec *specs, object tensors) except -1:
    if len(tensors) > MPISERVE_MAX_TENSORS:
        raise errors.ConfigError(errors.Code.ECONFIG, f"over {MPISERVE_MAX_TENSORS} tensors")
    for i, tensor in enumerate(tensors):
        copy_text(specs[i].name, MPISERVE_NAME_SIZE, tensor.name)
        specs[i].dtype = _DTYPE_NAMES.get(tensor.dtype, -1)
        specs[i].ndim = len(tensor.shape)
        for d, length in enumerate(tensor.shape[:MPISERVE_MAX_DIMS]):
            specs[i].shape[d] = length
    return 0


cdef int copy_text(char *to, size_t size, str text) except -1:
    cdef bytes data = text.encode()[: size - 1]
    cdef const char *start = data
    memset(to, 0, size)
    for i in range(len(data)):
        to[i] = start[i]
    return 0


cdef object array_at(const void *data, object dtype, tuple shape, bint writable):
    """View the library's memory as an array."""
    cdef Py_ssize_t size = dtype.itemsize
    for length in shape:
        size *= length
    cdef object view = PyMemoryView_FromMemory(
        <char *>data, size, PyBUF_WRITE if writable else PyBUF_READ
    )
    return np.frombuffer(view, dtype=np.uint8).view(dtype).reshape(shape)


class Batch:
    """A batch that an inference rank is to answer.

    Attributes:
        rows: Of all its requests.
        requests: Their number.
        in_place: Whether the inputs are the memory that the clients wrote to.
        inputs: One array [rows, ...] per input of the signature; read-only, valid
            until the batch is answered.
        outputs: One array [rows, ...] per output, where results may be written
            to spare a copy; valid until the batch is answered.
    """

    __slots__ = ("in_place", "inputs", "outputs", "requests", "rows")


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
    cdef tuple _inputs, _outputs
    cdef dict _services

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
        roles = []
        for rank in range(comm.size):
            check(mpiserve_role_of(self._session, rank, &other))
            roles.append("simulation" if other == MPISERVE_SIMULATION else "inference")
        self.roles = tuple(roles)

    @staticmethod
    def open_failed(comm, role, code, text):
        """Make every rank's open raise this error. Collective; called in place of it."""
        cdef MPI_Fint world = comm.py2f()
        cdef bytes data = text.encode()
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
        cdef bytes data = text.encode()
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

    cdef _wrap(self, mpiserve_service *found):
        cdef mpiserve_description description
        check(mpiserve_service_describe(found, &description, NULL, NULL, NULL))
        name = description.name.decode()
        if name not in self._services:
            self._services[name] = make_service(self, found)
        return self._services[name]

    # ---- inference ranks

    def publish(self, *, name, engine="", inputs=(), outputs=(), max_batch_rows=1,
                max_delay_us=0, pool_bytes=0, replica=0, error_code=0, error_text=""):
        """Announce this rank's service, ready or failed. Collective over the world."""
        cdef mpiserve_description description
        cdef int code
        self._alive()
        memset(&description, 0, sizeof(description))
        copy_text(description.name, MPISERVE_NAME_SIZE, name)
        copy_text(description.engine, MPISERVE_NAME_SIZE, engine)
        copy_text(description.error_text, MPISERVE_TEXT_SIZE, error_text)
        description.n_inputs = len(inputs)
        description.n_outputs = len(outputs)
        fill_specs(description.inputs, inputs)
        fill_specs(description.outputs, outputs)
        description.max_batch_rows = max_batch_rows
        description.max_delay_ns = int(max_delay_us * 1000)
        description.pool_bytes = pool_bytes
        description.replica = replica
        description.error = error_code
        self._inputs = tuple((DTYPES[_DTYPE_NAMES[t.dtype]], tuple(t.shape[1:])) for t in inputs)
        self._outputs = tuple((DTYPES[_DTYPE_NAMES[t.dtype]], tuple(t.shape[1:])) for t in outputs)
        with nogil:
            code = mpiserve_publish(self._session, &description)
        check(code)

    def next_batch(self, double timeout):
        """Wait for a batch, at most timeout seconds.

        Returns:
            The batch, or None after the time-out.

        Raises:
            ClosedError: If every simulation rank has left.
        """
        cdef mpiserve_batch batch
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_batch_next(self._session, timeout, &batch)
        if code == MPISERVE_ETIMEOUT:
            return None
        check(code)
        made = Batch()
        made.rows = batch.rows
        made.requests = batch.requests
        made.in_place = batch.in_place != 0
        made.inputs = tuple([
            array_at(batch.inputs[i], dtype, (batch.rows, *shape), False)
            for i, (dtype, shape) in enumerate(self._inputs)
        ])
        made.outputs = tuple([
            array_at(batch.outputs[i], dtype, (batch.rows, *shape), True)
            for i, (dtype, shape) in enumerate(self._outputs)
        ])
        return made

    def reply(self, outputs):
        """Answer the batch: one C-contiguous array [rows, ...] per output, of its dtype."""
        cdef const void *data[16]
        cdef const uint8_t[::1] bytes_view
        cdef int code
        self._alive()
        kept = []
        for i, array in enumerate(outputs[:MPISERVE_MAX_TENSORS]):
            bytes_view = array.reshape(-1).view(np.uint8)
            data[i] = &bytes_view[0]
            kept.append(bytes_view)
        with nogil:
            code = mpiserve_batch_reply(self._session, data)
        check(code)

    def fail_batch(self, int code, text):
        """Answer every request of the batch with an error."""
        cdef bytes data = text.encode()
        cdef const char *message = data
        self._alive()
        check(mpiserve_batch_fail(self._session, code, message))

    def serve_echo(self, double timeout):
        """Answer with copies of the inputs, in C, until the time-out."""
        cdef int code
        self._alive()
        with nogil:
            code = mpiserve_serve_echo(self._session, timeout)
        if code != MPISERVE_ETIMEOUT:
            check(code)

    def peer_error(self):
        """Return (world rank or -1, simulation ranks that remain, text). Local."""
        cdef int rank, remaining
        cdef char text[512]
        self._alive()
        check(mpiserve_peer_error(self._session, &rank, &remaining, text))
        return rank, remaining, text_of(text)


cdef class Service:
    """A named model that this simulation rank can ask.

    Arrays are matched to the signature by position or by name, must have its dtype,
    and are copied first if they are not C-contiguous.

    Attributes:
        name: Of the service.
        inputs: The signature's inputs: (name, dtype, shape), shape[0] is -1.
        outputs: The signature's outputs.
        engine: The class that runs the model.
        max_batch_rows: The most rows of one request.
        replicas: How many can serve.
        head: The world rank that this rank asks.
        transport: "shared" or "rma".
    """

    cdef Session _session
    cdef mpiserve_service *_service
    cdef readonly str name, engine, transport
    cdef readonly tuple inputs, outputs
    cdef readonly int64_t max_batch_rows
    cdef readonly int replicas, head
    cdef object _results
    cdef list _output_specs
    cdef mpiserve_stats _totals
    cdef int64_t _answered

    def __call__(self, *arrays, timeout=None, **named):
        """Ask, and wait for the answer.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature.
            timeout: In seconds; None waits without end.
            **named: Inputs by name.

        Returns:
            The output array [rows, ...], or a named tuple if there are several.

        Raises:
            RequestTimeout: After which the request is cancelled.
            ModelError: If the model raised; the text says what.
            ArgumentError, DtypeError: If the arrays do not fit; nothing was sent.
        """
        cdef Request request = self.submit(*arrays, **named)
        try:
            return request.result(timeout)
        except errors.RequestTimeout:
            request.cancel()
            raise

    def submit(self, *arrays, **named):
        """Begin a request and return it; the arrays must not change until it has ended.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature.
            **named: Inputs by name.

        Raises:
            ArgumentError, DtypeError: If the arrays do not fit; nothing was sent.
        """
        cdef mpiserve_tensor inputs[16]
        cdef mpiserve_tensor outputs[16]
        cdef Request request = Request.__new__(Request)
        cdef int code, n_inputs, n_outputs
        self._session._alive()
        request._service = self
        request._inputs = kept = []
        names = [None] * len(arrays) + [name.encode() for name in named]
        if len(names) > MPISERVE_MAX_TENSORS:
            raise errors.from_code(errors.Code.ESHAPE, f"{len(names)} inputs")
        for i, value in enumerate((*arrays, *named.values())):
            kept.append(fill_tensor(&inputs[i], value, self.name))
            inputs[i].name = NULL if names[i] is None else <const char *>names[i]
        rows = kept[0].shape[0] if kept and kept[0].ndim else 0
        request._outputs = made = [
            np.empty((rows, *shape), dtype) for dtype, shape in self._output_specs
        ]
        for i, array in enumerate(made):
            fill_tensor(&outputs[i], array, self.name)
        n_inputs, n_outputs = len(kept), len(made)
        with nogil:
            code = mpiserve_submit(self._service, n_inputs, inputs, n_outputs, outputs,
                                   &request._request)
        check(code)
        return request

    def totals(self):
        """Return what is known of this rank's answered requests, summed up.

        Returns:
            requests, rows, batch_rows, batch_requests, queue_ns, compute_ns, total_ns.
        """
        return {"requests": self._answered, **self._totals}

    cdef int _add(self, const mpiserve_stats *stats) except -1:
        self._answered += 1
        self._totals.rows += stats.rows
        self._totals.batch_rows += stats.batch_rows
        self._totals.batch_requests += stats.batch_requests
        self._totals.queue_ns += stats.queue_ns
        self._totals.compute_ns += stats.compute_ns
        self._totals.total_ns += stats.total_ns
        return 0

    def __repr__(self):
        return f"<service {self.name!r} on rank {self.head}, {self.transport}>"


cdef make_service(Session session, mpiserve_service *found):
    cdef mpiserve_description description
    cdef int replicas, head, transport
    cdef Service service = Service.__new__(Service)
    check(mpiserve_service_describe(found, &description, &replicas, &head, &transport))
    service._session = session
    service._service = found
    service.name = description.name.decode()
    service.engine = description.engine.decode()
    service.inputs = tensors_of(description.inputs, description.n_inputs)
    service.outputs = tensors_of(description.outputs, description.n_outputs)
    service.max_batch_rows = description.max_batch_rows
    service.replicas, service.head = replicas, head
    service.transport = "shared" if transport == MPISERVE_SHARED else "rma"
    service._output_specs = [
        (DTYPES[_DTYPE_NAMES[t.dtype]], tuple(t.shape[1:])) for t in service.outputs
    ]
    names = [tensor.name for tensor in service.outputs]
    service._results = namedtuple("Outputs", names, rename=True) if len(names) > 1 else None
    memset(&service._totals, 0, sizeof(service._totals))
    return service


cdef object fill_tensor(mpiserve_tensor *tensor, object value, str service):
    """Describe an array to the library; returns the array that must stay alive."""
    array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
    code = _DTYPE_CODES.get(array.dtype)
    if code is None:
        raise errors.from_code(
            errors.Code.EDTYPE, f"service '{service}': dtype {array.dtype} is not supported"
        )
    if array.ndim > MPISERVE_MAX_DIMS:
        raise errors.from_code(
            errors.Code.ESHAPE, f"service '{service}': an array of {array.ndim} dimensions"
        )
    tensor.name = NULL
    tensor.dtype = code
    tensor.ndim = array.ndim
    for d in range(array.ndim):
        tensor.shape[d] = array.shape[d]
    tensor.data = <void *><size_t>array.ctypes.data
    return array


cdef class Request:
    """One request under way."""

    cdef Service _service
    cdef mpiserve_request _request
    cdef object _inputs, _outputs, _error
    cdef mpiserve_stats _stats
    cdef bint _ended

    def done(self):
        """Tell whether it has ended, without waiting."""
        cdef int done = 1, code
        if self._ended:
            return True
        self._service._session._alive()
        code = mpiserve_test(self._service._session._session, &self._request, &done, &self._stats)
        if done:
            self._end(code)
        return self._ended

    def result(self, timeout=None):
        """Wait for the answer; a second call gives it again.

        Args:
            timeout: In seconds; None waits without end. After RequestTimeout the
                request goes on, and can be waited for again.
        """
        cdef double left = -1.0 if timeout is None else max(0.0, timeout)
        cdef double piece
        cdef int code = MPISERVE_ETIMEOUT
        cdef mpiserve_session *session
        while not self._ended:
            self._service._session._alive()
            session = self._service._session._session
            piece = SLICE if left < 0 or left > SLICE else left
            with nogil:
                code = mpiserve_wait(session, &self._request, piece, &self._stats)
            if code != MPISERVE_ETIMEOUT or not self._request.id:
                self._end(code)
                break
            if left >= 0:
                left -= piece
                if left <= 0:
                    raise errors.RequestTimeout(
                        errors.Code.ETIMEOUT,
                        f"service '{self._service.name}': no reply from rank "
                        f"{self._service.head} within {timeout} s",
                    )
            PyErr_CheckSignals()
        if self._error is not None:
            raise self._error
        return self._outputs[0] if self._service._results is None else (
            self._service._results(*self._outputs)
        )

    def cancel(self):
        """Give it up; nothing happens if it has ended."""
        if self._ended:
            return
        self._service._session._alive()
        code = mpiserve_cancel(self._service._session._session, &self._request)
        self._ended = True
        self._inputs = self._outputs = None
        self._error = errors.from_code(errors.Code.ECANCELLED, "the request was cancelled")
        check(code)

    @property
    def stats(self):
        """What is known of the answered request, or None: rows, batch_rows, times in ns."""
        return None if not self._ended or self._error is not None else self._stats

    cdef int _end(self, int code) except -1:
        self._ended = True
        self._inputs = None
        if code == MPISERVE_OK:
            self._service._add(&self._stats)
        else:
            self._outputs = None
            self._error = errors.from_code(code, text_of(mpiserve_last_error()))
        return 0

    def __dealloc__(self):
        # Nobody can ask for the answer any more, and its arrays are about to go.
        if not self._ended and self._request.id and self._service._session._session != NULL:
            mpiserve_cancel(self._service._session._session, &self._request)
