"""Open a session, which is one rank's membership of a coupled world."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mpi4py import MPI

from mpiserve._lib import core, described
from mpiserve._lib.changes import Changes
from mpiserve._lib.others import Others
from mpiserve.config import Config
from mpiserve.config.capture import announced
from mpiserve.config.partition import INFERENCE, SIMULATION, assign, by_node, on_one_rank, roles
from mpiserve.errors import ArgumentError, Code, ConfigError, Error, PeerError
from mpiserve.failure import describe, end_child, interrupts, is_success, located
from mpiserve.interactive import complete_services
from mpiserve.mpi import check
from mpiserve.observe import capture, exporter, notices, ranks
from mpiserve.observe.profile import Profile
from mpiserve.serving import comms

if TYPE_CHECKING:
    from mpiserve.serving.head_process import HeadProcess

logger = logging.getLogger("mpiserve")

check.require(check.mpi_mismatch(core.mpi_build(), core.mpi_runtime()))
check.require(check.mpi_mismatch(core.mpi_runtime(), check.library(MPI), by_family=False))
atexit.register(core.keep_mpi)


class Session(Changes, Others):
    """The result of `mpiserve.open`: a role, the ranks that share it, and the services.

    A context manager. When its body ends with an exception on a simulation rank, the other
    ranks are informed, and the world closes without a hang.

    Threads may use a session at the same time. A forked child may not: all calls raise an error
    there, and the end of the child does not affect the session.

    Attributes:
        role: "simulation", "inference", "gateway" or "trainer".
        comm: The ranks of this role, in the order of the world.
        run: The number of the session, which metrics have as a label.
        stuck: Whether a thread of this rank may wait for ever after `serve`, because another
            rank of its replica did not take part.
        bereft: Whether ranks had died when `close` returned: MPI_Finalize may wait for them for
            ever, so end the process with `os._exit`, as `run` and `serve` do.
    """

    def __init__(
        self, lib: core.Session, config: Config | None = None, beside: HeadProcess | None = None
    ) -> None:
        self._lib = lib
        self._config = config
        self._beside = beside
        self._profile = Profile(lib)
        self._served = self._closed = False
        self.stuck = self.bereft = False
        self.role: str = lib.role
        self.comm: MPI.Comm = lib.comm
        self.run: int = lib.profile()["run"]
        if self.role == SIMULATION:
            atexit.register(self._at_exit)
            complete_services(Session)

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
            # Log it now: the other ranks may be stuck, and the job may be aborted.
            _Process.on_error(error)
        self.abandon(error)

    def __repr__(self) -> str:
        return described.session(self._lib)

    @property
    def services(self) -> tuple[core.Service, ...]:
        """The services of the world; on simulation ranks."""
        return tuple(self._lib.services())

    def service(self, name: str) -> core.Service:
        """Find a service; on simulation ranks.

        Raises:
            NotFoundError: If there is no service of this name.
            ModelError: If none of its replicas could load its model.
        """
        return self._lib.service(name)

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
                MPI_Finalize may wait for it for ever.
        """
        # Simulation ranks do not need what serving imports.
        from mpiserve.serving.worker import Worker, refuse

        self._served = True
        if self._config is None:
            text = "serve needs a configuration: open(config=...) on the inference ranks"
            raise Error(Code.ESTATE, text)
        try:
            assignment = assign(self._config, self.comm.size)[self.comm.rank]
        except ConfigError as error:
            refuse(self._lib, self._config.services[0].name, error)
            raise
        core.keep_freed_memory()
        replica = comms.of_replica(self.comm, self._config, assignment)
        local_rank = comms.local_rank(self.comm)
        if local_rank == 0:
            exporter.start(self.run)
        pool = comms.of_pool(self.comm, self._config, assignment)
        captures = None if assignment.tp_index else capture.of_rank(self._lib, self._config)
        worker = Worker(self._lib, assignment, replica, local_rank, pool, captures)
        try:
            with interrupts():
                worker.serve(self._profile.watched(watch))
        except BaseException as error:
            if core.is_forked():  # a child that a model forked; the rank itself goes on
                end_child(error)
            self._profile.show()
            raise
        self.stuck = worker.broken
        for comm in (replica, pool):
            if comm is not None and not self.stuck:
                comm.Free()
        return not worker.failed

    def step(self) -> None:
        """Mark the begin of a time step, which ends the one before; on simulation ranks.

        With MPISERVE_PROFILE=summary the report says how long each step waited for models, and
        why. Without it the call does nothing.
        """
        self._lib.step()

    def report(self) -> dict[str, Any]:
        """Return what MPISERVE_PROFILE=summary has measured so far, on all ranks of this node.

        Ranks of other nodes are in it if they share the folder of the report. After `close` it is
        the whole report on the rank that prints it. Local; {} if the session is not profiled.
        """
        if not self._closed:
            self._lib.profile()  # which adds what this rank has asked last
        return self._profile.report()

    def show_report(self) -> None:
        """Print and write the report now, on the first inference rank, because the rank ends."""
        self._profile.show()

    def fail(self, error: BaseException | str) -> None:
        """Report to the other ranks that this simulation rank ended with an error."""
        self._lib.fail(error if isinstance(error, str) else located(error))

    def abandon(self, error: BaseException | str) -> None:
        """Report an error to the other ranks and leave. Further errors are only logged."""
        if core.is_forked():
            return
        try:
            if not self._closed and self.role == SIMULATION:
                self.fail(error)
            self.close()
        except Error as second:
            logger.warning("closing the session after an error: %s", second)

    def info(self) -> dict[str, Any]:
        """Describe the session as this rank sees it."""
        counters, every = self._lib.counters(), self._lib.roles
        services = self._lib.services() if self.role != INFERENCE else []
        return {
            "version": core.version(),
            "mpi": check.short(core.mpi_runtime()),
            "thread_level": check.thread_level(MPI),
            "role": self.role,
            "roles": {role: every.count(role) for role in sorted(set(every), reverse=True)},
            "services": [
                {
                    key: getattr(service, key)
                    for key in ("name", "engine", "version", "rows", "replicas", "head", "state")
                }
                for service in services
            ],
            "placement": ranks.placements(self.run),
            "transports": {service.name: service.transport for service in services},
            "broker_thread": counters["thread_polls"] > 0,
            "counters": counters,
        }

    def close(self, timeout: float | None = None) -> None:
        """Leave the session. Collective over the world; a second call does nothing.

        Other simulation ranks may go on for hours: what the ranks free together is freed by
        MPI_Finalize then. If ranks have died, `bereft` is set, and a warning logged.

        Args:
            timeout: In seconds; by default MPISERVE_CLOSE_TIMEOUT of the environment, or 30.

        Raises:
            RequestTimeout: If inference ranks did not answer in time; the text names them and
                says what they do. The session is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self._at_exit)
        if self.role == INFERENCE and not self._served:
            self._refuse("its rank closed the session without serving")
        try:
            self._lib.close(timeout)
        except ArgumentError:
            self._closed = False
            raise
        except PeerError as error:
            self.bereft = True
            logger.warning("%s", error)
        finally:
            if self._closed:
                self._profile.show(complete=not self.bereft)
                if self._beside:
                    self._beside.end()

    def _refuse(self, text: str) -> None:
        from mpiserve.serving.worker import refuse

        self._served = True
        name = self._config.services[0].name if self._config else "service"
        refuse(self._lib, name, Error(Code.EMODEL, text))

    def _at_exit(self) -> None:
        """Leave the session of a program that did not close it: the other ranks wait for it."""
        if not core.is_forked() and not MPI.Is_finalized():
            error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
            self.abandon(error) if error else self.close()


def _log_error(error: BaseException) -> None:
    logger.error("leaving the session after %s", located(error))


class _Process:
    """The state of this process that `run` needs."""

    attempted = False
    session: Session | None = None
    prepared: Session | None = None
    on_error: Callable[[BaseException], None] = staticmethod(_log_error)
    under_run = False


def latest() -> Session | None:
    """Return the session that this process opened last, or None."""
    return _Process.session


def attempted() -> bool:
    """Return whether this process tried to open a session."""
    return _Process.attempted


def is_forked() -> bool:
    """Return whether this process was forked from a rank."""
    return core.is_forked()


def launched_by_run(show: Callable[[BaseException], None]) -> None:
    """Note that `run` started this program, and how to show exceptions that end a session."""
    _Process.under_run = True
    _Process.on_error = staticmethod(show)


def prepare() -> Session:
    """Open the session that the script's `open` will return. Collective over the world."""
    _Process.prepared = join(MPI.COMM_WORLD, SIMULATION)
    return _Process.prepared


def open(comm: MPI.Comm | None = None, config: Config | str | Path | None = None) -> Session:
    """Join the session of a world. Collective over the world.

    Args:
        comm: The world; by default MPI_COMM_WORLD.
        config: The configuration, or its file, if this program has inference ranks too: its
            partition chooses them. Only rank 0 reads the file. Without a configuration this
            is a simulation rank. In a world of one rank it is the same as `local(config)`.

    Returns:
        The session: on simulation ranks when every service is ready or has failed, on inference
        ranks at once. Inference ranks must call `serve`.

    Raises:
        ConfigError: On every rank, if the configuration is wrong on any.
        Error: With code EVERSION or ETHREAD, if versions or thread levels of the ranks differ.
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    if _Process.under_run:
        _check_under_run(comm, config)
    if _Process.prepared:
        prepared, _Process.prepared = _Process.prepared, None
        return prepared
    if config is None:
        return join(comm, SIMULATION)
    if comm.size == 1:
        check_world(comm)
        return local(config)
    agreed, role = agree(comm, config)
    return join(comm, role, agreed)


def local(config: Config | str | Path) -> Session:
    """Open a session of this process alone, without mpiexec: for notebooks and first tries.

    A process beside this one is the inference rank, which serves all services of the
    configuration as in a job, one replica of each; it ends with the session, and with this
    process. A process may have several such sessions, and may be a rank of a job.

    Args:
        config: The configuration, or its file. What is about many ranks does not count here:
            `[partition]`, `replicas`, the ranks of pools, `[gateway]`.

    Returns:
        The session, of the role "simulation", when every service is ready or has failed.

    Raises:
        ConfigError: If the configuration is wrong, or a service has `tensor_parallel`.
        PeerError: If the inference process has ended; its log says why.
    """
    from mpiserve.serving.head_process import HeadProcess

    outcome = read(config)
    if isinstance(outcome, Error):
        raise outcome
    with HeadProcess.start(on_one_rank(outcome)) as head:
        lib = core.Session(None, SIMULATION, head.pair)
        return Session(lib, beside=head.kept())


def beside(config: Config, pair: tuple[int, int]) -> Session:
    """Be the inference rank of a session that another process opens by `local`."""
    with announced(config):
        lib = core.Session(None, INFERENCE, pair)
    return Session(lib, config)


def agree(comm: MPI.Comm, config: Config | str | Path) -> tuple[Config, str]:
    """Read a configuration on rank 0 and find this rank's role. Collective.

    Raises:
        ConfigError: On every rank alike.
    """
    check_world(comm)
    outcome = comm.bcast(read(config) if comm.rank == 0 else None)
    if isinstance(outcome, Error):
        raise outcome
    nodes = comms.nodes(comm) if by_node(outcome) else None
    return outcome, roles(outcome, comm.size, nodes)[comm.rank]


def join(comm: MPI.Comm, role: str, config: Config | None = None) -> Session:
    """Join the session with a given role. Collective."""
    _Process.attempted = True
    check_world(comm)
    with notices.opening(comm.size) if role == INFERENCE else nullcontext(), announced(config):
        lib = core.Session(comm, role)
    _Process.session = Session(lib, config)  # what `run` looks at, when this rank fails
    return _Process.session


def refuse(comm: MPI.Comm, error: Error) -> bool:
    """Make `open` fail on every rank with an error. Collective, on an inference rank.

    Returns:
        Whether this is the first of the ranks that failed, which must print the error.
    """
    _Process.attempted = True
    check_world(comm)
    try:
        core.Session.open_failed(comm, INFERENCE, int(error.code), error.text)
    except Error as raised:
        # On the others the text begins with the rank of the first one.
        return error.text.startswith(raised.text)
    return False


def check_world(comm: MPI.Comm) -> None:
    """Refuse a world of one rank if the launcher started several.

    Raises:
        Error: With code EVERSION, naming the launcher's variable and the library.
    """
    if comm.size == 1 and MPI.Comm.Compare(comm, MPI.COMM_WORLD) <= MPI.CONGRUENT:
        library = MPI.Get_library_version()
        check.require(check.world_mismatch(MPI.COMM_WORLD.size, library, os.environ))


def _check_under_run(comm: MPI.Comm, config: object) -> None:
    """Refuse calls that would hang, since the inference ranks join one session of the world."""
    if config is not None:
        text = "under `run` open takes no configuration: `run` has read it"
        raise ArgumentError(Code.EARG, text)
    if MPI.Comm.Compare(comm, MPI.COMM_WORLD) > MPI.CONGRUENT:
        raise ArgumentError(Code.EARG, "under `run` the world of a session is MPI_COMM_WORLD")
    if _Process.attempted and not _Process.prepared:
        raise Error(Code.ESTATE, "under `run` a program opens one session")


def read(config: Config | str | Path) -> Config | Error:
    """Read a configuration; return an error instead of raising it, as other ranks wait."""
    try:
        return config if isinstance(config, Config) else Config.load(config)
    except Error as error:
        return error
    except Exception as error:
        return ConfigError(Code.ECONFIG, f"{config}: {describe(error)}")
