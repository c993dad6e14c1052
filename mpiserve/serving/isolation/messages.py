"""What an inference rank and the child process of a model tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpiserve.errors import CausedError, Error, from_code
from mpiserve.failure import Traced, cause_of, code_of, describe, trace_of

if TYPE_CHECKING:
    from mpiserve.backends.base import Native
    from mpiserve.backends.torch.peers import Meeting
    from mpiserve.config import ServiceConfig
    from mpiserve.serving.loading import Known


@dataclass(frozen=True)
class Order:
    """What a child shall load, and where.

    Attributes:
        service: The table of the service, for one version.
        local_rank: Position among the inference ranks of this node.
        path: Where Python looks for modules.
        environment: The environment of the rank, without MPI's variables.
        cores: The cores that the rank may use.
        level: The level of the log.
        tuning: What the version before has measured.
        in_c: Whether an engine in C runs that version; None if there is none.
        known: What warm-up has found out, if the same model was loaded before.
        meeting: Where the children of the replica's ranks meet, if there are several.
    """

    service: ServiceConfig
    local_rank: int
    path: tuple[str, ...]
    environment: Mapping[str, str]
    cores: frozenset[int]
    level: int
    tuning: Any = None
    in_c: bool | None = None
    known: Known | None = None
    meeting: Meeting | None = None


@dataclass(frozen=True)
class Loaded:
    """What a child says of the model that it has loaded: attributes of its backend, and more.

    Attributes:
        libraries: Large libraries that it has imported.
        remarks: Remarks for the user about the model.
        steps: The state of the model's steps, if it works in steps.
        takes_over: Whether these steps can take over state of another version.
        native: The engine in C that was chosen, if one was.
        to_compile: As of the backend.
    """

    engine: str
    together: bool
    copies: bool
    wants_clients: bool
    tuning: Any
    libraries: tuple[str, ...]
    remarks: tuple[str, ...]
    steps: StepsState | None
    takes_over: bool
    native: Native | None = None
    to_compile: str = ""


@dataclass(frozen=True)
class StepsState:
    """Whether the steps of a model have work, and room for more; or why that is unknown."""

    busy: bool | Failure
    room: bool | Failure


@dataclass(frozen=True)
class Failure:
    """An exception of a child, without its class, which the rank need not know."""

    code: int
    text: str
    trace: str  # "" if the text is enough

    @staticmethod
    def of(error: BaseException) -> Failure:
        """Describe an exception."""
        cause = cause_of(error)
        return Failure(code_of(error), describe(error), trace_of(cause) if cause else "")

    def error(self) -> Error:
        """Make an exception of the rank, with the same text and traceback."""
        if not self.trace:
            return from_code(self.code, self.text)
        error = CausedError(self.code, self.text)
        error.__cause__ = Traced(self.trace)
        return error


@dataclass(frozen=True)
class Answer:
    """The answer to a message: a result, or an exception; and records of the log."""

    result: Any = None
    failure: Failure | None = None
    log: tuple[tuple[int, str], ...] = ()
