"""Values of the library as Python's, and Python's as the library's; errors."""

cdef str text_of(const char *text):
    # The library cuts long texts at a byte, maybe inside a character.
    return (<bytes>text).decode("utf-8", "replace")


cdef bytes line_of(str text):
    # The text may contain a NUL, or characters that UTF-8 cannot encode.
    return failure.one_line(text, MPISERVE_TEXT_SIZE - 1).encode()


cdef bytes encode(str text):
    """Encode a name for C, where a NUL would end it."""
    if "\0" in text:
        raise errors.from_code(errors.Code.EARG, f"{text!r} has a NUL in it")
    return text.encode()


cdef inline int check(int code) except -1:
    if code != MPISERVE_OK:
        raise errors.from_code(code, text_of(mpiserve_last_error()))
    return 0
