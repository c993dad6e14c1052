"""Services of a pilot, as other tasks and the program that submits tasks see them."""

from __future__ import annotations

import os
import time
from typing import Any

from mpiserve.errors import Code, PeerError, RequestTimeout
from mpiserve.launch.guard import FAILED

ENDED = ("DONE", "FAILED", "CANCELED")  # the last states of a task
LOOK = 0.1  # seconds between two looks at a task


def endpoint(uid: str) -> str:
    """Return the endpoint file of a service task, in a task that names it in `services`.

    Args:
        uid: Of the service task.

    Returns:
        What `mpiserve.connect` takes.

    Raises:
        PeerError: If there is no such service, or if it could not start.
    """
    name = f"RP_INFO_{uid.replace('.', '_').upper()}"
    found = os.environ.get(name)
    if found:
        return _checked(uid, found)
    if found is None:
        text = f"{name} is not set: name '{uid}' in `services` of this task's description"
    else:
        text = f"{name} is empty: the pilot has no service task '{uid}', or it is not ready"
    raise PeerError(Code.EPEER, text)


def wait_ready(task: Any, seconds: float = 600.0) -> str:
    """Wait until clients of a service task can come, or until it has ended.

    Args:
        task: The `radical.pilot.Task`, from `submit_tasks`.
        seconds: The most to wait.

    Returns:
        The endpoint file, on the node of the service.

    Raises:
        PeerError: If the task has ended, or could not start.
        RequestTimeout: If it is not ready by then; it goes on.
    """
    end = time.monotonic() + seconds
    while not task.info:
        if task.state in ENDED:
            said = (task.stderr or "").strip().splitlines() or ["it said nothing"]
            text = f"service task '{task.uid}' is {task.state}: {said[-1]}"
            raise PeerError(Code.EPEER, text)
        if time.monotonic() >= end:
            text = f"service task '{task.uid}' is not ready after {seconds:g} s: {task.state}"
            raise RequestTimeout(Code.ETIMEOUT, text)
        time.sleep(LOOK)
    return _checked(task.uid, str(task.info))


def _checked(uid: str, info: str) -> str:
    if info.startswith(FAILED):
        raise PeerError(Code.EPEER, f"service task '{uid}' {info}")
    if not os.path.isabs(info):  # RADICAL-Pilot's own words for a service that has ended
        text = f"service task '{uid}' has no endpoint file, but {info!r}: see its stdout and stderr"
        raise PeerError(Code.EPEER, text)
    return info
