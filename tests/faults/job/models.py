"""The model of the jobs here: it answers 2 x + 1, unless a row says what it must do first.

A row says so by its first value, so that a fault belongs to one request whatever shares its batch.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mpiserve.bench.deaths import DEATHS, exit_7, hang, null_read

FIRST = 1000.0  # the value that means the first of ACTS
NAP = 2  # seconds that a stopped or slow model stays so, where it goes on
BIG = 6 << 30  # bytes, more than `memory_bytes` of the configuration allows


class Unprintable(Exception):
    def __str__(self):
        raise KeyboardInterrupt


def nap():
    wake = f"sleep {NAP}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", wake])
    os.kill(os.getpid(), signal.SIGSTOP)


def use_memory():
    np.empty(BIG, np.uint8)  # untouched: without a limit it costs nothing


def raise_():
    raise ValueError("the model says no")


def sys_exit():
    sys.exit("the model leaves")


def interrupt():
    raise KeyboardInterrupt("of the model")


def unprintable():
    raise Unprintable


def fork():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)


def start_program():
    subprocess.Popen(["sleep", "600"])


def wrong_shape():
    return np.zeros((1, 7), np.float32)


def wrong_dtype():
    return np.array([["text"]])


def nothing():
    return "nothing"


def nan():
    return "nan"


ACTS = (
    *DEATHS,
    nap,
    use_memory,
    raise_,
    sys_exit,
    interrupt,
    unprintable,
    fork,
    start_program,
    wrong_shape,
    wrong_dtype,
    nothing,
    nan,
)


def trigger(name: str) -> float:
    """Return the value that makes the model do this."""
    return FIRST + [act.__name__ for act in ACTS].index(name)


def right(x: np.ndarray) -> np.ndarray:
    """Return the answer to rows, which those that say something get too."""
    return 2 * x + 1


def answer(x: np.ndarray) -> np.ndarray:
    """Do what a row says, then answer."""
    y = right(x)
    for i in np.flatnonzero(x[:, 0] >= FIRST):
        act = ACTS[int(x[i, 0] - FIRST)]
        note("act", act.__name__)
        result = act()
        if isinstance(result, str):
            if result == "nothing":
                return None
            y[i] = np.nan
        elif result is not None:
            return result
    return y


def reordered(x: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Answer ragged requests: each row of an answer is that of the row which the request names."""
    return answer(x)[order]


def note(kind: str, text: str) -> None:
    """Write down when a fault happens; whole, whatever follows."""
    line = json.dumps({"time": time.monotonic(), "kind": kind, "text": text, "pid": os.getpid()})
    with Path(__file__).with_name("events.model").open("a") as file:
        file.write(line + "\n")


class LoadSegfault:
    def __init__(self):
        note("act", "load_segfault")
        null_read()


class LoadHang:
    def __init__(self):
        note("act", "load_hang")
        hang()


class LoadExit:
    def __init__(self):
        note("act", "load_exit")
        exit_7()


class LoadRaise:
    def __init__(self):
        note("act", "load_raise")
        raise_()
