"""Describe exceptions of the user's code, safely, whatever their methods do."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from mpiserve.errors import ArgumentError, CausedError, Code, Error

TEXT = 400  # bytes of a line: it fits into an error reply
TRACE = 20_000  # characters of a traceback
PACKAGE = Path(__file__).parent
# Terminals execute control characters, C strings end at NUL, and surrogates cannot be encoded.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_name: Callable[[type], str] = type.__dict__["__name__"].__get__  # not that of a metaclass


class Traced(Exception):
    """Stands for an exception of another process, of which only the traceback is known, as text."""


def one_line(text: str, size: int = TEXT) -> str:
    """Make a text one printable line of at most `size` bytes."""
    return _printable(" ".join(text[: 8 * size].split())).encode()[:size].decode(errors="ignore")


def describe(error: BaseException) -> str:
    """Describe an exception in one line that fits into an error reply; never "", never raises."""
    kind, text = kind_of(error), text_of(error)
    if text and issubclass(type(error), Error):
        return text
    return one_line(f"{kind}: {text}" if text else kind)


def kind_of(error: BaseException) -> str:
    """Return the name of an exception's class."""
    return one_line(_name(type(error))) or "an exception"


def text_of(thing: object) -> str:
    """Return str() of an object as one line; never raises."""
    try:
        return one_line(str.__str__(str(thing)))
    except BaseException as error:
        check_interrupt()
        return f"(its text cannot be read: {kind_of(error)})"


def code_of(error: BaseException) -> int:
    """Return the error code for the reply to an exception."""
    code = vars(error).get("code") if issubclass(type(error), Error) else None
    return code if isinstance(code, Code) and code < 0 else Code.EMODEL


def reply_code(error: BaseException) -> int:
    """Return the code for the reply to a request on which the model, or its backend, failed.

    What is wrong with the request itself is no failure of the model.
    """
    return code_of(error) if issubclass(type(error), ArgumentError) else Code.EMODEL


def cause_of(error: BaseException | None) -> BaseException | None:
    """Find the exception whose traceback helps; None for mpiserve's own errors."""
    while error is not None and issubclass(type(error), CausedError):
        error = error.__cause__
    return None if error is None or issubclass(type(error), Error) else error


def trace_of(error: BaseException, trace: Any = None) -> str:
    """Format a traceback, from `trace` on, at limited length; never raises."""
    if type(error) is Traced:
        return str(error)
    try:
        lines = traceback.format_exception(type(error), error, trace or error.__traceback__)
        text = _printable("".join(lines).rstrip())
    except BaseException:
        check_interrupt()
        text = f"{describe(error)} (its traceback cannot be written)"
    if len(text) <= TRACE:
        return text
    return f"{text[: TRACE // 2]}\n[...]\n{text[-TRACE // 2 :]}"


def _printable(text: str) -> str:
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def is_success(error: BaseException) -> bool:
    """Return whether an exception ends a program with status 0."""
    if not isinstance(error, SystemExit):
        return False
    return error.code is None or (isinstance(error.code, int) and not error.code)


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child of a model, with the status that a program would have."""
    status = 0
    while error is not None and not isinstance(error, SystemExit):
        if not isinstance(error, Error) or error.code != Code.ESTATE or error.__context__ is None:
            traceback.print_exception(error)
            status = 1
            break
        error = error.__context__
    if isinstance(error, SystemExit):
        status = exit_status(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def exit_status(error: SystemExit) -> int:
    """Return the exit status of a program; print a text, as Python does."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    try:
        print(error.code, file=sys.stderr, flush=True)
    except BaseException:
        print(text_of(error.code), file=sys.stderr, flush=True)
    return 1


def located(error: BaseException) -> str:
    """Describe an exception in one line, with the last line of the user's code that ran."""
    if isinstance(error, SystemExit):
        return one_line(f"the program ended with status {text_of(error.code)}")
    frames = traceback.extract_tb(error.__traceback__)
    # Python marks the modules that run a script as frozen.
    python = [f for f in frames if not f.filename.endswith((".pyx", ".pxi"))]
    python = [f for f in python if not f.filename.startswith("<frozen ")]
    users = [f for f in python if PACKAGE not in Path(f.filename).parents]
    last = (users or python)[-1:]
    location = f" ({Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    text = text_of(error) or "no text"
    return one_line(f"{kind_of(error)}: {text}", TEXT - len(location.encode())) + location


_interrupted = False
_server = 0  # the process that serves: a model may fork others


@contextmanager
def interrupts() -> Iterator[None]:
    """Distinguish Ctrl-C from a KeyboardInterrupt that a model raises."""
    global _interrupted, _server
    _server = os.getpid()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupted = False


def check_interrupt() -> None:
    """Raise if Ctrl-C ended the user's code, or if this is a forked child.

    Call it while an exception of the user's code is handled.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        BaseException: The exception itself, in a process that a model has forked, which must end.
    """
    if _interrupted:
        raise KeyboardInterrupt
    if _server and os.getpid() != _server:
        raise


def _interrupt(_number: int, _frame: object) -> NoReturn:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt
