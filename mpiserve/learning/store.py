"""What a trainer leaves on the disk, and goes on from."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from mpiserve.backends.torch import training
from mpiserve.errors import Code, Error
from mpiserve.learning.reservoir import Rows

CHECKPOINT, RESERVOIR, PROGRESS, PICTURE = (
    *("checkpoint.safetensors", "reservoir.npz"),
    *("progress.json", "progress.png"),
)
LOCK = ".lock"


class Store:
    """The folder of a trainer. Each file has its name when it is complete.

    Args:
        folder: The folder, which is made when something is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def lock(self) -> None:
        """Keep other jobs from the folder until `unlock`, or the end of the process.

        Raises:
            Error: With code ESTATE, if a trainer of another job has it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK, os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.unlock()
            text = f"{self.folder} is in use by a trainer of another job: set folder in one of them"
            raise Error(Code.ESTATE, text) from None
        except OSError:  # it has no locks, or is not to be written to: checkpoints say that
            self.unlock()

    def unlock(self) -> None:
        """Leave the folder to others."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def save(self, table: training.State, about: dict[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            OSError: If it cannot be written, as where the disk is full.
        """
        training.save(self.folder / CHECKPOINT, table, {"state": json.dumps(about)})
        with training.replacing(self.folder / PROGRESS) as fresh:
            fresh.write_text(json.dumps(about, indent=1), encoding="utf-8")

    def save_pairs(self, arrays: Rows, seen: dict[str, int]) -> None:
        """Write the reservoir, with how many rows of which rank it has seen."""
        with training.replacing(self.folder / RESERVOIR) as fresh, open(fresh, "wb") as file:
            np.savez(file, **arrays, seen_rows=np.array(json.dumps(seen)))  # type: ignore[arg-type]

    def checkpoint(self) -> tuple[training.State, dict[str, Any]] | None:
        """Return the checkpoint; None: there is none yet.

        Raises:
            OSError, ValueError, KeyError: If it cannot be read.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        table, about = training.load(path)
        return table, json.loads(about["state"])

    def pairs(self) -> tuple[Rows, dict[str, int]] | None:
        """Return the reservoir and what it has seen; None: there is none yet.

        Raises:
            OSError: If it cannot be read.
        """
        path = self.folder / RESERVOIR
        if not path.exists():
            return None
        try:
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            return arrays, json.loads(str(arrays.pop("seen_rows")))
        except (ValueError, KeyError, BadZipFile, EOFError) as error:
            raise OSError(f"{path.name} is broken or cut off ({error})") from None
