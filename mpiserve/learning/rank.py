"""A trainer's rank: starts the process that trains, and publishes versions for it.

Neither torch nor the user's code is in the process that holds MPI.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.config import Config
from mpiserve.config.capture import wanted
from mpiserve.config.trainer import trained
from mpiserve.errors import Error
from mpiserve.failure import describe
from mpiserve.serving.isolation.restarts import Restarts
from mpiserve.serving.isolation.server_link import MPI_VARIABLES

if TYPE_CHECKING:
    from mpiserve.session import Session

LOOK = 0.1  # seconds between two looks at the states, and the longest sleep
RELOAD_S = 300.0  # that a version may take to be loaded
END_S = 30.0  # that the process may take for its last checkpoint and picture
DEATHS, DEATHS_S = 3, 600.0  # after which no other process is started
GONE = "gone"

logger = logging.getLogger("mpiserve")


def learn(session: Session, config: Config, rank: int) -> Callable[[], None]:
    """Train until the last simulation rank has left. On a trainer rank.

    What goes wrong is logged: the simulation goes on without a trainer.

    Returns:
        What waits for the last checkpoint; call it when the session is closed.
    """
    names = [service.name for service in config.services]
    work: Work | None = None
    try:
        work = _work_of(session, config, rank)
        while not _is_over(session, names):
            work.look(LOOK)
    except Error as error:
        logger.error("there is no trainer: %s", error)
    except Exception:
        logger.exception("the trainer has failed, and the simulation goes on without it")
    while not _is_over(session, names):  # here, because MPI_Finalize would take a core
        time.sleep(LOOK)
    if work is None:
        return lambda: None
    work.leave()
    return work.end


def _work_of(session: Session, config: Config, rank: int) -> Work:
    trainers, mine = [*config.trainer], session.comm.rank
    if mine >= len(trainers):
        text = f"{len(trainers)} tables [trainer.NAME], but rank {rank} is trainer {mine + 1}"
        raise config.error("trainer", text)
    captured = wanted(config)
    if captured is None:
        raise config.error("capture", "it is off (MPISERVE_CAPTURE), so there is nothing to learn")
    return Work(session, config, trainers[mine], captured[1])


def _is_over(session: Session, names: list[str]) -> bool:
    """Whether all heads say that every simulation rank has left."""
    return all(state.state == GONE for name in names for state in session.states(name))


class Work:
    """The process that trains, and what it asks for.

    Args:
        session: Of this rank.
        config: The configuration.
        name: Of the trainer.
        captured: The folder of the capture.
    """

    def __init__(self, session: Session, config: Config, name: str, captured: Path) -> None:
        self._session, self._config, self._name = session, config, name
        self._service = trained(config, name)
        self._version = self._service.version  # that answers
        self._captured = captured
        self._restarts = Restarts(DEATHS, DEATHS_S)
        self._rest = b""
        self._leaving = self._begun = False
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def look(self, seconds: float) -> None:
        """Do what the process asks for, or wait so long."""
        if self._process is None or self._process.stdout is None:
            time.sleep(seconds)
            return
        ready, *_ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            return
        data = os.read(self._process.stdout.fileno(), 2**16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))
        if not data:
            self._lose()

    def leave(self) -> None:
        """Tell the process that the session is over: it writes its last checkpoint.

        One that is still importing torch has learnt nothing: it is ended.
        """
        self._leaving = True
        if self._process and not self._begun:
            self._process.kill()
        if self._process and self._process.stdin:
            self._process.stdin.close()

    def end(self) -> None:
        """Wait for the end of the process."""
        if self._process is None:
            return
        end = time.monotonic() + END_S
        while self._process and time.monotonic() < end:
            self.look(LOOK)
        if self._process:
            text = "trainer %s: its last checkpoint takes more than %g s: it goes on alone"
            logger.warning(text, self._name, END_S)

    # ---- the process

    def _start(self) -> None:
        env = {name: value for name, value in os.environ.items() if not MPI_VARIABLES.match(name)}
        self._begun = False
        # In a session of its own, so that it sees the end of a job that is killed.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mpiserve.learning.child"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
        self._tell(
            {
                "config": base64.b64encode(pickle.dumps(self._config)).decode(),
                "name": self._name,
                "captured": str(self._captured),
                "version": self._version,
                "local_rank": self._session.comm.rank,
            }
        )

    def _tell(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        with suppress(OSError):  # it has ended: `look` says so
            while data and self._process and self._process.stdin:
                data = data[self._process.stdin.write(data) or 0 :]

    def _lose(self) -> None:
        """Note that the process has ended; start another one if it was killed."""
        assert self._process
        status, self._process, self._rest = self._process.wait(), None, b""
        if status == 0 or self._leaving:
            return
        how = f"signal {-status}" if status < 0 else f"status {status}"
        on = f"{self._version} answers on"
        if status > 0 or not self._restarts.count(time.monotonic()):
            logger.error(
                "trainer %s has ended (%s): there is no training now, %s", self._name, how, on
            )
            return
        text = "trainer %s has ended (%s): another one goes on from its checkpoint, %s"
        logger.error(text, self._name, how, on)
        self._start()

    # ---- what it asks for

    def _obey(self, message: dict[str, Any]) -> None:
        if message["m"] == "say":
            logger.log(logging.getLevelName(message["level"].upper()), "%s", message["text"])
        elif message["m"] == "begun":
            self._begun = True
        elif message["m"] == "publish" and not self._leaving:
            self._tell({"m": "published", "why": self._publish(**message)})

    def _publish(self, version: str, text: str, **_: Any) -> str:
        """Have the service answer with a version; say why it does not, or ""."""
        why = self._reload(version)
        if not why:
            self._version = version
            logger.info("trainer %s: %s", self._name, text)
            return ""
        if _is_over(self._session, [self._service.name]):
            return why
        # A replica that was late may load it still; after this none answers with it.
        late = self._reload(self._version)
        return f"{why}; {self._version} was not loaded again: {late}" if late else why

    def _reload(self, version: str) -> str:
        """Have all replicas answer with a version; say why some do not, or ""."""
        try:
            self._session.reload(self._service.name, version, RELOAD_S)
        except Error as error:
            return describe(error)
        return ""
