"""One rank's membership of a coupled world."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from mpi4py import MPI

from mpiserve._lib import core
from mpiserve.config import Config
from mpiserve.config.partition import INFERENCE, SIMULATION, Seat, assign, by_node, roles
from mpiserve.errors import ArgumentError, Code, ConfigError, Error
from mpiserve.failure import TEXT, describe, interrupts, kind_of, one_line, text_of
from mpiserve.mpi import check
from mpiserve.observe import notices

logger = logging.getLogger("mpiserve")

check.require(check.mpi_mismatch(core.mpi_build(), core.mpi_runtime()))
check.require(check.mpi_mismatch(core.mpi_runtime(), MPI.Get_library_version()))
atexit.register(core.keep_mpi)


class Session:
    """What `mpiserve.open` returns: a role, the ranks that share it, and the services.

    A context manager. When its body ends with an exception on a simulation rank,
    the other ranks learn of it, and the world closes without a hang.

    Threads may use it at the same time. A forked child may not: all calls are errors there,
    and its end is no event of the session.

    Attributes:
        role: "simulation" or "inference".
        comm: The ranks of this role, in the order of the world.
        stuck: Whether something of this rank may wait for ever, after it has served: it worked
            together with others, one of which fell out of step.
    """

    def __init__(self, lib: core.Session, config: Config | None = None) -> None:
        self._lib = lib
        self._config = config
        self._served = False
        self._closed = False
        self.stuck = False
        self.role: str = lib.role
        self.comm: MPI.Comm = lib.comm
        if self.role == SIMULATION:
            atexit.register(self._at_exit)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if core.is_forked():
            return
        if error is None or is_success(error):
            self.close()
            return
        if not isinstance(error, SystemExit):
            # Said now, because the other ranks may be stuck, and the job be aborted.
            _Process.on_error(error)
        self.abandon(error)

    @property
    def services(self) -> tuple[core.Service, ...]:
        """The services of the world; on simulation ranks."""
        return tuple(self._lib.services())

    def service(self, name: str) -> core.Service:
        """Find a service; on simulation ranks.

        Raises:
            NotFoundError: If there is none of this name.
            ModelError: If none of its replicas could load its model.
        """
        return self._lib.service(name)

    def reload(self, name: str, version: str = "", timeout: float | None = None) -> None:
        """Load another version of a service's model while the simulation goes on.

        Called by one simulation rank; not collective. Replicas answer with the version that
        they have until all have loaded the new one. What any rank submits after this has
        returned is answered by the new one.

        Args:
            name: Of the service.
            version: A name, which the service's `model` or `options` give a meaning. If not
                given, the version that is there is read again.
            timeout: In seconds; None waits without end. After RequestTimeout nothing has
                changed, or replicas change when what they have begun has ended.

        Raises:
            ModelError: If a replica could not load it, with the reason. The version before
                goes on everywhere; with `reload = "in-place"` at this replica alone.
            ConfigError: If the version has no meaning for the service.
            NotFoundError: If there is no such service.
            Error: With code ESTATE, if another rank is reloading it.
        """
        self._lib.reload(name, version, timeout)

    def unload(self, name: str, timeout: float | None = None) -> None:
        """Free the memory of a service's model, at all replicas; on simulation ranks.

        Requests, also those that wait, are ModelErrors from then on, until a `reload`.
        """
        self._lib.unload(name, timeout)

    def serve(self, watch: Callable[[], None] | None = None) -> bool:
        """Load this rank's model and answer until every simulation rank has left.

        Collective over the inference ranks, which were opened with a configuration.

        Args:
            watch: Called at least a few times a second while nothing is computed.

        Returns:
            Whether the model could be loaded.

        Raises:
            ConfigError: If the services need more or fewer ranks than there are.
            PeerError: When the clients have left, if another rank of this replica is gone:
                close would wait for it for ever.
        """
        from mpiserve.serving.worker import Worker, refuse

        self._served = True
        if self._config is None:
            raise Error(Code.ESTATE, "an inference rank is opened with a configuration")
        try:
            seat = assign(self._config, self.comm.size)[self.comm.rank]
        except ConfigError as error:
            refuse(self._lib, self._config.services[0].name, error)
            raise
        core.keep_freed_memory()
        replica = self._replica_comm(seat)
        local_rank = self._local_rank()
        pool = self._pool_comm(seat)
        worker = Worker(self._lib, seat, replica, local_rank, pool)
        try:
            with interrupts():
                worker.serve(watch)
        except BaseException as error:
            if core.is_forked():  # by a model, and came out of it: the rank itself goes on
                end_child(error)
            raise
        self.stuck = worker.broken
        for comm in (replica, pool):
            if comm is not None and not self.stuck:
                comm.Free()
        return not worker.failed

    def fail(self, error: BaseException | str) -> None:
        """Tell the other ranks that this simulation rank ended with an error."""
        self._lib.fail(error if isinstance(error, str) else where(error))

    def abandon(self, error: BaseException | str) -> None:
        """Tell the other ranks of an error and leave. Nothing that fails here hides it."""
        if core.is_forked():
            return
        try:
            if not self._closed and self.role == SIMULATION:
                self.fail(error)
            self.close()
        except Error as second:
            logger.warning("closing the session after an error: %s", second)

    def peer_error(self) -> tuple[int, int, str]:
        """Ask whether a simulation rank ended with an error; on inference ranks.

        Returns:
            Its world rank or -1, the simulation ranks that have not left, its text.
        """
        return self._lib.peer_error()

    def info(self) -> dict[str, Any]:
        """Describe the session as this rank sees it."""
        counters = self._lib.counters()
        services = self._lib.services() if self.role == SIMULATION else []
        return {
            "version": core.version(),
            "mpi": check.short(core.mpi_runtime()),
            "thread_level": check.thread_level(MPI),
            "role": self.role,
            "roles": {role: self._lib.roles.count(role) for role in (SIMULATION, INFERENCE)},
            "services": [
                {
                    key: getattr(service, key)
                    for key in ("name", "engine", "version", "rows", "replicas", "head")
                }
                for service in services
            ],
            "transports": {service.name: service.transport for service in services},
            "broker_thread": counters["thread_polls"] > 0,
            "counters": counters,
        }

    def close(self) -> None:
        """Leave. Collective over the world; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        if self.role == INFERENCE and not self._served:
            self._refuse("its rank closed the session without serving")
        self._lib.close()

    def _refuse(self, text: str) -> None:
        from mpiserve.serving.worker import refuse

        self._served = True
        name = self._config.services[0].name if self._config else "service"
        refuse(self._lib, name, Error(Code.EMODEL, text))

    def _at_exit(self) -> None:
        """A program that forgot to close, or died: the other ranks wait for it."""
        if not core.is_forked() and not MPI.Is_finalized():
            error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
            self.abandon(error) if error else self.close()

    def _replica_comm(self, seat: Seat) -> MPI.Comm:
        seats = assign(self._config, self.comm.size) if self._config else []
        heads = [(s.service.name, s.replica) for s in seats]
        return self.comm.Split(heads.index((seat.service.name, seat.replica)), seat.tp_index)

    def _pool_comm(self, seat: Seat) -> MPI.Comm | None:
        """The ranks of this rank's adaptive pool. Collective, where there is any."""
        config = self._config
        if config is None or not any(pool.loaded for pool in config.pool.values()):
            return None
        mine = bool(seat.pool and seat.pool.loaded)
        names = [service.name for service in config.services]
        color = names.index(seat.service.name) if mine else MPI.UNDEFINED
        comm = self.comm.Split(color, seat.replica)
        return comm if mine else None

    def _local_rank(self) -> int:
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        rank = node.rank
        node.Free()
        return rank


def _log_error(error: BaseException) -> None:
    logger.error("leaving the session after %s", where(error))


class _Process:
    """What a launcher has to know, and to change, of this process."""

    attempted = False
    session: Session | None = None
    prepared: Session | None = None
    on_error: Callable[[BaseException], None] = staticmethod(_log_error)
    under_run = False


def latest() -> Session | None:
    """The session that this process opened last, if it could."""
    return _Process.session


def attempted() -> bool:
    """Whether this process tried to open a session."""
    return _Process.attempted


def is_forked() -> bool:
    """Whether this process was forked from a rank, and is none itself."""
    return core.is_forked()


def launched_by_run(show: Callable[[BaseException], None]) -> None:
    """Tell that `run` started this program, and how it shows exceptions that end a session."""
    _Process.under_run = True
    _Process.on_error = staticmethod(show)


def prepare() -> Session:
    """Open the session that the script's `open` is to give. Collective over the world."""
    _Process.prepared = join(MPI.COMM_WORLD, SIMULATION)
    return _Process.prepared


def open(comm: MPI.Comm | None = None, config: Config | str | Path | None = None) -> Session:
    """Join the session of a world. Collective over the world.

    Args:
        comm: The world; MPI_COMM_WORLD if not given.
        config: The configuration, or its file, if this program is to hold inference
            ranks too: its partition says which. Read on rank 0 alone. Without one,
            this is a simulation rank.

    Returns:
        On simulation ranks, when every service is ready or has failed. On inference
        ranks at once: they must call `serve`.

    Raises:
        ConfigError: On every rank, if the configuration is wrong on any.
        Error: With code EVERSION or ETHREAD, if the ranks do not fit together.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if _Process.under_run:
        _check_under_run(comm, config)
    if _Process.prepared:
        prepared, _Process.prepared = _Process.prepared, None
        return prepared
    if config is None:
        return join(comm, SIMULATION)
    agreed, role = agree(comm, config)
    return join(comm, role, agreed)


def agree(comm: MPI.Comm, config: Config | str | Path) -> tuple[Config, str]:
    """Read a configuration on rank 0 and find this rank's role. Collective.

    Raises:
        ConfigError: On every rank alike.
    """
    check_world(comm)
    outcome = comm.bcast(read(config) if comm.rank == 0 else None)
    if isinstance(outcome, Error):
        raise outcome
    return outcome, roles(outcome, comm.size, _nodes(comm, outcome))[comm.rank]


def join(comm: MPI.Comm, role: str, config: Config | None = None) -> Session:
    """Join with a role that is known. Collective."""
    _Process.attempted = True
    check_world(comm)
    with notices.opening(comm.size) if role == INFERENCE else nullcontext():
        lib = core.Session(comm, role)
    session = Session(lib, config)
    _Process.session = session
    return session


def refuse(comm: MPI.Comm, error: Error) -> bool:
    """Take part in every rank's open with an error. Collective, on an inference rank.

    Returns:
        Whether this is the first of the ranks that failed: the one to print it.
    """
    _Process.attempted = True
    check_world(comm)
    try:
        core.Session.open_failed(comm, INFERENCE, int(error.code), error.text)
    except Error as raised:
        # The others get the first one's text behind its rank.
        return error.text.startswith(raised.text)
    return False


def check_world(comm: MPI.Comm) -> None:
    """Refuse a world that is not the one that was launched.

    Raises:
        Error: With code EVERSION, naming the launcher's variable and the library.
    """
    if comm.size == 1 and MPI.Comm.Compare(comm, MPI.COMM_WORLD) <= MPI.CONGRUENT:
        library = MPI.Get_library_version()
        check.require(check.world_mismatch(MPI.COMM_WORLD.size, library, os.environ))


def _check_under_run(comm: MPI.Comm, config: object) -> None:
    """Refuse what would wait for ever: the inference ranks joined one session of the world."""
    if config is not None:
        raise ArgumentError(Code.EARG, "under `run` the configuration is the one that it was given")
    if MPI.Comm.Compare(comm, MPI.COMM_WORLD) > MPI.CONGRUENT:
        raise ArgumentError(Code.EARG, "under `run` the world of a session is MPI_COMM_WORLD")
    if _Process.attempted and not _Process.prepared:
        raise Error(Code.ESTATE, "under `run` a program opens one session")


def is_success(error: BaseException) -> bool:
    """Whether an exception is a program's ordinary end."""
    if not isinstance(error, SystemExit):
        return False
    return error.code is None or (isinstance(error.code, int) and not error.code)


def end_child(error: BaseException | None) -> NoReturn:
    """End a forked child that came out of a model, with the status of a program that ends so."""
    status = 0
    while error is not None and not isinstance(error, SystemExit):
        if not isinstance(error, Error) or error.code != Code.ESTATE or error.__context__ is None:
            traceback.print_exception(error)
            status = 1
            break
        error = error.__context__
    if isinstance(error, SystemExit):
        status = exit_status(error)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def exit_status(error: SystemExit) -> int:
    """What a program ends with; a text is printed, as Python does."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    try:
        print(error.code, file=sys.stderr, flush=True)
    except BaseException:
        print(text_of(error.code), file=sys.stderr, flush=True)
    return 1


def where(error: BaseException) -> str:
    """Put an exception and the place where it was raised into one line."""
    if isinstance(error, SystemExit):
        return one_line(f"the program ended with status {text_of(error.code)}")
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if not frame.filename.endswith(".pyx")]
    place = f" ({Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    text = text_of(error) or "no text"
    return one_line(f"{kind_of(error)}: {text}", TEXT - len(place.encode())) + place


def read(config: Config | str | Path) -> Config | Error:
    """Read a configuration, or give what is wrong: no rank may leave the others waiting."""
    try:
        return config if isinstance(config, Config) else Config.load(config)
    except Error as error:
        return error
    except Exception as error:
        return ConfigError(Code.ECONFIG, f"{config}: {describe(error)}")


def _nodes(comm: MPI.Comm, config: Config) -> list[int] | None:
    """The node of each rank, as its lowest rank; only where the placement asks."""
    if not by_node(config):
        return None
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    first = node.bcast(comm.rank)
    node.Free()
    return comm.allgather(first)
