"""What an inference rank calls on its session: mpiserve._lib.core includes this."""


@cython.no_gc_clear
cdef class InferenceCalls(Handle):
    """The part of a Session that serves."""

    cdef list _signatures  # of the services that this rank published
    cdef tuple _outputs  # of the batch that is open
    cdef dict _batches  # whose arrays may be used again
    cdef dict _engines  # of services, which the library uses
    cdef object _ring  # of a capture, in which the library writes
    cdef list _free, _have_rows  # of each of its services: whether dimensions are free; rows
    cdef list _ragged  # ...; whether each request of a batch has its own
    cdef int64_t _rows
    cdef int _requests, _service

    def __cinit__(self):
        self._batches = {}
        self._engines = {}

    def publish(self, *services):
        """Announce the services of this rank, ready or failed. Collective over the world.

        Args:
            services: For each service the arguments of Description, by name.
        """
        cdef mpiserve_description *all = NULL
        cdef int code, n = len(services)
        made = [Description(**service) for service in services]
        self._signatures = [((<Description>d).inputs, (<Description>d).outputs) for d in made]
        self._free = [(<Description>d).free for d in made]
        self._have_rows = [
            (<Description>d).description.rows < MPISERVE_NO_ROWS for d in made
        ]
        self._ragged = [(<Description>d).description.rows == MPISERVE_RAGGED for d in made]
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

    cdef tuple _given(self, tuple inputs, int64_t rows):
        """Return dtype and dimensions of a row of the inputs of the batch that is open."""
        cdef int64_t shapes[16 * 8]
        cdef int first = self._have_rows[self._service]
        self._enter()
        self._leave(mpiserve_batch_shapes_get(self._session, shapes))
        return tuple([
            (dtype, tuple([shapes[8 * i + first + d] for d in range(len(shape))]))
            for i, (dtype, shape) in enumerate(inputs)
        ])

    cdef object _counts(self, Py_ssize_t inputs, int64_t rows):
        """Return the first dimension of each input of each request of a ragged batch."""
        shapes = np.zeros((rows, inputs, MPISERVE_MAX_DIMS), np.int64)
        cdef int64_t[:, :, ::1] view = shapes
        self._enter()
        self._leave(mpiserve_batch_shapes_get(self._session, &view[0, 0, 0]))
        counts = shapes[:, :, 0].copy()
        counts.flags.writeable = False
        return counts

    cdef int _tell_counts(self, int service, tuple specs, object counts) except -1:
        """Tell the dimensions of ragged results: counts has the first one of each output."""
        shapes = np.zeros((len(counts), len(specs), MPISERVE_MAX_DIMS), np.int64)
        cdef int64_t[:, :, ::1] view = shapes
        for i, (_, shape) in enumerate(specs):
            if shape:
                shapes[:, i, : len(shape)] = shape
                shapes[:, i, 0] = counts[:, i]
        self._enter()
        self._leave(
            mpiserve_result_shapes_set(self._session, service, len(shapes), &view[0, 0, 0])
        )
        return 0

    cdef int _find(self, int service, const void **data, tuple specs, outputs,
                   int64_t rows) except -1:
        """Find the memory of results; tell their dimensions, where these are free."""
        cdef int64_t shapes[16 * 8]
        if self._ragged[service]:
            *outputs, counts = outputs
            self._tell_counts(service, specs, counts)
        elif self._free[service]:
            specs = tuple([
                (dtype, array.shape[1:]) for (dtype, _), array in zip(specs, outputs)
            ])
            fill_shapes(shapes, outputs, self._have_rows[service])
            self._enter()
            self._leave(mpiserve_result_shapes_set(self._session, service, 1, shapes))
        return find_rows(data, specs, outputs, rows)

    def reply(self, outputs):
        """Answer the batch: one C-contiguous array [rows, ...] per output, of its dtype."""
        cdef const void *data[16]
        cdef int code
        self._find(self._service, data, self._outputs, outputs, self._rows)
        self._enter()
        with nogil:
            code = mpiserve_batch_reply(self._session, data)
        self._leave(code)

    def reply_rows(self, int64_t rows, outputs):
        """Answer the requests whose results are among the first rows of the outputs."""
        cdef const void *data[16]
        self._find(self._service, data, self._outputs, outputs, self._rows)
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

    def wanted(self):
        """Return whether a simulation rank still wants answers. Never waits."""
        cdef int wanted
        self._enter()
        self._leave(mpiserve_wanted_get(self._session, &wanted))
        return bool(wanted)

    def wants(self, Ticket ticket):
        """Return whether the client still waits for a held request; else it has been answered."""
        cdef int wanted
        self._enter()
        self._leave(mpiserve_ticket_wanted(self._session, &ticket._ticket, &wanted))
        return bool(wanted)

    def reply_ticket(self, Ticket ticket, outputs):
        """Answer a held request: one C-contiguous array [ticket.rows, ...] per output."""
        cdef const void *data[16]
        cdef int service = ticket._ticket.service
        self._find(service, data, self._signatures[service][1], outputs, ticket._ticket.rows)
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

    def set_capture(self, int service, ring, int reader, int model, table):
        """Have the library copy the requests to one of this rank's services, and their answers.

        Args:
            service: Its number.
            ring: Where to, a Ring; None: copy none.
            reader: A pidfd of the process that reads there.
            model: A number that goes with each row.
            table: A CaptureConfig.
        """
        cdef mpiserve_capture capture
        cdef mpiserve_capture *wanted = NULL
        memset(&capture, 0, sizeof(capture))
        if ring is not None:
            wanted = &capture
            capture.memory, capture.bytes = <void *><size_t>ring.address, ring.bytes
            capture.reader, capture.model = reader, model
            capture.waits = table.on_full == "wait"
            capture.untrusted = table.rows == "untrusted"
            capture.every_batches, capture.every_steps = table.every_batches, table.every_steps
            capture.share, capture.seed = table.share, table.seed
            self._ring = ring
        self._enter()
        self._leave(mpiserve_capture_set(self._session, service, wanted))

    def set_placement(self, int service, values):
        """Say where a service with a local and a remote model is answered, for other programs.

        Args:
            service: Its number.
            values: Integers, in the order of mpiserve_placement.
        """
        cdef mpiserve_placement placement
        (placement.side, placement.breaker, placement.local_rows, placement.remote_rows,
         placement.returned_rows, placement.changes, placement.opened, placement.local_call_ns,
         placement.local_row_ns, placement.remote_call_ns, placement.remote_row_ns) = values
        self._enter()
        self._leave(mpiserve_placement_set(self._session, service, &placement))

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

    def writable(self, service):
        """Return (offset, bytes) of the parts of each segment that the service's model writes."""
        cdef mpiserve_range ranges[MPISERVE_OUTPUT_RANGES]
        cdef int n
        name = service.encode()
        self._enter()
        self._leave(mpiserve_segment_outputs(self._session, name, ranges, &n))
        return [[(ranges[i].offset, ranges[i].bytes) for i in range(n)]]

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
