"""The simulation side of mpiserve._lib.core: services."""


# Keywords that are no inputs.
OPTIONS = ("out", "timeout", "deadline", "priority")


cdef class Service:
    """A named model that this simulation rank can ask.

    Inputs are what numpy takes for an array, or CPU tensors of torch. They are matched to the
    signature by position or by name, or by the keys of a dict that is the only argument
    by position. They must have its dtype, and are copied first if they are not C-contiguous.
    An input with the name of an option, such as `timeout`, is given by position or in a dict.

    Attributes:
        name: Of the service.
        inputs: The signature's inputs: (name, dtype, shape), shape[0] is -1, the rows.
            Other dimensions that are -1 are free: each request has its own; and all are if rows is
            "ragged".
        outputs: The signature's outputs.
        largest_inputs, largest_outputs: Their shapes, with the largest size of free dimensions.
        engine: The class that runs the model.
        version: The name of the model's version at open; "" if it has none.
        max_batch_rows: The most rows of a batch; larger requests are cut into pieces.
        replicas: How many can serve.
        head: The world rank that this rank asks.
        transport: "shared" or "rma".
        rows: At open: "independent"; "together", if each request is a call of the model; or "none",
            if arrays have the shapes of the signature, where others have [rows, ...]; "ragged": the
            same, where requests of any shapes share a batch.
        allow_empty: Whether requests may have 0 rows.
        checks: What the values of an answer must be, by the name of the output: (whether finite,
            the least, the greatest), None for no bound. Outputs with any values are not there.
        uncertainty_limit: The uncertainty above which a row is not trusted; None: all are.
    """

    cdef Session _session
    cdef mpiserve_service *_service
    cdef readonly str name, engine, version, transport, rows
    cdef readonly bint allow_empty
    cdef bint _whole, _local  # tensors have no rows; it has local models
    cdef bint _far  # perhaps over a network: its flushes may wait, and for ever if that is cut
    cdef readonly tuple inputs, outputs, largest_inputs, largest_outputs
    cdef bint _free  # dimensions are
    cdef readonly int64_t max_batch_rows
    cdef readonly int replicas, head
    cdef readonly dict checks
    cdef readonly object uncertainty_limit
    cdef object _results
    cdef list _input_specs, _output_specs, _buffers, _endings
    cdef list _names  # of the inputs
    cdef dict _ambiguous  # the positions of inputs that are called as an option
    cdef int64_t _row_bytes
    cdef mpiserve_stats _totals
    cdef int64_t _answered, _streams
    cdef bint _unrecorded  # and that was said
    cdef object _fallback  # or None

    def __call__(self, *arrays, out=None, timeout=None, priority=0, **named):
        """Submit a request and wait for its result.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature, or one
                dict of them by name.
            out: Where to put the outputs: a writable C-contiguous array, or a tuple of
                them if there are several, or CPU tensors of torch; new arrays if not given.
            timeout: In seconds; None waits without end.
            priority: As of submit.
            **named: Inputs by name.

        Returns:
            The output array [rows, ...], or a named tuple if there are several. Those given as
            `out` are given back; a result must have their shapes, where dimensions are free.

        Raises:
            RequestTimeout: After which the request is cancelled.
            QueueFullError: If the service rejects what its queue has no room for.
            ModelError: If the model raised; the text says what.
            ArgumentError, DtypeError: If the arrays do not fit; nothing was sent.
        """
        cdef Request request
        if self._ambiguous:
            check_options(self, arrays, {"out": out, "timeout": timeout, "priority": priority})
        seconds_of(timeout, "timeout")
        if (self._local or self._fallback is not None) and timeout is not None:
            # The fallback answers at a deadline, which ends a request; a time-out does not.
            return self._submit(arrays, named, out, timeout, priority).result()
        request = self._submit(arrays, named, out, None, priority)
        try:
            return request.result(timeout)
        except errors.RequestTimeout:
            request.cancel()
            raise

    def vjp(self, *arrays, **options):
        """Request y = f(x) and v J, with J = dy/dx, from the service `NAME.vjp`, and wait.

        `arrays` are the inputs, then `vector_Y` for each floating output Y; `options` are those
        of a call. Returns a named tuple: the outputs, then `vjp_X` for each floating input X."""
        return self._session.service(self.name + ".vjp")(*arrays, **options)

    def jvp(self, *arrays, **options):
        """As `vjp`, from `NAME.jvp`: inputs and each `tangent_X`; outputs and each `jvp_Y`."""
        return self._session.service(self.name + ".jvp")(*arrays, **options)

    def jacobian(self, *arrays, **options):
        """As `vjp`, from `NAME.jacobian`: inputs; outputs and `dY_dX` [rows, of Y, of X]."""
        return self._session.service(self.name + ".jacobian")(*arrays, **options)

    def submit(self, *arrays, out=None, deadline=None, priority=0, **named):
        """Begin a request and return it; the arrays must not change until it has ended.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature, or one
                dict of them by name.
            out: As of a call; the arrays must not be touched until the request has ended.
            deadline: In seconds from now; with 0 or less there is no time left. A request that
                has not ended by then ends with DeadlineError; a model that has not begun
                with it never sees it.
            priority: -100 to 100. Where more requests wait than a batch holds, higher
                ones are computed first; those of one rank stay in their order.
            **named: Inputs by name.

        Raises:
            ArgumentError, DtypeError: If the arguments do not fit; nothing was sent.
        """
        if self._ambiguous:
            check_options(self, arrays, {"out": out, "deadline": deadline, "priority": priority})
        return self._submit(arrays, named, out, deadline, priority)

    def stream(self, *arrays, timeout=None, **named):
        """Submit one row, and yield its tokens as they come.

        The service must have an input `stream`, and the outputs `tokens` and `lengths`.
        Stopping before the end, with `close()` or by deleting the generator, ends the stream at
        the server too.

        Args:
            *arrays: One array [1, ...] per input but `stream`, in the order of the signature.
            timeout: In seconds, for the next tokens; None waits without end.
            **named: Inputs by name.

        Yields:
            The new tokens, an array of one dimension.

        Raises:
            RequestTimeout: After which the stream is ended.
            ModelError: If the model raised, or has no such input.
        """
        return stream_of(self, arrays, timeout, named)

    cdef dict _by_name(self, tuple arrays, dict named, list names):
        """Merge inputs given by position, or in a dict, with those given by name."""
        cdef dict given
        if is_named(arrays):
            given = arrays[0]
        elif len(arrays) <= len(names):
            given = dict(zip(names, arrays, strict=False))
        else:
            raise errors.from_code(
                errors.Code.ESHAPE,
                f"service '{self.name}': {len(arrays)} arrays for inputs {', '.join(names)}",
            )
        for name in given:
            if type(name) is not str or name in named:
                raise errors.from_code(
                    errors.Code.ENAME,
                    f"service '{self.name}': input {name!r} is "
                    + ("given twice" if name in named else "no name"),
                )
        return given | named

    cdef Request _submit(self, tuple arrays, dict named, object out, object deadline,
                         object priority):
        cdef mpiserve_tensor inputs[16]
        cdef mpiserve_tensor outputs[16]
        cdef mpiserve_options options
        cdef Request request = Request.__new__(Request)
        cdef int code, n, n_outputs = len(self._output_specs)
        cdef int64_t rows
        cdef Session session = self._session
        cdef tuple kept
        if is_named(arrays):
            named, arrays = self._by_name(arrays, named, []), ()
        fill_options(&options, deadline, priority)
        kept = fill_inputs(self, inputs, arrays, named, &n)
        rows = rows_of(self, inputs, n)
        request._service = self
        request._session = session
        request._outputs = self._make_outputs(outputs, rows) if out is None else (
            self._check_outputs(outputs, out)
        )
        if not self._free:  # a fallback may be set before the request ends
            request._trusted = flags_for(&options, rows)
        elif out is None:
            request._shapes = any_shapes(&options, n_outputs)
            kept = keep(kept, request._shapes)
        request._inputs, request._kept = arrays, kept
        session._enter()
        if rows * self._row_bytes > LARGE or self._far:
            with nogil:
                code = mpiserve_submit(self._service, n, inputs, n_outputs, outputs,
                                       &options, &request._request)
        else:
            code = mpiserve_submit(self._service, n, inputs, n_outputs, outputs,
                                   &options, &request._request)
        session._leave(code)
        return request

    cdef object _make_outputs(self, mpiserve_tensor *tensors, int64_t rows):
        rows = NO_ROWS if self._whole else rows
        made = [new_array(dtype, shape, rows) for dtype, shape in self._output_specs]
        for i in range(len(made)):
            as_output(&tensors[i], made[i], self.name)
        return made[0] if self._results is None else self._results(*made)

    cdef object _check_outputs(self, mpiserve_tensor *tensors, object out):
        cdef int i
        if self._results is None:
            as_output(&tensors[0], out, self.name)
            return out
        if not isinstance(out, tuple) or len(out) != len(self._output_specs):
            raise errors.from_code(
                errors.Code.EARG,
                f"service '{self.name}': out must be a tuple of {len(self._output_specs)} arrays",
            )
        for i in range(len(out)):
            as_output(&tensors[i], out[i], self.name)
        check_apart(tensors, len(out), self.name)
        return self._results(*out)

    def pace(self, *, every=1, lag=0, extrapolate=False, deadline=None, priority=0):
        """Couple the service to the time steps of this rank: one call in each step, as of a service.

        Args:
            every: Steps from one request to the next. In the steps between, the last answer is
                held, or continued on a line.
            lag: Steps after its own in which the answer of a request is needed, so that a model
                computes beside so many steps of the simulation. With `every=1` the answer is always
                that of `lag` steps ago; it is never older than `lag + every - 1` steps.
            extrapolate: Whether answers are continued on the line through the last two, from their
                step to this one.
            deadline: Of each request, in seconds from its submission: as of `submit`.
            priority: As of `submit`.

        Raises:
            ArgumentError: If a number is out of range, an output cannot be extrapolated, or the
                service has an uncertainty.
        """
        cdef mpiserve_options options
        fill_options(&options, deadline, priority)
        return open_pace(self, whole(every, "every"), whole(lag, "lag"), extrapolate, &options)

    def record(self, inputs, outputs):
        """Put pairs that this rank has computed itself into the capture of the service.

        As mpiserve_record() says: no answer is waited for, and the arrays may change when the call
        returns. An error of a record is raised by the next one, or by `close`. If the service is
        not captured, nothing is sent, and the log says so once.

        Args:
            inputs: One array [rows, ...]; a tuple of them, in the order of the signature; or a dict
                of them by name.
            outputs: The same of the outputs: what the physics says.

        Returns:
            Whether the pairs were sent.

        Raises:
            ArgumentError, DtypeError: If the arrays do not fit; nothing was sent.
            PeerError: If an inference rank died before, with pairs that it had not written.
        """
        return record_pairs(self, inputs, outputs)

    def fallback(self, function):
        """Let a function answer what the service does not, such as the physics.

        A request of this rank that would end with an error of the service's, as ModelError,
        QueueFullError, DeadlineError, RequestTimeout of a call, or PeerError about an inference
        rank, has the results of the function instead. Errors of the caller's, such as
        ArgumentError, and PeerError about a simulation rank stay what they are. Each cause is
        logged once; `stats` of a request and the counter `fallbacks` say how often it happens.

        The function gets one array [rows, ...] per input, in the order of the signature, and
        returns the outputs as a model of the backend `python` does: an array, or a sequence of
        them, or a dict by name. A result of another dtype of the same kind is cast. The thread
        that waits for the request runs it, and other threads that use the session wait meanwhile.
        The function must not use the session. If it raises, the request ends with the error of
        the service, whose text says so.

        If the service has local models (`fallback = "local"`), the function answers what these do
        not. With either, the time-out of a call is the deadline of its request.

        Args:
            function: The function; None for none. It holds for requests that end from now on.

        Returns:
            The function: this is a decorator, too.
        """
        cdef Session session = self._session
        if self._free and function is not None:
            text = f"service '{self.name}' has free dimensions: it can have no fallback"
            raise errors.from_code(errors.Code.EARG, text)
        if function is not None and not callable(function):
            text = f"a fallback must be callable, got {function!r:.60}"
            raise errors.from_code(errors.Code.EARG, text)
        names = [tensor.name for tensor in self.outputs]
        made = None if function is None else Fallback(self.name, names, function)
        session._enter()
        # Another thread may be about to end a request: neither is there without the other.
        self._fallback = made
        if made is None:
            session._leave(mpiserve_fallback_set(self._service, NULL, NULL))
        else:
            session._leave(mpiserve_fallback_set(self._service, run_fallback, <void *>self))
        return function

    cdef int _answer(self, int64_t rows, const void *const *inputs, void *const *outputs,
                     str why) except -1:
        cdef int64_t dim = NO_ROWS if self._whole else rows
        given = [array.copy() for array in arrays_at(inputs, self._input_specs, dim, False)]
        taken = arrays_at(<const void *const *>outputs, self._output_specs, dim, True)
        self._session._answering = PyThread_get_thread_ident()
        try:
            self._fallback.answer(given, taken, rows, why)
        finally:
            self._session._answering = 0
        return 0

    @property
    def state(self):
        """The state of the replica that can serve best, as of now: "ready", "busy" or another.

        `launched` (a spare, or after `unload` or `stop`), `loading`, `ready`, `busy`, `suspended`,
        `restarting`, `failed` or `gone`. Between nodes this is a message, and may wait for one.
        """
        return self._session.state(self.name).state

    def states(self):
        """Return the state of each replica, those that could not load their model included.

        Returns:
            Named tuples: replica, rank (of its head, in the world), state, and entered: when it
            entered each state last, in seconds since 1970; `busy` only while it is busy.
        """
        return self._session.states(self.name)

    def wait_ready(self, timeout=None):
        """Wait until a replica is ready or busy.

        Args:
            timeout: In seconds; None waits without end.

        Raises:
            ModelError: If every replica has failed or is gone, with ranks and times.
            RequestTimeout: After the time-out.
        """
        self._session.wait_ready(self.name, timeout)

    def empty_input(self, rows):
        """Take memory for inputs that the model reads where it lies, without a copy.

        Args:
            rows: Of the array; a request may use a part of them. 1 where tensors have no rows.

        Returns:
            An array [rows, ...], or a tuple of them, one per input. A call whose input
            arrays all begin at the same row of it copies nothing. It is given back
            when no array views it any more.

        Raises:
            Error: With code ENOMEM, if too many are taken or the pool is full.
        """
        return self._half(whole(rows, "rows"), False)

    def empty_output(self, rows):
        """Take memory for results, to be given as `out`; otherwise like `empty_input`.

        The n-th array of this function and the n-th of `empty_input` of the same rows
        are one buffer. Services that overwrite their inputs, as echo does, need that to
        copy nothing: the result then is where the input was.
        """
        return self._half(whole(rows, "rows"), True)

    cdef object _half(self, int64_t rows, bint outputs):
        cdef Buffer buffer
        if self._free:
            text = f"service '{self.name}' has free dimensions: give arrays of your own"
            raise errors.from_code(errors.Code.EARG, text)
        if forks:
            refuse_fork()
        for reference in self._buffers:
            buffer = reference()
            if buffer is not None and buffer._buffer.rows == rows and (
                buffer._outputs_free if outputs else buffer._inputs_free
            ):
                break
        else:
            buffer = self._take(rows)
        if outputs:
            buffer._outputs_free = False
        else:
            buffer._inputs_free = False
        return buffer._views(outputs)

    cdef Buffer _take(self, int64_t rows):
        cdef Buffer buffer = Buffer.__new__(Buffer)
        cdef int code
        buffer._service = self
        buffer._session = self._session
        self._session._enter()
        with nogil:
            code = mpiserve_buffer_take(self._service, rows, &buffer._buffer)
        self._session._leave(code)
        buffer._inputs_free = buffer._outputs_free = True
        self._buffers = [known for known in self._buffers if known() is not None]
        self._buffers.append(weakref.ref(buffer))
        return buffer

    def check_threads(self):
        """Raise an error, of code ETHREAD, where MPI does not let a thread of mpiserve call it."""
        waiting.check_threads(self._session.alone)

    def totals(self):
        """Return the statistics of this rank's answered requests, summed up.

        Returns:
            requests, and the sums of the counts and times that `stats` of a request has.
        """
        totals = {"requests": self._answered, **self._totals}
        for key in ("generation", "source", "age", "extrapolated_rows"):
            del totals[key]
        return totals

    cdef int _add(self, const mpiserve_stats *stats) except -1:
        self._answered += 1
        self._totals.rows += stats.rows
        self._totals.batch_rows += stats.batch_rows
        self._totals.batch_requests += stats.batch_requests
        self._totals.queue_ns += stats.queue_ns
        self._totals.compute_ns += stats.compute_ns
        self._totals.total_ns += stats.total_ns
        self._totals.fallback_rows += stats.fallback_rows
        self._totals.local_rows += stats.local_rows
        self._totals.untrusted_rows += stats.untrusted_rows
        return 0

    def __repr__(self):
        return described.service(self)
