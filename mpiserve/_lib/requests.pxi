"""The simulation side of mpiserve._lib.core: requests under way, and options of them."""

cdef double LOOK = 1e-6  # seconds that one look may last where threads take turns
cdef double FIRST_NAP = 20e-6, LONGEST_NAP = 500e-6
cdef enum:
    YIELDS = 30  # between looks, before the naps
    GOES_ON = 1  # no code of the library


cdef object ZERO = 0


cdef int64_t whole(object value, str what) except? -1:
    """Check a whole number, and that it is one."""
    if value is ZERO:
        return 0
    try:
        return value if type(value) is int else index(value)
    except (TypeError, OverflowError):
        raise errors.from_code(
            errors.Code.EARG, f"{what} is {value!r:.60}: it must be a whole number"
        ) from None


cdef double deadline_of(object value) except? -1:
    """Check a deadline. 0 means no deadline to the library, but no time left to the caller."""
    cdef double seconds = number_of(value, "deadline")
    if not -1e300 < seconds < 1e300:
        raise errors.from_code(
            errors.Code.EARG,
            f"deadline is {value}: it must be a number of seconds, or None for no deadline",
        )
    return max(seconds, 1e-9)


cdef double seconds_of(object value, str what) except? -2:
    """Check a time-out; None becomes -1, the library's wait without end."""
    if value is None:
        return -1.0
    cdef double seconds = number_of(value, what)
    if not seconds >= 0:  # refuses NaN too
        raise errors.from_code(
            errors.Code.EARG,
            f"{what} is {value}: it must be a number of seconds from 0 on, or None for no limit",
        )
    return seconds


cdef double number_of(object value, str what) except? -1:
    """Refuse arrays too: numpy makes a number of one that has one element."""
    if type(value) is float:
        return value
    try:
        if not getattr(value, "ndim", 0):
            return <double>value
    except (TypeError, OverflowError):
        pass
    raise errors.from_code(errors.Code.EARG, f"{what} is {value!r:.60}: it must be a number")


cdef bint is_named(tuple arrays):
    """Whether the inputs were given as one dict."""
    return len(arrays) == 1 and isinstance(arrays[0], dict)


cdef int check_options(Service service, tuple arrays, dict options) except -1:
    """Refuse an option that may be meant as the input of that name."""
    given = arrays[0] if is_named(arrays) else ()
    for name, at in service._ambiguous.items():
        value = options.get(name)
        if value is None or (name == "priority" and type(value) is int):
            continue
        if not given and at >= len(arrays) or given and name not in given:
            raise errors.from_code(
                errors.Code.EARG,
                f"service '{service.name}' has an input '{name}', and {name}=... is an option: "
                f"give the input by position or in a dict, as in service({{'{name}': ...}})",
            )
    return 0


cdef tuple fill_inputs(Service service, mpiserve_tensor *inputs, tuple arrays, dict named,
                       int *given):
    """Describe inputs; return what else than `arrays` must be kept, or None."""
    cdef int n = len(arrays)
    cdef tuple kept = None
    if n + len(named) > MPISERVE_MAX_TENSORS:
        raise errors.from_code(errors.Code.ESHAPE, f"{n + len(named)} inputs")
    for i in range(n):
        array = as_input(&inputs[i], arrays[i], service.name, service._names, i)
        if array is not arrays[i]:
            kept = keep(kept, array)
    for name, value in named.items():
        encoded = encode(name)
        array = as_input(&inputs[n], value, service.name, [name], 0)
        kept = keep(keep(kept, encoded), array)
        inputs[n].name = <const char *>encoded
        n += 1
    given[0] = n
    return kept


cdef int64_t rows_of(Service service, const mpiserve_tensor *inputs, int n) noexcept:
    return 1 if service._whole else inputs[0].shape[0] if n and inputs[0].ndim else 0


cdef int fill_options(mpiserve_options *options, object deadline, object priority) except -1:
    cdef int64_t level = whole(priority, "priority")
    options.deadline = 0
    options.result_shapes = NULL
    options.trusted = NULL
    if deadline is not None:
        options.deadline = deadline_of(deadline)
    if level < -100 or level > 100:
        raise errors.from_code(errors.Code.EARG, f"priority {level} is not in -100 to 100")
    options.priority = <int32_t>level
    return 0


cdef int look(mpiserve_session **session, lock *door, mpiserve_request *request, double seconds,
              mpiserve_stats *stats) noexcept nogil:
    """Wait in short looks, between which other threads may enter. The caller holds the lock."""
    cdef double until = clock_now() + seconds, pause = 0
    cdef int code, looks = 0
    while True:
        code = mpiserve_wait(session[0], request, LOOK if pause else 0, stats)
        if code == MPISERVE_ETIMEOUT and request.id:
            code = GOES_ON
        lock_give(door)
        if code != GOES_ON:
            return code
        while True:
            if clock_now() >= until:
                return GOES_ON
            looks += 1
            if looks < YIELDS:
                sched_yield()
            else:
                pause = min(2 * pause, LONGEST_NAP) if pause else FIRST_NAP
                nap(pause)
            if lock_try(door):
                break
        # Another thread has closed the session, or seen the end of the request.
        if session[0] == NULL or not request.id:
            lock_give(door)
            return GOES_ON


@cython.freelist(8)
@cython.no_gc_clear
cdef class Request:
    """One request under way.

    A coroutine may `await` it. `concurrent.futures.wait` and `as_completed` take requests, also
    beside futures. For these, and for callbacks, a thread looks for the end of the request, which
    may call MPI while the program does; so MPI has to allow that (MULTIPLE), and in a session of
    one process that threads take turns (SERIALIZED). Else an error has the code ETHREAD.
    """

    cdef Session _session
    cdef Service _service
    cdef mpiserve_request _request
    cdef object _outputs
    cdef object _trusted  # a byte for each row; None: no fallback can answer, so all are
    cdef object _shapes  # of the results, as the library says; None: those of the outputs
    cdef tuple _inputs, _kept  # what the library reads until the end; copies of inputs, names
    cdef str _text
    cdef object _cause  # what the fallback raised
    cdef mpiserve_stats _stats
    cdef int _code
    cdef bint _ended
    cdef object _watch  # None: nobody waits for its end by other means than `result`

    def done(self):
        """Return whether the request has ended, without waiting."""
        cdef mpiserve_session *session
        cdef int done = 0, code = MPISERVE_OK
        if self._ended:
            return True
        self._session._enter()
        session = self._session._session
        if not self._request.id:  # another thread is about to report the end
            pass
        elif self._service._far:
            with nogil:
                code = mpiserve_test(session, &self._request, &done, &self._stats)
        else:
            code = mpiserve_test(session, &self._request, &done, &self._stats)
        lock_give(&self._session._lock)
        if done or code != MPISERVE_OK:
            self._end(code)
        return self._ended

    def result(self, timeout=None):
        """Wait for the result; a second call returns it again.

        Args:
            timeout: In seconds; None waits without end. After RequestTimeout the
                request goes on, and can be waited for again.
        """
        self._wait_end(timeout)
        if self._code != MPISERVE_OK:
            raise self._failure()
        return self._outputs

    def exception(self, timeout=None):
        """Wait for the end, and return the error that `result` raises, or None.

        Raises:
            RequestTimeout: After so many seconds; the request goes on.
            CancelledError: If the request was cancelled, as futures do.
        """
        self._wait_end(timeout)  # what it raises is no error of the request
        if self._code == errors.Code.ECANCELLED:
            raise self._failure()
        return None if self._code == MPISERVE_OK else self._failure()

    @cython.final
    cdef int _wait_end(self, object timeout) except -1:
        cdef double left = seconds_of(timeout, "timeout")
        cdef double until = clock_now() + left if left >= 0 else 0
        while not self._ended:
            self._wait(SLICE if left < 0 or left > SLICE else left)
            if self._ended:
                break
            if left >= 0:
                left = until - clock_now()
                if left <= 0:
                    raise errors.RequestTimeout(
                        errors.Code.ETIMEOUT,
                        f"service '{self._service.name}': no reply from rank "
                        f"{self._service.head} within {timeout} s",
                    )
            PyErr_CheckSignals()
        return 0

    @cython.final
    cdef object _failure(self):
        """Return the error of the request, which has ended without a result."""
        if self._cause is not None and not isinstance(self._cause, Exception):
            return self._cause  # such as KeyboardInterrupt
        error = errors.from_code(self._code, self._text)
        error.__cause__ = self._cause
        return error

    def cancelled(self):
        """Return whether the request was cancelled."""
        return self.done() and self._code == errors.Code.ECANCELLED

    def add_done_callback(self, function):
        """Call a function with this request when it has ended; at once if it has.

        Another thread calls it, soon after the end, and drops what it returns; what it raises is
        logged. Functions are called in the order in which they were added. The request is kept
        until then, and so is not cancelled when nobody holds it.
        """
        self._watched().add(function, self)

    def __await__(self):
        return waiting.awaited(self)

    cdef object _watched(self):
        if self._watch is None:
            waiting.check_threads(self._session.alone)
            made = waiting.Watch()
            if self._watch is None:  # another thread may have been faster
                self._watch = made
                waiting.watch(made, self)
        return self._watch

    # What concurrent.futures reads of a future.

    @property
    def _condition(self):
        return self._watched().condition

    @property
    def _waiters(self):
        return self._watched().waiters

    @property
    def _state(self):
        return self._watched().state

    def __repr__(self):
        name = self._service.name
        return described.request(self, name, self._ended, self._code, self._text)

    @cython.final
    cdef int _wait(self, double seconds) except -1:
        cdef Session session = self._session
        cdef int code = GOES_ON
        session._enter()
        with nogil:
            if not self._request.id:  # another thread is about to report the end
                lock_give(&session._lock)
                nap(FIRST_NAP)
            elif session._busy:
                code = look(&session._session, &session._lock, &self._request, seconds,
                            &self._stats)
            else:
                code = mpiserve_wait(session._session, &self._request, seconds, &self._stats)
                if code == MPISERVE_ETIMEOUT and self._request.id:
                    code = GOES_ON
                lock_give(&session._lock)
        return 0 if code == GOES_ON else self._end(code)

    def cancel(self):
        """End the request without a result; nothing happens if it has ended."""
        cdef int code = MPISERVE_OK
        if self._ended:
            return
        self._session._enter()
        if not self._request.id:  # another thread has seen its end
            self._session._leave(MPISERVE_OK)
            return
        code = mpiserve_cancel(self._session._session, &self._request)
        lock_give(&self._session._lock)
        self._finish(errors.Code.ECANCELLED, "the request was cancelled")
        check(code)

    @property
    def stats(self):
        """The statistics of the answered request, or None: mpiserve_stats by name.

        `source` is "model"; or "local" if a local model has answered `local_rows` of the rows, or
        "fallback" if a fallback has answered `fallback_rows` of them. `untrusted_rows` of them were
        too uncertain.
        """
        if not self._ended or self._code != MPISERVE_OK:
            return None
        return {**self._stats, "source": SOURCES[self._stats.source]}

    @property
    def trusted(self):
        """Which rows are a model's, and trusted: bools [rows]; None without a result.

        False where the uncertainty is above `service.uncertainty_limit`, or the fallback has
        answered. Where tensors have no rows, a request is one.
        """
        if not self._ended or self._code != MPISERVE_OK:
            return None
        if self._trusted is None:
            return np.ones(self._stats.rows, np.bool_)
        return np.frombuffer(self._trusted, np.bool_)

    @cython.final
    cdef int _end(self, int code) except -1:
        """Take the code of a call: the request has ended, or the call failed and it goes on."""
        if self._request.id:
            return check(code)
        if code == MPISERVE_OK:
            self._service._add(&self._stats)
            return self._finish(code, None)
        if self._service._fallback is not None:
            self._cause = take_failure()
        return self._finish(code, text_of(mpiserve_last_error()))

    @cython.final
    cdef int _finish(self, int code, str text) except -1:
        self._inputs = self._kept = None
        if code != MPISERVE_OK:
            self._outputs = None
        elif self._shapes is not None:
            self._outputs = shaped(self._outputs, self._shapes, self._service._results)
        self._code, self._text = code, text
        self._ended = True
        return 0

    def __dealloc__(self):
        cdef Leftover leftover
        # Nobody can get the result any more, and its arrays are about to go.
        if not self._ended and self._request.id and self._session._holds():
            leftover = Leftover.__new__(Leftover)
            leftover.request = self._request
            leftover.kept = (self._inputs, self._outputs, self._kept, self._trusted)
            self._session._drop(leftover)


cdef object flags_for(mpiserve_options *options, int64_t rows):
    """Make room for what the library says of each row."""
    flags = PyByteArray_FromStringAndSize(NULL, rows)
    options.trusted = <uint8_t *>PyByteArray_AS_STRING(flags)
    return flags


cdef object any_shapes(mpiserve_options *options, int n):
    """Make room for the shapes of results, which may be any that the outputs have room for."""
    cdef int64_t[:, ::1] view
    shapes = np.empty((n, MPISERVE_MAX_DIMS), np.int64)
    view = shapes
    options.result_shapes = &view[0, 0]
    return shapes


cdef object shaped(object outputs, object shapes, object results):
    """Return results of their own dimensions, from arrays that have room for the largest."""
    cdef int64_t[:, ::1] view = shapes
    cdef int i
    if results is None:
        return beginning(outputs, &view[0, 0])
    return results(*[beginning(array, &view[i, 0]) for i, array in enumerate(outputs)])


cdef tuple keep(tuple things, object thing):
    """Add to what is kept. Not to a list, which the garbage collector may empty."""
    return (thing,) if things is None else things + (thing,)
