"""What services publish, as objects of mpiserve._lib.core."""

# In the order of mpiserve_state.
STATES = (
    "launched", "loading", "ready", "busy", "suspended", "restarting", "failed", "gone",
)
ReplicaState = namedtuple("ReplicaState", "replica rank state entered")


cdef tuple tensors_of(mpiserve_spec *specs, int n):
    return tuple([
        Tensor(
            specs[i].name.decode(),
            DTYPES[specs[i].dtype].name,
            tuple([specs[i].shape[d] for d in range(specs[i].ndim)]),
        )
        for i in range(n)
    ])


cdef dict checks_of(mpiserve_spec *specs, int n):
    """Return what the values of outputs must be, by name: whether finite, the least, the greatest."""
    return {
        specs[i].name.decode(): (
            bool(specs[i].check & MPISERVE_FINITE),
            bound_of(&specs[i], specs[i].min),
            bound_of(&specs[i], specs[i].max),
        )
        for i in range(n)
        if specs[i].check
    }


cdef object state_of(mpiserve_replica_state *state):
    return ReplicaState(
        state.replica,
        state.rank,
        STATES[state.state],
        {
            STATES[i]: 1e-9 * state.entered_ns[i]
            for i in range(MPISERVE_STATES)
            if state.entered_ns[i]
        },
    )


cdef object bound_of(mpiserve_spec *spec, double bound):
    return bound if spec.check & MPISERVE_BOUNDS and not isinf(bound) else None


cdef tuple largest_of(mpiserve_spec *specs, int n):
    """Return the shapes with the bounds of their free dimensions."""
    return tuple([
        tuple([specs[i].max_shape[d] or specs[i].shape[d] for d in range(specs[i].ndim)])
        for i in range(n)
    ])


cdef make_service(Session session, mpiserve_service *found):
    cdef mpiserve_description description
    cdef int replicas, head, transport
    cdef Service service = Service.__new__(Service)
    session._enter()
    session._leave(mpiserve_service_describe(found, &description, &replicas, &head, &transport))
    service._session = session
    service._service = found
    service.name = description.name.decode()
    service.engine = description.engine.decode()
    service.version = description.version.decode()
    service.rows = ROWS[description.rows]
    service._local = description.local[0] != 0
    service.allow_empty = description.allow_empty
    service._whole = description.rows >= MPISERVE_NO_ROWS
    service.inputs = tensors_of(description.inputs, description.n_inputs)
    service.outputs = tensors_of(description.outputs, description.n_outputs)
    service.checks = checks_of(description.outputs, description.n_outputs)
    service.uncertainty_limit = (
        description.outputs[description.n_outputs].max if description.uncertain else None
    )
    service.max_batch_rows = description.max_batch_rows
    service.replicas, service.head = replicas, head
    service.transport = "shared" if transport == MPISERVE_SHARED else "rma"
    # A request may go to any replica, whatever the transport to the home replica is.
    service._far = transport != MPISERVE_SHARED or replicas > 1
    service.largest_inputs = largest_of(description.inputs, description.n_inputs)
    service.largest_outputs = largest_of(description.outputs, description.n_outputs)
    service._input_specs = list(arrays_of(service.inputs, service.largest_inputs))
    service._output_specs = list(arrays_of(service.outputs, service.largest_outputs))
    service._free = service.largest_inputs != tuple([t.shape for t in service.inputs]) or (
        service.largest_outputs != tuple([t.shape for t in service.outputs])
    )
    service._row_bytes = sum(dtype.itemsize * prod(shape) for dtype, shape in service._input_specs)
    service._buffers = []
    service._endings = []
    service._names = [tensor.name for tensor in service.inputs]
    service._ambiguous = {
        tensor.name: i for i, tensor in enumerate(service.inputs) if tensor.name in OPTIONS
    }
    names = [tensor.name for tensor in service.outputs]
    service._results = namedtuple("Outputs", names, rename=True) if len(names) > 1 else None
    memset(&service._totals, 0, sizeof(service._totals))
    return service
