"""The simulation side of mpiserve._broker: services, buffers, requests."""


# What a request does with its stream: the second number of the input `stream`.
STREAM_OPENS, STREAM_READS, STREAM_ENDS = range(3)


cdef class Buffer:
    """Memory of one mpiserve_buffer; given back when no array views it any more."""

    cdef Service _service
    cdef mpiserve_buffer _buffer
    cdef bint _inputs_free, _outputs_free
    cdef object __weakref__

    cdef object _views(self, bint outputs):
        cdef void **data = &self._buffer.outputs[0] if outputs else &self._buffer.inputs[0]
        cdef list specs = self._service._output_specs if outputs else self._service._input_specs
        views = [
            view_rows(data[i], dtype, shape, self._buffer.rows, True, self)
            for i, (dtype, shape) in enumerate(specs)
        ]
        return views[0] if len(views) == 1 else tuple(views)

    def __dealloc__(self):
        # The window itself is gone after close; its memory is kept for those who look at it.
        if self._buffer.id and self._service._session._session != NULL:
            mpiserve_buffer_give(self._service._service, &self._buffer)


cdef class Service:
    """A named model that this simulation rank can ask.

    Arrays are matched to the signature by position or by name, must have its dtype,
    and are copied first if they are not C-contiguous.

    Attributes:
        name: Of the service.
        inputs: The signature's inputs: (name, dtype, shape), shape[0] is -1.
        outputs: The signature's outputs.
        engine: The class that runs the model.
        version: The name of the model's version at open; "" if it has none.
        max_batch_rows: The most rows of one request.
        replicas: How many can serve.
        head: The world rank that this rank asks.
        transport: "shared" or "rma".
        rows: Whether requests share batches, at open: "independent", or "together" if each is
            a call of the model.
    """

    cdef Session _session
    cdef mpiserve_service *_service
    cdef readonly str name, engine, version, transport, rows
    cdef bint _far  # perhaps over a network: its flushes may wait, and for ever if that is cut
    cdef readonly tuple inputs, outputs
    cdef readonly int64_t max_batch_rows
    cdef readonly int replicas, head
    cdef object _results
    cdef list _input_specs, _output_specs, _buffers, _endings
    cdef int64_t _row_bytes
    cdef mpiserve_stats _totals
    cdef int64_t _answered, _streams

    def __call__(self, *arrays, out=None, timeout=None, priority=0, **named):
        """Ask, and wait for the answer.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature.
            out: Where to put the outputs: a writable C-contiguous array, or a tuple of
                them if there are several; new arrays if not given.
            timeout: In seconds; None waits without end.
            priority: As of submit.
            **named: Inputs by name.

        Returns:
            The output array [rows, ...], or a named tuple if there are several.

        Raises:
            RequestTimeout: After which the request is cancelled.
            QueueFullError: If the service rejects what its queue has no room for.
            ModelError: If the model raised; the text says what.
            ArgumentError, DtypeError: If the arrays do not fit; nothing was sent.
        """
        cdef Request request = self._submit(arrays, named, out, None, priority)
        try:
            return request.result(timeout)
        except errors.RequestTimeout:
            request.cancel()
            raise

    def submit(self, *arrays, out=None, deadline=None, priority=0, **named):
        """Begin a request and return it; the arrays must not change until it has ended.

        Args:
            *arrays: One array [rows, ...] per input, in the order of the signature.
            out: As of a call; the arrays must not be touched until it has ended.
            deadline: In seconds from now. A request that has not ended by then ends with
                DeadlineError, and if the model has not begun with it, never will.
            priority: -100 to 100. Where more requests wait than a batch holds, higher
                ones are computed first; those of one rank stay in their order.
            **named: Inputs by name.

        Raises:
            ArgumentError, DtypeError: If the arguments do not fit; nothing was sent.
        """
        return self._submit(arrays, named, out, deadline, priority)

    def stream(self, *arrays, timeout=None, **named):
        """Ask for one row, and get its tokens as they come: a generator.

        The service must have an input `stream`, and the outputs `tokens` and `lengths`.
        Whoever stops before the end ends the stream at the server too: with `close()`, or
        when the generator goes.

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
        cdef int64_t number
        if "stream" not in [tensor.name for tensor in self.inputs]:
            raise errors.from_code(
                errors.Code.ENAME, f"service '{self.name}' has no input 'stream'"
            )
        self._streams += 1
        number = self._streams
        names = [tensor.name for tensor in self.inputs if tensor.name != "stream"]
        named = dict(zip(names, arrays, strict=False)) | named
        what, ended = STREAM_OPENS, False
        try:
            while not ended:
                out = self(timeout=timeout, stream=np.array([[number, what]], np.int64), **named)
                count = int(out.lengths[0])
                ended = count == 0
                if not ended:
                    yield out.tokens[0, :count]
                what = STREAM_READS
        except errors.ModelError:
            ended = True
            raise
        finally:
            if not ended and self._session._session != NULL:
                # Kept, because a request that nobody has is cancelled; not waited for.
                self._endings = [one for one in self._endings if not one.done()]
                self._endings.append(
                    self.submit(stream=np.array([[number, STREAM_ENDS]], np.int64), **named)
                )

    cdef Request _submit(self, tuple arrays, dict named, object out, object deadline,
                         object priority):
        cdef mpiserve_tensor inputs[16]
        cdef mpiserve_tensor outputs[16]
        cdef mpiserve_options options
        cdef Request request = Request.__new__(Request)
        cdef int code, n = len(arrays), n_outputs = len(self._output_specs)
        cdef int64_t rows
        self._session._alive()
        self._fill_options(&options, deadline, priority)
        request._service = self
        if n + len(named) > MPISERVE_MAX_TENSORS:
            raise errors.from_code(errors.Code.ESHAPE, f"{n + len(named)} inputs")
        request._inputs = arrays
        for i in range(n):
            array = as_input(&inputs[i], arrays[i], self.name)
            if array is not arrays[i]:
                request._keep(array)
        for name, value in named.items():
            request._keep(as_input(&inputs[n], value, self.name))
            encoded = name.encode()
            request._keep(encoded)
            inputs[n].name = <const char *>encoded
            n += 1
        rows = inputs[0].shape[0] if n and inputs[0].ndim else 0
        request._outputs = self._make_outputs(outputs, rows) if out is None else (
            self._check_outputs(outputs, out)
        )
        if rows * self._row_bytes > LARGE or self._far:
            with nogil:
                code = mpiserve_submit_with(self._service, n, inputs, n_outputs, outputs,
                                            &options, &request._request)
        else:
            code = mpiserve_submit_with(self._service, n, inputs, n_outputs, outputs,
                                        &options, &request._request)
        check(code)
        return request

    cdef int _fill_options(self, mpiserve_options *options, object deadline,
                           object priority) except -1:
        # 0 is none to the library, but not to whoever has no time left.
        options.deadline = 0
        if deadline is not None:
            options.deadline = deadline
            if options.deadline <= 0:
                options.deadline = 1e-9
        options.priority = priority
        return 0

    cdef object _make_outputs(self, mpiserve_tensor *tensors, int64_t rows):
        made = [
            as_output(&tensors[i], new_array(dtype, shape, rows), self.name)
            for i, (dtype, shape) in enumerate(self._output_specs)
        ]
        return made[0] if self._results is None else self._results(*made)

    cdef object _check_outputs(self, mpiserve_tensor *tensors, object out):
        cdef int i
        if self._results is None:
            return as_output(&tensors[0], out, self.name)
        if not isinstance(out, tuple) or len(out) != len(self._output_specs):
            raise errors.from_code(
                errors.Code.EARG,
                f"service '{self.name}': out must be a tuple of {len(self._output_specs)} arrays",
            )
        for i in range(len(out)):
            as_output(&tensors[i], out[i], self.name)
        return self._results(*out)

    def empty_input(self, rows):
        """Take memory for inputs that the model reads where it lies, without a copy.

        Args:
            rows: Of the array; a request may use a part of them.

        Returns:
            An array [rows, ...], or a tuple of them, one per input. A call whose input
            arrays all begin at the same row of it copies nothing. It is given back
            when no array views it any more.

        Raises:
            Error: With code ENOMEM, if too many are taken or the pool is full.
        """
        return self._half(rows, False)

    def empty_output(self, rows):
        """Take memory for results, to be given as `out`; otherwise like `empty_input`.

        The n-th array of this function and the n-th of `empty_input` of the same rows
        are one buffer. Services that overwrite their inputs, as echo does, need that to
        copy nothing: the result then is where the input was.
        """
        return self._half(rows, True)

    cdef object _half(self, int64_t rows, bint outputs):
        cdef Buffer buffer
        self._session._alive()
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
        with nogil:
            code = mpiserve_buffer_take(self._service, rows, &buffer._buffer)
        check(code)
        buffer._inputs_free = buffer._outputs_free = True
        self._buffers = [known for known in self._buffers if known() is not None]
        self._buffers.append(weakref.ref(buffer))
        return buffer

    def totals(self):
        """Return what is known of this rank's answered requests, summed up.

        Returns:
            requests, rows, batch_rows, batch_requests, queue_ns, compute_ns, total_ns.
        """
        totals = {"requests": self._answered, **self._totals}
        del totals["generation"]
        return totals

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


cdef list specs_of(tuple tensors):
    return [(DTYPES[DTYPE_CODES[t.dtype]], tuple(t.shape[1:])) for t in tensors]


cdef make_service(Session session, mpiserve_service *found):
    cdef mpiserve_description description
    cdef int replicas, head, transport
    cdef Service service = Service.__new__(Service)
    check(mpiserve_service_describe(found, &description, &replicas, &head, &transport))
    service._session = session
    service._service = found
    service.name = description.name.decode()
    service.engine = description.engine.decode()
    service.version = description.version.decode()
    service.rows = ROWS[description.rows]
    service.inputs = tensors_of(description.inputs, description.n_inputs)
    service.outputs = tensors_of(description.outputs, description.n_outputs)
    service.max_batch_rows = description.max_batch_rows
    service.replicas, service.head = replicas, head
    service.transport = "shared" if transport == MPISERVE_SHARED else "rma"
    # Of several replicas any may be asked, whatever the way to this rank's own is.
    service._far = transport != MPISERVE_SHARED or replicas > 1
    service._input_specs = specs_of(service.inputs)
    service._output_specs = specs_of(service.outputs)
    service._row_bytes = sum(dtype.itemsize * prod(shape) for dtype, shape in service._input_specs)
    service._buffers = []
    service._endings = []
    names = [tensor.name for tensor in service.outputs]
    service._results = namedtuple("Outputs", names, rename=True) if len(names) > 1 else None
    memset(&service._totals, 0, sizeof(service._totals))
    return service


@cython.freelist(8)
cdef class Request:
    """One request under way."""

    cdef Service _service
    cdef mpiserve_request _request
    cdef object _inputs, _outputs, _error
    cdef list _kept
    cdef mpiserve_stats _stats
    cdef bint _ended

    cdef int _keep(self, object thing) except -1:
        """Keep alive what the library reads until the end."""
        if self._kept is None:
            self._kept = []
        self._kept.append(thing)
        return 0

    def done(self):
        """Tell whether it has ended, without waiting."""
        cdef int done = 1, code
        if self._ended:
            return True
        self._service._session._alive()
        if self._service._far:
            with nogil:
                code = mpiserve_test(self._service._session._session, &self._request, &done,
                                     &self._stats)
        else:
            code = mpiserve_test(self._service._session._session, &self._request, &done,
                                 &self._stats)
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
        return self._outputs

    def cancel(self):
        """Give it up; nothing happens if it has ended."""
        if self._ended:
            return
        self._service._session._alive()
        code = mpiserve_cancel(self._service._session._session, &self._request)
        self._ended = True
        self._inputs = self._outputs = self._kept = None
        self._error = errors.from_code(errors.Code.ECANCELLED, "the request was cancelled")
        check(code)

    @property
    def stats(self):
        """What is known of the answered request, or None: rows, batch_rows, times in ns, generation."""
        return None if not self._ended or self._error is not None else self._stats

    cdef int _end(self, int code) except -1:
        self._ended = True
        self._inputs = self._kept = None
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
