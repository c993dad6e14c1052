"""`check --load` and `compile`: load and warm up models in this process, without MPI; may print."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from mpiserve import terminal
from mpiserve.config import Config, ServiceConfig
from mpiserve.config.engines import engine_problem
from mpiserve.config.service import BACKENDS
from mpiserve.failure import cause_of, check_interrupt, describe, interrupts, trace_of
from mpiserve.serving.engines import engine_of
from mpiserve.serving.loading import Loader

OK, FAILURE = 0, 1  # exit statuses


class Outcome(NamedTuple):
    """The result of loading a model.

    Attributes:
        service: The name of the service.
        engine: The engine that would run the model.
        load: The seconds to load it.
        warm: The seconds to warm it up and examine it.
        outputs: The outputs, or why the model was not run.
        error: Why the model cannot be served, or "".
    """

    service: str
    engine: str = "-"
    load: float = 0.0
    warm: float = 0.0
    outputs: str = "-"
    error: str = ""


def compile_all(config: Config) -> int:
    """Compile each model that can be into the cache; print a table and the errors."""
    services = []
    for service in config.services:
        if service.derivative:
            continue
        if problem := engine_problem("compiled", service.__dict__):
            print(f"mpiserve: service {service.name}: {problem}", file=sys.stderr)
        else:
            services.append(service.model_copy(update={"engine": "compiled"}))
    return try_all(config, services)


def try_all(config: Config, services: Sequence[ServiceConfig] | None = None) -> int:
    """Load, warm up and close each model in turn, or those of some services.

    Prints a table and the errors.
    """
    with interrupts():
        tried = config.services if services is None else services
        outcomes = [_try(service) for service in tried]
    _show(outcomes)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        text = f"{config.source}: service.{outcome.service}: {outcome.error}"
        print(f"mpiserve: {text}", file=sys.stderr)
    return FAILURE if failed else OK


def _try(service: ServiceConfig) -> Outcome:
    note = ""
    if service.tensor_parallel > 1:
        if service.backend not in BACKENDS:
            return Outcome(service.name, outputs="not tried: tensor_parallel needs MPI")
        note = f", on 1 rank in place of {service.tensor_parallel}"
        service = service.model_copy(update={"tensor_parallel": 1})
    begin = time.monotonic()
    remarks: list[str] = []
    loader = Loader(None, 0, remarks.append)
    try:
        backend = loader.load(service.of_version())
    except BaseException as error:
        check_interrupt()
        if cause := cause_of(error):
            print(trace_of(cause), file=sys.stderr)
        return Outcome(service.name, load=time.monotonic() - begin, error=describe(error))
    end, loaded = time.monotonic(), loader.loaded
    engine = engine_of(backend)
    try:
        backend.close()
    except BaseException as error:
        check_interrupt()
        remarks.append(f"could not close its model: {describe(error)}")
    outputs = ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in service.outputs)
    if not service.warmup_rows:
        outputs = "not run: warmup = false"
    for remark in remarks:
        print(f"mpiserve: service {service.name}: {remark}", file=sys.stderr)
    return Outcome(service.name, engine, loaded - begin, end - loaded, outputs + note)


def _show(outcomes: list[Outcome]) -> None:
    from rich.table import Table

    table = Table("service", "engine", "loaded in", "warmed up in", "outputs")
    for outcome in outcomes:
        times = (f"{outcome.load:.2f} s", f"{outcome.warm:.2f} s")
        result = "failed" if outcome.error else outcome.outputs
        table.add_row(outcome.service, outcome.engine, *times, result)
    terminal.console().print(table)
