"""Ways for the process of a model to die, or to stop answering for ever; no MPI."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable

LONG = 60.0  # seconds between two looks of nobody at nothing


def null_read() -> None:
    """Read from address 0."""
    ctypes.string_at(0)


def null_write() -> None:
    """Write to address 0."""
    ctypes.memset(0, 1, 8)


def bad_instruction() -> None:
    """End as by an instruction that the processor does not know."""
    os.kill(os.getpid(), signal.SIGILL)


def bus_error() -> None:
    """End as by memory that is not there."""
    os.kill(os.getpid(), signal.SIGBUS)


def divide_by_zero() -> None:
    """End as by a division of integers."""
    os.kill(os.getpid(), signal.SIGFPE)


def exit_7() -> None:
    """End with a status that is an error."""
    os._exit(7)


def exit_0() -> None:
    """End with a status that is none."""
    os._exit(0)


def kill_itself() -> None:
    """End as the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_itself() -> None:
    """End as others ask it to."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LONG)


def abort() -> None:
    """End as libraries do that have found a fault of their own."""
    os.abort()


def overflow_stack() -> None:
    """Call for ever."""
    sys.setrecursionlimit(1 << 30)
    calls: list[Callable[[], None]] = []
    calls.append(ctypes.CFUNCTYPE(None)(lambda: calls[0]()))  # each call takes C's stack too
    calls[0]()


def hang() -> None:
    """Sleep for ever."""
    while True:
        time.sleep(LONG)


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def stop() -> None:
    """Be stopped by a signal, for ever."""
    os.kill(os.getpid(), signal.SIGSTOP)


SILENT = (hang, spin, stop)  # only a limit of time ends these
DEATHS: tuple[Callable[[], None], ...] = (
    null_read,
    null_write,
    bad_instruction,
    bus_error,
    divide_by_zero,
    exit_7,
    exit_0,
    kill_itself,
    terminate_itself,
    abort,
    overflow_stack,
    *SILENT,
)
