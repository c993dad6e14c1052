"""The program of the inference rank of a session of one process: see `mpiserve.local`."""

from __future__ import annotations

import logging
import os
import pickle
import select
import sys
import threading

from mpiserve.errors import Error, PeerError
from mpiserve.failure import trace_of
from mpiserve.observe.log import start_logging

RANK = 1  # in the world of two
OK, FAILURE = 0, 1  # exit statuses

logger = logging.getLogger("mpiserve")


def main() -> None:
    """Serve until the session is closed. Arguments: the file of the pair, the other process."""
    file, parent = map(int, sys.argv[1:])
    peer = os.pidfd_open(parent)
    if os.getppid() != parent:
        os._exit(FAILURE)
    threading.Thread(target=_end_with, args=[peer], daemon=True).start()
    start_logging(RANK)
    config = pickle.load(sys.stdin.buffer)
    os.environ["MPISERVE_END_WITH_LAUNCHER"] = "0"  # the other process is what it ends with
    sys.exit(_serve(config, (file, peer)))


def _serve(config: object, pair: tuple[int, int]) -> int:
    from mpiserve import session
    from mpiserve.config import Config

    assert isinstance(config, Config)
    try:
        current = session.beside(config, pair)
        served = current.serve()
        current.close()
    except PeerError:  # it is about to end with the other process
        return FAILURE
    except Error as error:
        logger.critical("%s", error)
        return FAILURE
    except BaseException as error:
        logger.critical("this inference rank failed\n%s", trace_of(error))
        os._exit(FAILURE)
    return OK if served else FAILURE


def _end_with(peer: int) -> None:
    """End when the other process has ended, and the models' processes first."""
    from mpiserve.serving.isolation.server_link import the_server

    select.select([peer], [], [])
    the_server.close()
    os._exit(FAILURE)
