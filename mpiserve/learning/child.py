"""The process of a trainer, without MPI; started by `rank`.

    python -P -m mpiserve.learning.child

It reads lines of JSON from the rank, and writes such lines to it.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpiserve.config.trainer import trained
from mpiserve.failure import describe, trace_of
from mpiserve.learning.trainer import Trainer
from mpiserve.observe.capture_writer import Orders

NAP = 0.2  # seconds between two looks for pairs, while it does not train
LAST_S = 600.0  # that it may take for its last checkpoint when its rank has ended
NICE = 5  # the simulation comes first where they share cores


class OverError(Exception):
    """The session has ended while a version was published."""


class Link:
    """What this process and its rank tell each other.

    Args:
        number: The file that the rank reads.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self.orders = Orders()

    def say(self, level: str, text: str) -> None:
        """Have the rank log a line."""
        self._tell({"m": "say", "level": level, "text": text})

    def begun(self) -> None:
        """Tell the rank that there will be something to keep."""
        self._tell({"m": "begun"})

    def publish(self, version: str, text: str) -> str:
        """Have the service answer with a version; return why it does not, or "".

        Raises:
            OverError: If nobody says so any more.
        """
        self._tell({"m": "publish", "version": version, "text": text})
        while not self.orders.over:
            for order in self.orders.wait(NAP):
                if order["m"] == "published":
                    return str(order["why"])
        raise OverError

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the rank has ended, and `orders` sees it
            os.write(self._number, json.dumps(message).encode() + b"\n")


def trainer_of(link: Link) -> Trainer:
    """Make the trainer that the first line describes."""
    told = link.orders.first()
    config = pickle.loads(base64.b64decode(told["config"]))
    name, table = told["name"], config.trainer[told["name"]]
    service = trained(config, name)
    if told["version"] != service.version:  # after an earlier process of this trainer
        service = service.model_copy(update={"version": told["version"]})
    folder = config.folder / table.folder / name
    made = (name, service, table, folder, Path(told["captured"]))
    return Trainer(*made, link.say, link.publish, told["local_rank"])


def work(link: Link) -> None:
    """Train until the rank has ended."""
    trainer = trainer_of(link)
    with suppress(OverError):
        trainer.begin()
        link.begun()
        while not link.orders.over:
            worked = trainer.turn()
            link.orders.wait(0 if worked else NAP)
    trainer.end()


def end_in_time() -> None:
    """End this process some time after its rank, also if a step of the user's never returns."""
    rank = os.pidfd_open(os.getppid())
    select.select([rank], [], [])
    time.sleep(LAST_S)
    os._exit(1)


def main() -> int:
    """Be the process; what fails is one line, and where it failed goes to the standard error."""
    os.nice(NICE)
    number = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints is no message
    link = Link(number)
    threading.Thread(target=end_in_time, daemon=True).start()
    try:
        work(link)
    except Exception as error:
        sys.stderr.write(trace_of(error))
        link.say("error", f"training has failed: {describe(error)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
