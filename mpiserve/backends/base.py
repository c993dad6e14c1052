"""The base class of backends: load a model, run it on batches, close it."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.abc import SourceLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

from mpiserve.config.values import suggest
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig


class Steps(ABC):
    """Continuous batching: requests begin and end one by one, while the model runs in steps.

    One thread calls these methods. A key identifies a request, from `begin` until a step
    returns its result or `drop` is called.
    """

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether `step` has work; if not, the worker waits for requests."""

    @property
    def room(self) -> bool:
        """Whether another request can begin; if not, new requests wait in the queue."""
        return True

    @abstractmethod
    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Accept a request. An exception of this method is the answer to the request.

        Args:
            key: The key of the request.
            client: The world rank of the client.
            inputs: One array [rows, ...] per input, which may be kept.
        """

    @abstractmethod
    def step(self) -> Mapping[int, Any]:
        """Do one step of the work. Called repeatedly, at least a few times a second.

        An exception of this method is the answer to all requests, and each is dropped.

        Returns:
            The results of the requests that have ended, by key: in a form that `Backend.run`
            may return, or an exception.
        """

    @abstractmethod
    def drop(self, key: int) -> None:
        """Drop a request whose result is not needed any more."""

    def take_over(self, old: Steps) -> None:  # noqa: B027 - most have nothing to take over
        """Take over state that clients may continue, from a version that has ended all requests.

        A reload beside the old version calls this once, before the first request. Where versions
        run in child processes, `old` is a copy by pickle: define `__getstate__` to copy only what
        this method reads.
        """


class Native(NamedTuple):
    """An engine in C that runs a model without Python: the arguments of `mpiserve_engine_load`.

    Attributes:
        library: The path of the library that makes it; None for the one that copies inputs.
        model: What the library makes it of.
        chunk_rows: The most rows that it gets at a time; 0: all rows of a batch.
        text: What it is, for people.
    """

    library: str | None
    model: str = ""
    chunk_rows: int = 0
    text: str = ""


class Backend:
    """Runs the model of one replica.

    Subclass it, write `run`, and name the class in the configuration as
    `backend = "module:Class"`. Build or read the model in `load`, which is called once, before
    the service is announced.

    Attributes:
        service: The service's table of the configuration.
        comm: The ranks of this replica.
        local_rank: Position among the inference ranks of this node, to choose a device by.
        steps: The continuous batching of the model, if it accepts requests one by one; set by
            `load`.
    """

    steps: Steps | None = None
    native: Native | None = None  # runs batches in C, without run(), which gets those it fails on
    forwards_to: Any = None  # a child process to which the library may hand batches over, in C
    overwrites = False  # results replace the inputs in the same memory, without a copy
    together = False  # a batch is one request, which must not be cut
    copies = False  # each batch has inputs of its own, which the model may change and keep
    wants_clients = False  # `clients` is set before each batch; for replicas of one rank
    to_compile = ""  # a file that is there once an engine in C has been compiled; "": none can be
    tune_result: Any = None  # what `tune` measured, for another process that loads the model
    elsewhere = False  # whether another model answers while this one is started again
    unavailable = False  # whether other replicas should answer for a while
    failing = False  # whether every batch is an error, as the model cannot be had
    clients: np.ndarray  # int32 [rows]: the world rank of the client of each row; -1 at warm-up

    def __init__(
        self, service: ServiceConfig, comm: MPI.Comm | None = None, local_rank: int = 0
    ) -> None:
        self.service = service
        self.comm = comm
        self.local_rank = local_rank

    @property
    def engine(self) -> str:
        """The object that runs the model, for texts: "package.module.Class"."""
        return full_name(type(self))

    @property
    def availability(self) -> str:
        """Whether the model answers: "ready", "restarting" or "failed"."""
        return "restarting" if self.unavailable else "failed" if self.failing else "ready"

    @property
    def arithmetic(self) -> Sequence[str]:
        """Floating dtypes of the model's arithmetic, in addition to those of the signature."""
        return ()

    def load(self) -> None:
        """Build or read the model."""

    def given(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Return the inputs of a batch, or copies if `copies` is set."""
        from mpiserve.backends.arrays import aligned  # late: it imports this module

        return tuple(aligned(array) for array in inputs) if self.copies else inputs

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Run the model, and return whether it is known to write to its inputs."""
        return False

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Run the model on one batch.

        Args:
            inputs: One array [rows, ...] per input, in the order of the signature. They are
                read-only views of the broker's memory and valid until this returns; or
                copies, if `copies` is set.

        Returns:
            One array [rows, ...] per output: a sequence in the order of the signature, a
            mapping by name, or for one output the array itself.
        """
        raise NotImplementedError(f"{full_name(type(self))} has no run()")

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Run the model on one batch, optionally writing results straight into `outputs`.

        Args:
            inputs: The inputs, as in `run`.
            outputs: One array [rows, ...] per output, in the broker's memory: results written
                here are not copied again.
            done: A function to call with the number of first rows of all `outputs` that are
                final: their clients receive them while the model runs on the others.

        Returns:
            `outputs` itself if it holds all results, otherwise the results as from `run`.
        """
        return self.run(inputs)

    def rerun_rows(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> Any:
        """Run the model on rows of a batch that has failed, as `run_batch` does."""
        return self.run_batch(inputs, outputs, lambda _: None)

    def supervise(self) -> None:
        """Called after each batch, and at least a few times a second without one."""

    def serving(self) -> AbstractContextManager[Any]:
        """Return a context for the time of serving, for settings that all batches share."""
        return nullcontext()

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Tune the model; called once after warm-up, with its largest batch."""

    def take_over(self, old: Backend) -> None:
        """Take over the tuning of the version before; called instead of `tune`."""

    def compiled(self, build: bool) -> Native | None:
        """Return an engine in C that computes what the model does; called after warm-up.

        Args:
            build: Whether to make it if there is none yet, which may take minutes.

        Returns:
            The engine; None if there is none yet: then `to_compile` is set.

        Raises:
            ModelError: If the model can have none, with the reason.
        """
        raise ModelError(Code.EMODEL, f"the backend '{self.service.backend}' compiles nothing")

    def warmed(self) -> None:
        """Called when warm-up is over and requests follow."""

    def close(self) -> None:
        """Free the model."""


def full_name(thing: Any) -> str:
    """Return the name of a class or a function, with its module."""
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def ordered(result: Any, service: ServiceConfig) -> list[Any]:
    """Put the result of a model into the order of the signature's outputs.

    Raises:
        ModelError: If the names or the number of the outputs are wrong.
    """
    return arranged(result, [tensor.name for tensor in service.outputs], "outputs")


def arranged(result: Any, names: Sequence[str], what: str) -> list[Any]:
    """Put arrays into the order of their names.

    Args:
        result: A sequence in that order, a mapping by name, or for one name the array.
        names: The names, in the order of the result.
        what: The kind of the arrays, for error texts.

    Raises:
        ModelError: If the names or the number are wrong.
    """
    if isinstance(result, (tuple, list)):
        arrays = list(result)
    elif hasattr(result, "dtype"):  # an array or a tensor; isinstance of Mapping is slow
        arrays = [result]
    elif isinstance(result, Mapping):
        arrays = _by_name(result, names, what)
    else:
        arrays = [result]
    if len(arrays) != len(names):
        text = f"expected {len(names)} {what} ({', '.join(names)}), got {len(arrays)}"
        raise ModelError(Code.EMODEL, text)
    return arrays


def _by_name(result: Mapping[str, Any], names: Sequence[str], what: str) -> list[Any]:
    if set(result) != set(names):
        got = ", ".join(map(str, result)) or "nothing"
        raise ModelError(Code.EMODEL, f"expected {what} {', '.join(names)}, got {got}")
    return [result[name] for name in names]


def import_object(spec: str, folder: Path) -> Any:
    """Import "module:object" or "file.py:object".

    A module may be in the configuration's folder, and the path of a file is relative to it. The
    file can import modules beside it, as a script can.

    Raises:
        ModelError: If the module, the file or the object does not exist.
    """
    module_or_file, _, name = spec.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module_name = module_of(spec, folder)
    try:
        return getattr(_imported(module_or_file, module_name, folder), name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        text = f"'{spec}': no module '{error.name}' in {folder} or on the Python path"
        raise ModelError(Code.EMODEL, text) from None
    except AttributeError as error:
        if not hasattr(error, "obj") or getattr(error.obj, "__name__", "") != module_name:
            raise
        raise ModelError(Code.EMODEL, f"'{spec}': the module has no '{name}'") from None


def module_of(spec: str, folder: Path) -> str:
    """Return the name in sys.modules for "module:object" or "file.py:object".

    The module of a file has the same name as if it were imported, unless another module has
    this name.
    """
    module_or_file = spec.partition(":")[0]
    if not module_or_file.endswith(".py"):
        return module_or_file
    path = (folder / module_or_file).resolve()
    if path.stem.isidentifier():
        taken = sys.modules.get(path.stem)
        origin = getattr(taken, "__file__", None) if taken else _origin(path.stem)
        if (taken is None and origin is None) or _same(origin, path):
            return path.stem
    return f"{path.stem}_{crc32(str(path).encode(errors='surrogateescape')):08x}"


def _origin(name: str) -> str | None:
    try:
        found = find_spec(name)
    except ValueError:  # a module without a spec, or an empty name
        return None
    return found.origin or str(found.submodule_search_locations) if found else None


def _same(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path


def _imported(module_or_file: str, name: str, folder: Path) -> ModuleType:
    if not module_or_file.endswith(".py"):
        return import_module(name)
    path = (folder / module_or_file).resolve()
    if not path.is_file():
        raise ModelError(Code.EMODEL, f"{path}: no such file")
    if str(path.parent) not in sys.path:
        sys.path.insert(1, str(path.parent))
    if name in sys.modules:
        return sys.modules[name]
    module = module_from_spec(spec_from_file_location(name, path))  # type: ignore[arg-type]
    sys.modules[name] = module
    try:
        module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def read_again(name: str) -> None:
    """Execute the source of a module again, if it was imported before, as a new module.

    importlib.reload would change the old module, which the version that still answers uses.
    Modules that it imports are not read again.
    """
    old = sys.modules.get(name)
    if old is None or old.__spec__ is None:
        return
    new = module_from_spec(old.__spec__)
    sys.modules[name] = new
    try:
        _execute(new, old.__spec__.loader)
    except BaseException:
        sys.modules[name] = old
        raise


def _execute(module: ModuleType, loader: Any) -> None:
    if not isinstance(loader, SourceLoader):
        loader.exec_module(module)
        return
    # Compile the source: the cached file identifies its source by size and second only.
    path = loader.get_filename(module.__name__)
    exec(loader.source_to_code(loader.get_data(path), path), module.__dict__)


def check_options(service: ServiceConfig, known: Sequence[str]) -> None:
    """Refuse options that the backend does not know.

    Raises:
        ArgumentError: With the key, and a similar one if there is one.
    """
    for key in service.options:
        if key not in known:
            text = f"service.{service.name}.options.{key}: unknown key {suggest(key, known)}"
            raise ArgumentError(Code.EARG, text)
