"""The simulation side of mpiserve._lib.core: requests that follow time steps."""

cdef int64_t NEVER = 0x7FFFFFFFFFFFFFFF


cdef Pace open_pace(Service service, int64_t every, int64_t lag, bint extrapolate,
                    const mpiserve_options *of_requests):
    cdef Pace pace = Pace.__new__(Pace)
    cdef mpiserve_pace_options options
    if every < 1:
        raise errors.from_code(errors.Code.EARG, f"every is {every}: it must be at least 1 step")
    options.every, options.lag, options.extrapolate = every, lag, extrapolate
    options.deadline, options.priority = of_requests.deadline, of_requests.priority
    pace._service, pace._session = service, service._session
    pace._age = NEVER
    pace.every, pace.lag, pace.extrapolate = every, lag, extrapolate
    pace._session._enter()
    pace._session._leave(mpiserve_pace_open(service._service, &options, &pace._pace))
    return pace


@cython.no_gc_clear
cdef class Pace:
    """The requests of a service that follow time steps; `Service.pace` makes one.

    Call it once in each time step, as a service. The first step waits for its own answer; the
    others get that of the newest step that asked and is at least `lag` steps ago. So it does not
    depend on how fast the model is: a step waits for an answer that is late.

    If rows, or free dimensions, differ from those of the step before, the pace begins anew. So it
    does after an error: that of a request is raised in the step that needs the answer, and says how
    many steps before it was asked. A fallback of the service answers there, too.

    Attributes:
        every, lag, extrapolate: As given to `Service.pace`.
    """

    cdef Session _session
    cdef Service _service
    cdef mpiserve_pace _pace

    def __init__(self):
        raise TypeError("Service.pace makes a pace")

    cdef mpiserve_stats _stats
    cdef int64_t _age  # of the last answer
    cdef bint _in_step, _ended  # of the C library
    cdef readonly int64_t every, lag
    cdef readonly bint extrapolate

    def __call__(self, *arrays, out=None, timeout=None, **named):
        """Do one time step: ask if it is a step that asks, and return the answer that is due.

        Args:
            *arrays: As of a service; they are copied, and may change afterwards.
            out: As of a service. Needed where dimensions are free: results must have its shapes.
            timeout: In seconds; None waits without end.
            **named: Inputs by name.

        Returns:
            The outputs, as a service does.

        Raises:
            RequestTimeout: After which the pace begins anew. For a fallback in place of an error,
                give `Service.pace` a deadline.
            ModelError, and others: As of a service.
            ArgumentError, DtypeError: If the arrays do not fit: that was no step.
        """
        cdef mpiserve_tensor inputs[16]
        cdef mpiserve_tensor outputs[16]
        cdef Service service = self._service
        cdef int n
        if service._ambiguous:
            check_options(service, arrays, {"out": out, "timeout": timeout})
        if is_named(arrays):
            named, arrays = service._by_name(arrays, named, []), ()
        if service._free and out is None:
            text = f"service '{service.name}' has free dimensions: a pace needs out=..."
            raise errors.from_code(errors.Code.EARG, text)
        kept = fill_inputs(service, inputs, arrays, named, &n)  # held until the step is over
        result = service._make_outputs(outputs, rows_of(service, inputs, n)) if out is None else (
            service._check_outputs(outputs, out)
        )
        self._step(n, inputs, outputs, seconds_of(timeout, "timeout"))
        return result

    cdef int _step(self, int n, const mpiserve_tensor *inputs, const mpiserve_tensor *outputs,
                   double seconds) except -1:
        """Take the turn of the pace, and end the step, whatever happens."""
        self._enter()
        self._in_step, self._ended = True, False
        try:
            lock_give(&self._session._lock)
            self._finish(n, inputs, outputs, seconds)
        except BaseException:  # of a handler of signals any
            if not self._ended:
                self._age = NEVER
                self._restart()
            raise
        finally:
            self._in_step = False
        return 0

    cdef int _enter(self) except -1:
        self._session._enter()
        if self._in_step:
            self._session._leave(MPISERVE_OK)
            text = "another thread is in a step of this pace"
            raise errors.from_code(errors.Code.ESTATE, text)
        return 0

    cdef int _finish(self, int n, const mpiserve_tensor *inputs, const mpiserve_tensor *outputs,
                     double seconds) except -1:
        cdef double until = clock_now() + seconds if seconds >= 0 else INFINITY
        cdef int code
        while True:
            code = self._look(n, inputs, outputs, min(max(until - clock_now(), 0), SLICE))
            if code != MPISERVE_ETIMEOUT:
                return self._end(code)
            if clock_now() >= until:
                raise errors.RequestTimeout(
                    errors.Code.ETIMEOUT,
                    f"service '{self._service.name}': no answer within {seconds} s",
                )
            PyErr_CheckSignals()

    cdef int _look(self, int n, const mpiserve_tensor *inputs, const mpiserve_tensor *outputs,
                   double seconds) except? -1:
        """Wait for a while, or shortly where threads take turns."""
        cdef Session session = self._session
        cdef int code, n_outputs = len(self._service._output_specs)
        cdef bint shares
        cdef mpiserve_stats stats
        session._enter()
        shares = session._busy
        with nogil:
            code = mpiserve_pace_step(self._service._service, &self._pace, n, inputs, n_outputs,
                                      outputs, LOOK if shares else seconds, &stats)
            if code == MPISERVE_OK:
                self._stats = stats
            lock_give(&session._lock)
            if shares and code == MPISERVE_ETIMEOUT:
                nap(min(seconds, LONGEST_NAP))
        return code

    cdef int _end(self, int code) except -1:
        self._ended = True
        cause = None
        if code == MPISERVE_OK:
            if self._stats.age <= self._age:  # of an answer that was held it is one more
                self._service._add(&self._stats)
            self._age = self._stats.age
            return 0
        text = text_of(mpiserve_last_error())
        if self._service._fallback is not None:
            cause = take_failure()
        if cause is not None and not isinstance(cause, Exception):
            raise cause  # such as KeyboardInterrupt
        raise errors.from_code(code, text) from cause

    @property
    def age(self):
        """How many steps ago the last answer was asked for; None before the first one."""
        return None if self._age == NEVER else self._age

    @property
    def stats(self):
        """The statistics of the last answer, or None: as of a request.

        Also `age`, and `extrapolated_rows`, which are not held.
        """
        if self._age == NEVER:
            return None
        return {**self._stats, "source": SOURCES[self._stats.source]}

    def restart(self):
        """Forget the answers, and cancel what is under way: the next step waits for its own answer.

        For rows that are others, though as many, such as particles that were sorted; and when a
        checkpoint is written, so that a run from it computes the same.
        """
        self._enter()
        self._age = NEVER
        self._session._leave(mpiserve_pace_restart(self._service._service, &self._pace))

    cdef int _restart(self) except -1:
        """Take back a step that has not ended, unless its session was closed meanwhile."""
        if self._session._session == NULL:
            return 0
        self._session._enter()
        self._session._leave(mpiserve_pace_restart(self._service._service, &self._pace))
        return 0

    def close(self):
        """Cancel what is under way, and free the pace; nothing happens if it is closed."""
        if not self._pace.id or self._session._session == NULL:
            return
        self._enter()
        self._session._leave(mpiserve_pace_close(self._service._service, &self._pace))

    def __repr__(self):
        return described.pace(self, self._service.name)

    def __dealloc__(self):
        cdef Leftover leftover
        if self._pace.id and self._session._holds():
            leftover = Leftover.__new__(Leftover)
            leftover.service = self._service._service
            leftover.pace = self._pace
            self._session._drop(leftover)
