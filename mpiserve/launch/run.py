"""The programs `python -m mpiserve run` and `serve`, which may print, exit and abort."""

from __future__ import annotations

import atexit
import logging
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from mpi4py import MPI

from mpiserve import session
from mpiserve._lib import core
from mpiserve.config import Config, environment
from mpiserve.config.partition import GATEWAY, INFERENCE, TRAINER, assignments
from mpiserve.errors import Code, ConfigError, Error, PeerError
from mpiserve.failure import describe, exit_status, is_success, trace_of
from mpiserve.launch.static_check import findings
from mpiserve.mpi import check, host_watch, launcher
from mpiserve.mpi.affinity import bind
from mpiserve.observe.log import start_logging
from mpiserve.session import Session

OK, FAILURE, USAGE = 0, 1, 2  # exit statuses
WITH_ULFM = "OMPI_MCA_mpi_ft_enable"  # set by mpirun
SLURM = "slurmstepd"
# Measured with Slurm 22.05 and Open MPI 5.0.11, also with --no-kill --kill-on-bad-exit=0.
SRUN_ENDS_ALL = (
    "fault tolerance of Open MPI is switched on (%s), but srun ends all ranks when one dies: start "
    "them with `mpirun --with-ft ulfm` in the Slurm job"
)
GRACE = 10.0  # seconds, if MPISERVE_GRACE is not set
FLUSH = 0.5  # seconds for the launcher to pass on the log before an abort

logger = logging.getLogger("mpiserve")


def serve(config_file: str) -> int:
    """Serve a simulation in any language: every rank of this program is an inference rank."""
    comm = MPI.COMM_WORLD
    _begin(comm)
    config = session.read(config_file)
    if isinstance(config, Error):
        return _refuse(comm, config)
    return _infer(comm, config, bind_alone=config.partition.bind)


def gateway(config_file: str) -> int:
    """Answer clients outside of the job, beside a simulation in any language and `serve`."""
    return _alone(config_file, GATEWAY)


def train(config_file: str) -> int:
    """Train, beside a simulation in any language and `serve`: a rank for each trainer."""
    return _alone(config_file, TRAINER)


def _alone(config_file: str, role: str) -> int:
    comm = MPI.COMM_WORLD
    _begin(comm)
    config = session.read(config_file)
    if isinstance(config, Error):
        return _refuse(comm, config)
    return _be_guest(comm, config, role)


def run(config_file: str, script: str, args: Sequence[str], *, replace_world: bool = False) -> int:
    """Run a script on the simulation ranks, and serve on the others.

    With `replace_world`, mpi4py's COMM_WORLD holds only the simulation ranks while the script
    runs, and the script's `mpiserve.open` returns a session that is open already.
    """
    comm = MPI.COMM_WORLD
    _begin(comm)
    try:
        config, role = session.agree(comm, config_file)
        _find(comm, script)
        if config.partition.bind:
            bind(comm, _threads(comm, config, role))
    except Error as error:
        return complain(error, quiet=comm.rank > 0)
    if role == INFERENCE:
        return _infer(comm, config)
    if role in (GATEWAY, TRAINER):
        return _be_guest(comm, config, role)
    return _simulate_replaced(comm, script, args) if replace_world else _simulate(script, args)


def _begin(comm: MPI.Comm) -> None:
    """Log, and end this rank if other hosts or the launcher are gone."""
    start_logging(comm.rank)
    host_watch.watch(lose, host_watch.limit(), ranks_may_die=_ranks_may_die())
    if comm.rank == 0 and _ranks_may_die() and launcher.nearest() == SLURM:
        logger.warning(SRUN_ENDS_ALL, WITH_ULFM)
    if check.launched(os.environ) is not None:
        end_with_launcher()


def _ranks_may_die() -> bool:
    return os.environ.get(WITH_ULFM) in ("1", "true", "yes")


def end_with_launcher() -> None:
    """End this rank when its launcher ends, which kills no rank if it is killed itself."""
    os.environ["MPISERVE_END_WITH_LAUNCHER"] = "0"  # open need not do the same
    watched = launcher.watchable()
    if watched is None:
        lose("the launcher of this job has ended")
    try:
        core.end_with([os.pidfd_open(pid) for pid in watched or ()])
    except ProcessLookupError:
        lose("the launcher of this job has ended")
    except OSError:  # before Linux 5.3
        core.end_with_parent()


def complain(error: Error, *, quiet: bool = False) -> int:
    """Print an error, unless another rank does, and return the exit status."""
    if error.code == Code.EVERSION:
        # Each of these processes may be rank 0 of a world of its own.
        launch = check.launched(os.environ)
        quiet = quiet or (launch is not None and launch[2] > 0)
    if not quiet:
        print(f"mpiserve: {error}", file=sys.stderr, flush=True)
    return USAGE if isinstance(error, ConfigError) else FAILURE


class Guard:
    """Ends the job when one simulation rank has failed and others never leave.

    The others may wait for the failed one in a collective of their own, for ever. The
    inference ranks notice, because they wait for all simulation ranks.
    """

    def __init__(
        self,
        current: Session,
        abort: Callable[[int], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = current
        self._abort = abort
        self._clock = clock
        # One rank is enough. The next one follows a second later, if a model keeps this one busy.
        self._grace = grace() + current.comm.rank
        self._since: float | None = None
        self._next = 0.0

    def __call__(self) -> None:
        """Check for a failed rank, at most four times a second."""
        now = self._clock()
        if now < self._next:
            return
        self._next = now + 0.25
        rank, remaining, text = self._session.peer_error()
        if rank < 0 or remaining == 0:
            self._since = None
            return
        self._since = now if self._since is None else self._since
        if now - self._since >= self._grace:
            self._end(rank, remaining, text)

    def _end(self, rank: int, remaining: int, text: str) -> None:
        logger.error(
            "rank %d ended with an error (%s) and %d simulation rank(s) did not leave within "
            "%g s (MPISERVE_GRACE): aborting the job",
            rank,
            text,
            remaining,
            self._grace,
        )
        self._abort(FAILURE)


class Reporter:
    """Logs the exception that ended a script, once."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._last: BaseException | None = None

    def __call__(self, error: BaseException) -> None:
        """Log the traceback from the script's frame on, without the frames of mpiserve."""
        if error is self._last:
            return
        self._last = error
        if issubclass(type(error), PeerError):  # the failed rank logs its own error
            logger.error("ended, because %s", describe(error))
            return
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename != self._script:
            trace = trace.tb_next
        logger.error("ended by an exception\n%s", trace_of(error, trace))


def lose(text: str) -> None:
    """End this rank, which may wait in MPI for a host that is out of reach.

    MPI_Abort is not possible, since another thread may be inside MPI. The launcher ends the
    other ranks that it reaches.
    """
    logger.critical("%s: ending this rank", text)
    with suppress(Exception):
        _show_report()
    os._exit(FAILURE)


def abort(comm: MPI.Comm, status: int) -> None:
    """End the job, a moment after the reason was logged.

    MPICH 5.0.2's launcher kills at once and may lose output that it has not passed on: in a
    test the reason was missing once. Under `--with-ft ulfm` MPI_Abort ends this rank alone, and
    ranks that wait for each other wait on (Open MPI 5.0.11): there the launcher is asked.
    """
    _show_report()
    time.sleep(FLUSH)
    if _ranks_may_die():
        launcher.end_job()
    comm.Abort(status)


def _show_report() -> None:
    """Show what was measured before this rank ends without closing its session."""
    if current := session.latest():
        current.show_report()


def grace() -> float:
    """Return the seconds that simulation ranks have to leave after one of them failed."""
    return environment.seconds("MPISERVE_GRACE", GRACE)


def _refuse(comm: MPI.Comm, error: Error) -> int:
    try:
        first = session.refuse(comm, error)
    except Error as other:
        return complain(other)
    return complain(error, quiet=not first)


def _threads(comm: MPI.Comm, config: Config, role: str) -> int:
    """Return the threads of this inference rank; 0 on a simulation rank. Collective."""
    before = comm.allgather(role)[: comm.rank].count(INFERENCE)
    return _threads_of(config, before) if role == INFERENCE else 0


def _threads_of(config: Config, position: int) -> int:
    """Return the threads of an inference rank; 1 if the ranks are too many, a later error."""
    planned = assignments(config)
    if position >= len(planned):
        return 1
    return max(service.threads for service in planned[position].services)


def _find(comm: MPI.Comm, script: str) -> None:
    if not comm.bcast(Path(script).is_file() if comm.rank == 0 else None):
        raise ConfigError(Code.ECONFIG, f"{script}: no such file")


def _infer(comm: MPI.Comm, config: Config, *, bind_alone: bool = False) -> int:
    try:
        current = session.join(comm, INFERENCE, config)
    except Error as error:
        return _open_failed(comm, error)
    position = current.comm.rank
    try:
        if position == 0:
            _look(config)
            _miss_trainers(config, current)
        if bind_alone:  # the launcher binds the simulation ranks of another program
            bind(current.comm, _threads_of(config, position))
        served = current.serve(Guard(current, partial(abort, comm)))
        current.close()
    except ConfigError as error:
        current.close()
        # All inference ranks find an error in the file; one prints it.
        return complain(error, quiet=position > 0 and str(error).startswith(config.source))
    except PeerError as error:
        if not current.lost()[0]:  # it is stuck, and MPI_Finalize would wait for it
            logger.critical("%s: aborting the job", error)
            abort(comm, FAILURE)
            raise
        logger.error("%s", error)
        current.close()
        _leave(OK, finalize=False)
    except BaseException as error:
        # The simulation ranks wait for this rank, which cannot answer any more.
        logger.critical("this inference rank failed\n%s", trace_of(error))
        abort(comm, FAILURE)
        raise
    status = OK if served else FAILURE
    if current.stuck or current.bereft:
        _leave(status, finalize=not current.bereft)
    return status


def _be_guest(comm: MPI.Comm, config: Config, role: str) -> int:
    """Be a gateway or a trainer. What happens to it, the job goes on, and has another's status."""
    try:
        current = session.join(comm, role, config)
    except Error as error:
        return _open_failed(comm, error)
    end = _work_of_guest(current, config, comm.rank)
    try:
        current.close()
    except Error as error:
        logger.warning("%s", error)
    end()
    if current.bereft:
        _leave(OK, finalize=False)
    return OK


def _work_of_guest(current: Session, config: Config, rank: int) -> Callable[[], None]:
    """Do the work of a guest; return what is left when the session is closed."""
    if current.role == TRAINER:
        from mpiserve.learning.rank import learn

        return learn(current, config, rank)
    from mpiserve.gateway.rank import serve as answer_clients

    answer_clients(current, config, rank)
    return lambda: None


def _look(config: Config) -> None:
    """Log what the configuration names and is missing, before models load for minutes."""
    for finding in findings(config):
        level = logging.ERROR if finding.sure else logging.WARNING
        logger.log(level, "%s", config.error(finding.key, finding.text))


def _miss_trainers(config: Config, current: Session) -> None:
    """Say that trainers have no rank, as where `train` is missing beside `serve`."""
    if config.trainer and current.info()["roles"].get(TRAINER, 0) < len(config.trainer):
        text = f"{len(config.trainer)} need as many ranks: start `python -m mpiserve train` beside"
        logger.warning("%s", config.error("trainer", text))


def _leave(status: int, *, finalize: bool) -> NoReturn:
    """End a rank whose threads, or whose MPI_Finalize, may wait for another rank for ever.

    Destructors would not wait, but end it with a signal: "terminate called without an active
    exception", status 134 (torch 2.13.0, gloo). Exit handlers of libraries have to run: without
    MPICH's (5.0.2) its launcher takes the rank for a failed one, kills the others and forgets
    their statuses, so that mpiexec ends with 9 or 0, whatever they end with.
    """
    if finalize:
        MPI.Finalize()
    logging.shutdown()
    sys.stdout.flush()
    core.end_process(status)


def _open_failed(comm: MPI.Comm, error: Error) -> int:
    status = complain(error)
    if error.code == Code.ETIMEOUT:
        abort(comm, status)
    return status


class _World(MPI.Intracomm):
    """Replaces MPI_COMM_WORLD in a script that does not know about the inference ranks."""

    def Abort(self, errorcode: int = 0) -> NoReturn:  # noqa: N802
        """End the whole job, since the inference ranks would wait."""
        _REAL.Abort(errorcode)


_REAL = MPI.COMM_WORLD


@contextmanager
def _replaced(current: Session) -> Iterator[None]:
    """Replace mpi4py's COMM_WORLD by a communicator of the simulation ranks.

    It is a duplicate, since the script may close the session and go on. It is never freed:
    MPI_Comm_free would wait for a rank that failed.
    """
    world = _World(current.comm.Dup())
    world.Set_name("MPI_COMM_WORLD")
    world.Set_errhandler(MPI.ERRORS_RETURN)  # which mpi4py turns into exceptions
    MPI.COMM_WORLD = world  # type: ignore[misc]  # mpi4py itself does not read it
    try:
        yield
    finally:
        MPI.COMM_WORLD = _REAL  # type: ignore[misc]


def _simulate_replaced(comm: MPI.Comm, script: str, args: Sequence[str]) -> int:
    try:
        current = session.prepare()
    except Error as error:
        return _open_failed(comm, error)
    with _replaced(current):
        return _simulate(script, args)


def _simulate(script: str, args: Sequence[str]) -> int:
    show = Reporter(script)
    session.launched_by_run(show)
    status, error = _execute(script, args, show)
    current = session.latest()
    if session.is_forked():
        return status
    try:
        if not session.attempted():
            current = session.open()
        if current and error is not None:
            current.abandon(error)
        elif current:
            current.close()
    except Error as failure:
        status = complain(failure) if status == OK else status
    if current and current.bereft:
        atexit._run_exitfuncs()
        _leave(status, finalize=False)
    return status


def _execute(
    script: str, args: Sequence[str], show: Callable[[BaseException], None]
) -> tuple[int, BaseException | None]:
    """Run a script as `python script args` does; return its status and its error, if any."""
    sys.argv = [script, *args]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        return exit_status(error), None if is_success(error) else error
    except BaseException as error:
        show(error)
        return FAILURE, error
    return OK, None
