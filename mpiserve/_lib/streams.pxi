"""The simulation side of mpiserve._lib.core: what a service does by several requests, or by none."""

# What a request does with its stream: the second number of the input `stream`.
STREAM_OPENS, STREAM_READS, STREAM_ENDS = range(3)


def stream_of(Service service, tuple arrays, object timeout, dict named):
    """Yield the tokens of one row, as Service.stream() says."""
    cdef int64_t number
    names = [tensor.name for tensor in service.inputs if tensor.name != "stream"]
    if len(names) == len(service.inputs):
        text = f"service '{service.name}' has no input 'stream'"
        raise errors.from_code(errors.Code.ENAME, text)
    if service._ambiguous:
        check_options(service, arrays, {"timeout": timeout})
    named = service._by_name(arrays, named, names)
    service._streams += 1
    number = service._streams
    what, ended = STREAM_OPENS, False
    try:
        while not ended:
            named["stream"] = np.array([[number, what]], np.int64)
            out = service(named, timeout=timeout)
            count = int(out.lengths[0])
            ended = count == 0
            if not ended:
                yield out.tokens[0, :count]
            what = STREAM_READS
    except errors.ModelError:
        ended = True
        raise
    finally:
        if not ended and service._session._session != NULL and not forks:
            # Kept, because deleting a request cancels it; not waited for.
            service._endings = [one for one in service._endings if not one.done()]
            named["stream"] = np.array([[number, STREAM_ENDS]], np.int64)
            service._endings.append(service.submit(named))


cdef tuple fill_side(mpiserve_tensor *tensors, object given, list names, str service):
    """Describe one side of a pair; return what must stay alive: names, then arrays.

    `names` are those of inputs; None: the side is that of the outputs.
    """
    cdef int i
    values = given if isinstance(given, tuple) else (given,)
    encoded = ()
    if isinstance(given, dict):
        values = tuple(given.values())
        encoded = tuple([encode(name) for name in given])
        names = names and list(given)
    if len(values) > MPISERVE_MAX_TENSORS:
        text = f"service '{service}': {len(values)} arrays, of {MPISERVE_MAX_TENSORS} at most"
        raise errors.from_code(errors.Code.ESHAPE, text)
    arrays = tuple([as_input(&tensors[i], value, service, names, i)
                    for i, value in enumerate(values)])
    for i, name in enumerate(encoded):
        tensors[i].name = <const char *>name
    return encoded, arrays


cdef bint record_pairs(Service service, object inputs, object outputs) except -1:
    cdef mpiserve_tensor given[16]
    cdef mpiserve_tensor made[16]
    cdef int code, n_inputs, n_outputs, kept = 0
    cdef Session session = service._session
    first = fill_side(given, inputs, service._names, service.name)
    second = fill_side(made, outputs, None, service.name)
    n_inputs, n_outputs = len(first[1]), len(second[1])
    session._enter()
    with nogil:
        code = mpiserve_record(service._service, n_inputs, given, n_outputs, made, &kept)
    session._leave(code)
    if not kept and not service._unrecorded:
        service._unrecorded = True
        logger.info(
            "service %s is not captured: what this rank records is not kept", service.name)
    return kept
