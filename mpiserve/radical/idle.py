"""The simulation of a service task: it asks nothing, and lasts until its job is ended."""

from __future__ import annotations

import signal

from mpiserve import session

if __name__ == "__main__":
    with session.open():
        signal.pause()
