"""The inference side of mpiserve._lib.core: what a rank publishes, batches, tickets."""


cdef enum:
    MAX_BATCHES = 256  # whose arrays are kept for the next batch of the same rows


cdef int fill_specs(mpiserve_spec *specs, object tensors) except -1:
    if len(tensors) > MPISERVE_MAX_TENSORS:
        raise errors.ConfigError(errors.Code.ECONFIG, f"over {MPISERVE_MAX_TENSORS} tensors")
    for i, tensor in enumerate(tensors):
        copy_text(specs[i].name, MPISERVE_NAME_SIZE, tensor.name)
        specs[i].dtype = DTYPE_CODES.get(tensor.dtype, -1)
        specs[i].ndim = len(tensor.shape)
        for d, length in enumerate(tensor.shape[:MPISERVE_MAX_DIMS]):
            specs[i].shape[d] = length
    return 0


cdef int fill_largest(mpiserve_spec *specs, object tensors, object largest) except -1:
    """Fill in the bounds of free dimensions: those that the largest shape of a tensor fixes."""
    for i, (tensor, shape) in enumerate(zip(tensors, largest)):
        for d, length in enumerate(shape[:MPISERVE_MAX_DIMS]):
            specs[i].max_shape[d] = length if length != tensor.shape[d] else 0
    return 0


cdef int fill_checks(mpiserve_spec *specs, object checks) except -1:
    """Fill in what the values must be: for each output whether finite, the least, the greatest."""
    for i, (finite, least, most) in enumerate(checks):
        specs[i].check = MPISERVE_FINITE if finite else 0
        if least is None and most is None:
            continue
        specs[i].check |= MPISERVE_BOUNDS
        specs[i].min = -INFINITY if least is None else least
        specs[i].max = INFINITY if most is None else most
    return 0


cdef int copy_text(char *to, size_t size, str text) except -1:
    return copy_bytes(to, size, text.encode()[: size - 1])


cdef int copy_bytes(char *to, size_t size, bytes data) except -1:
    cdef const char *start = data
    memset(to, 0, size)
    for i in range(len(data)):
        to[i] = start[i]
    return 0


cdef tuple arrays_of(object tensors, object largest):
    """Return dtype and largest dimensions of a row; a tensor without rows is one row."""
    shapes = largest or [tensor.shape for tensor in tensors]
    return tuple([
        (DTYPES[DTYPE_CODES[tensor.dtype]], row_shape(shape))
        for tensor, shape in zip(tensors, shapes)
    ])


cdef class Description:
    """What an inference rank publishes of one service: mpiserve_description."""

    cdef mpiserve_description description
    cdef tuple inputs, outputs
    cdef bint free  # some dimensions are

    def __init__(self, *, name, engine="", version="", inputs=(), outputs=(), max_batch_rows=1,
                 max_delay_us=0, pool_bytes=0, stickiness=0, max_queue_rows=0, on_full="wait",
                 rows="independent", allow_empty=False, reproducible=False, overwrites=False,
                 replica=0, spare=False, checks=(), uncertain=False, local="", local_timeout=0.0,
                 cache_rows=0, cache_step=0.0, error_code=0, error_text="", largest=((), ())):
        memset(&self.description, 0, sizeof(self.description))
        copy_text(self.description.name, MPISERVE_NAME_SIZE, name)
        copy_bytes(
            self.description.engine,
            MPISERVE_NAME_SIZE,
            failure.one_line(engine, MPISERVE_NAME_SIZE - 1).encode(),
        )
        copy_text(self.description.version, MPISERVE_NAME_SIZE, version)
        copy_bytes(self.description.error_text, MPISERVE_TEXT_SIZE, line_of(error_text))
        self.description.n_inputs = len(inputs)
        self.description.n_outputs = len(outputs) - uncertain  # the last one is the uncertainty
        self.description.uncertain = uncertain
        fill_specs(self.description.inputs, inputs)
        fill_specs(self.description.outputs, outputs)
        fill_checks(self.description.outputs, checks)
        self.description.max_batch_rows = max_batch_rows
        self.description.max_delay_ns = int(max_delay_us * 1000)
        self.description.pool_bytes = pool_bytes
        self.description.stickiness = stickiness
        self.description.max_queue_rows = max_queue_rows
        self.description.on_full = MPISERVE_REJECT if on_full == "reject" else MPISERVE_WAIT
        self.description.rows = ROWS.index(rows)
        self.description.allow_empty = allow_empty
        self.description.reproducible = reproducible
        self.description.overwrites = overwrites
        self.description.replica = replica
        self.description.spare = spare
        self.description.error = error_code
        copy_text(self.description.local, MPISERVE_LOCAL_SIZE, local)
        self.description.local_timeout = local_timeout
        self.description.cache_rows = cache_rows
        self.description.cache_step = cache_step
        fill_largest(self.description.inputs, inputs, largest[0])
        fill_largest(self.description.outputs, outputs, largest[1])
        self.inputs, self.outputs = arrays_of(inputs, largest[0]), arrays_of(outputs, largest[1])
        sides = zip((*inputs, *outputs), (*largest[0], *largest[1]))
        self.free = any([tuple(tensor.shape) != tuple(shape) for tensor, shape in sides])


cdef class Batch:
    """A batch that an inference rank has to answer.

    Attributes:
        service: Index among the services that this rank published: 0, 1, ...
        rows: The number of rows of all its requests.
        requests: Their number.
        in_place: Whether the inputs are the memory that the clients wrote to.
        inputs: One array [rows, ...] per input of the signature; read-only, valid
            until the batch is answered. A tensor without rows is one row: [1, ...].
        outputs: One array [rows, ...] per output, where results may be written
            to spare a copy; valid until the batch is answered. Free dimensions are the largest:
            a result lies dense at the beginning.
            Of a ragged service, an int64 array [rows, tensors] follows the inputs, and the outputs:
            the first dimension of each tensor of each request, which lies dense at the beginning
            of its row. Replies have that array too.
        failure: The error of the service's engine on it; "" if there was none.
    """

    cdef readonly int64_t rows
    cdef readonly int service, requests
    cdef readonly bint in_place
    cdef readonly tuple inputs, outputs
    cdef readonly str failure


cdef class Ticket:
    """A request that is answered after its batch: see Session.hold_batch.

    Attributes:
        row: Its first row in the batch.
        rows: Their number.
        client: The world rank that submitted it.
        service: The index of the service, as in its batch.
    """

    cdef mpiserve_ticket _ticket

    @property
    def row(self):
        return self._ticket.row

    @property
    def rows(self):
        return self._ticket.rows

    @property
    def client(self):
        return self._ticket.client

    @property
    def service(self):
        return self._ticket.service


cdef list tickets_of(mpiserve_ticket *tickets, int n):
    cdef Ticket ticket
    made = []
    for i in range(n):
        ticket = Ticket.__new__(Ticket)
        ticket._ticket = tickets[i]
        made.append(ticket)
    return made


cdef Batch batch_of(InferenceCalls session, mpiserve_batch *batch, str failure):
    """Find or make the arrays. Rows that repeat have the same location: the arrays are there."""
    cdef Batch made
    key = (batch.service, <size_t>batch.inputs[0], <size_t>batch.outputs[0], batch.rows)
    made = session._batches.get(key)
    inputs, session._outputs = session._signatures[batch.service]
    session._service = batch.service
    if session._free[batch.service]:
        made = None
        if not session._ragged[batch.service]:
            inputs = session._given(inputs, batch.rows)
    if made is None:
        if len(session._batches) >= MAX_BATCHES:
            session._batches.clear()
        made = Batch.__new__(Batch)
        made.service = batch.service
        made.rows = batch.rows
        made.inputs = views_of(<void **>batch.inputs, inputs, batch.rows, False)
        made.outputs = views_of(batch.outputs, session._outputs, batch.rows, True)
        if session._ragged[batch.service]:
            made.inputs += (session._counts(len(inputs), batch.rows),)
            made.outputs += (np.zeros((batch.rows, len(session._outputs)), np.int64),)
        session._batches[key] = made
    made.requests = batch.requests
    made.in_place = batch.in_place
    made.failure = failure
    session._rows = batch.rows
    session._requests = batch.requests
    return made


cdef tuple views_of(void **data, tuple specs, int64_t rows, bint writable):
    return tuple([
        view_rows(data[i], dtype, shape, rows, writable, None)
        for i, (dtype, shape) in enumerate(specs)
    ])


cdef int find_rows(const void **data, tuple specs, outputs, int64_t rows) except -1:
    cdef int i = 0
    for dtype, shape in specs:
        data[i] = result_at(outputs[i], dtype, shape, rows)
        i += 1
    return 0


cdef int fill_shapes(int64_t *shapes, outputs, bint has_rows) except -1:
    """Fill in the shapes of arrays [rows, ...]; tensors without rows are those of one row."""
    for i, array in enumerate(outputs):
        for d, length in enumerate(array.shape[0 if has_rows else 1 :]):
            shapes[i * MPISERVE_MAX_DIMS + d] = length
    return 0


cdef tuple locate(list segments, object array):
    begin = array.__array_interface__["data"][0]
    for i, (_, address, size) in enumerate(segments):
        if address <= begin and begin + array.nbytes <= address + size:
            return i, begin - address
    return None
