"""The table `[capture]`: requests and answers are kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StrictStr, model_validator

from mpiserve.config.tables import Names, Table

if TYPE_CHECKING:
    from mpiserve.config.file import Config

VARIABLE = "MPISERVE_CAPTURE"
OFF = ("off", "0")


class CaptureConfig(Table):
    """The table `[capture]`: requests and answers of services are written to files."""

    folder: StrictStr = "capture"
    """Where the files are, from the folder of this file. `MPISERVE_CAPTURE`, from the working
    folder, is in place of it, and turns the capture on without this table too; `off` turns it off.
    """
    services: Names = ()
    """The names of the services; by default all. Derivatives are captured only if they are named.
    """
    rows: Literal["all", "untrusted"] = "all"
    """Which rows of an answer: all, or those whose uncertainty is above the limit alone; then a
    service without an uncertainty has none.
    """
    share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The share of the requests, by chance."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Which requests these are: the same ones in each run, by rank and number of the request."""
    every_steps: Annotated[int, Field(ge=1, le=2**31)] = 1
    """Only each so many-th time step of a simulation that calls `step`."""
    every_batches: Annotated[int, Field(ge=1, le=2**31)] = 1
    """Only each so many-th batch of an inference rank."""
    on_full: Literal["drop", "wait"] = "drop"
    """What happens when the disk is slower than the requests: rows are dropped and counted, or
    answers wait.
    """
    buffer_bytes: Annotated[int, Field(ge=2**20, le=2**36)] = 2**26
    """The memory of an inference rank for rows that are not written yet. It holds at least four
    rows.
    """
    flush_s: Annotated[float, Field(ge=0.05, le=3600)] = 1.0
    """The longest time in seconds for which rows are in memory only."""
    compression: StrictStr = "none"
    """`gzip` and `lzf`, which every HDF5 library of h5py reads, or `blosc2`, `lz4`, `zstd` or
    another filter of hdf5plugin, if that is installed.
    """
    compression_level: Annotated[int | None, Field(ge=0, le=22)] = None
    """Of `gzip` (0 to 9, by default 4) and `zstd`."""

    @model_validator(mode="after")
    def _check_level(self) -> CaptureConfig:
        if self.compression_level is not None and self.compression not in ("gzip", "zstd"):
            raise ValueError(f"compression_level is not of compression = '{self.compression}'")
        if self.compression == "gzip" and (self.compression_level or 0) > 9:
            raise ValueError(f"compression_level {self.compression_level}: gzip has 0 to 9")
        return self


def wanted(config: Config) -> tuple[CaptureConfig, Path] | None:
    """Return what to capture and where to, by the environment and the configuration."""
    text = os.environ.get("MPISERVE_CAPTURE", "")  # csrc/mpi/world.c reads it too
    if text in OFF or (not text and config.capture is None):
        return None
    table = config.capture or CaptureConfig()
    return table, Path(text).absolute() if text else config.folder / table.folder


@contextmanager
def announced(config: Config | None) -> Iterator[None]:
    """Tell the library at open that this session is captured, as the environment may not."""
    sets = config is not None and VARIABLE not in os.environ and wanted(config) is not None
    if sets:
        os.environ[VARIABLE] = "on"
    try:
        yield
    finally:
        if sets:
            del os.environ[VARIABLE]
