"""What every backend is: load a model, run it on batches, let it go."""

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
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mpiserve.config.checks import suggest
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig


class Steps(ABC):
    """Continuous batching: requests come and go one by one, while a model goes on in steps.

    Called by one thread. A request is known by its key, from `begin` until a step gives its
    results or it is dropped.
    """

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is something to go on with; if not, the server waits for requests."""

    @property
    def room(self) -> bool:
        """Whether another request can begin; if not, those that come wait at the broker."""
        return True

    @abstractmethod
    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Take a request. What this raises is the answer to it.

        Args:
            key: What the request is known by.
            client: The world rank that asked.
            inputs: One array [rows, ...] per input, which may be kept.
        """

    @abstractmethod
    def step(self) -> Mapping[int, Any]:
        """Go on a little; called all the time, a few times a second at least.

        Returns:
            By key, what the requests that have ended are answered with: as `Backend.run`
            returns it, or an exception. What this raises is the answer to all requests, and
            each is dropped.
        """

    @abstractmethod
    def drop(self, key: int) -> None:
        """Forget a request, which nobody wants any more."""

    def take_over(self, old: Steps) -> None:  # noqa: B027 - most have nothing to take
        """Take what clients may come back for, of a version that has ended all requests.

        Called once, before the first request, by a reload that loads beside the old version.
        """


class Backend:
    """Runs the model of one replica.

    Subclass it, write `run`, and name the class in the configuration as
    `backend = "module:Class"`. `load` is where to build or read the model: it is
    called once, before the service is announced.

    Attributes:
        service: The service's table of the configuration.
        comm: The ranks of this replica.
        local_rank: Position among the inference ranks of this node, to choose a device by.
        steps: What takes requests one by one, if batches are not for this model; from
            `load` on.
    """

    steps: Steps | None = None
    native = False  # answered by the broker in C, without run()
    overwrites = False  # results lie where the inputs were; nothing is copied
    together = False  # the rows of a batch are one request, which is not to be cut
    copies = False  # the inputs of each batch are its own, to be written to and kept
    wants_clients = False  # `clients` is filled before each batch; of replicas of one rank
    clients: np.ndarray  # int32 [rows]: the world rank that asked for each row; -1 at warm-up

    def __init__(
        self, service: ServiceConfig, comm: MPI.Comm | None = None, local_rank: int = 0
    ) -> None:
        self.service = service
        self.comm = comm
        self.local_rank = local_rank

    @property
    def engine(self) -> str:
        """What runs the model, for people and logs: "package.module.Class"."""
        return full_name(type(self))

    @property
    def arithmetic(self) -> Sequence[str]:
        """Floating dtypes in which the model computes, beside those of the signature."""
        return ()

    def load(self) -> None:
        """Make the model ready to run."""

    def given(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Give what the model is called with for the inputs of a batch: these, or copies."""
        return tuple(array.copy() for array in inputs) if self.copies else inputs

    def writes(self, inputs: tuple[np.ndarray, ...]) -> bool:
        """Run the model; tell whether it is known to write to its inputs, whatever they are."""
        return False

    def run(self, inputs: tuple[np.ndarray, ...]) -> Any:
        """Run the model on one batch.

        Args:
            inputs: One array [rows, ...] per input of the signature, in its order.
                They view the broker's memory, are read-only, and are valid until this
                returns; or they are copies, if `copies` is set.

        Returns:
            One array [rows, ...] per output of the signature: a sequence in its
            order, a mapping by name, or for one output the array alone.
        """
        raise NotImplementedError(f"{full_name(type(self))} has no run()")

    def run_batch(
        self,
        inputs: tuple[np.ndarray, ...],
        outputs: tuple[np.ndarray, ...],
        done: Callable[[int], None],
    ) -> Any:
        """Run the model on one batch, perhaps with results where they are wanted.

        Args:
            inputs: As of `run`.
            outputs: One array [rows, ...] per output, in the broker's memory: what is
                written here is not copied again.
            done: To be called, if so many first rows of all `outputs` are final: their
                clients get them while the model goes on with the others.

        Returns:
            `outputs` itself if all results are there, or else as `run`.
        """
        return self.run(inputs)

    def serving(self) -> AbstractContextManager[Any]:
        """Enclose the time of serving: what else each batch would have to set up."""
        return nullcontext()

    def tune(self, inputs: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...]) -> None:
        """Find out what suits the model; called once after warming up, with its largest batch."""

    def take_over(self, old: Backend) -> None:
        """Take what the version before had found out; called instead of `tune`."""

    def warmed(self) -> None:
        """Hear that warm-up is over: what comes now are requests."""

    def close(self) -> None:
        """Let the model go."""


def full_name(thing: Any) -> str:
    """Name a class or a function with its module."""
    return f"{thing.__module__}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def ordered(result: Any, service: ServiceConfig) -> list[Any]:
    """Bring what a model returned into the order of the signature's outputs.

    Raises:
        ModelError: If the names or the number of the outputs are wrong.
    """
    return arranged(result, [tensor.name for tensor in service.outputs], "outputs")


def arranged(result: Any, names: Sequence[str], what: str) -> list[Any]:
    """Bring arrays into the order of their names.

    Args:
        result: A sequence in that order, a mapping by name, or for one name the array.
        names: In the order that is wanted.
        what: What they are, for an error.

    Raises:
        ModelError: If the names or the number are wrong.
    """
    if isinstance(result, (tuple, list)):
        arrays = list(result)
    elif hasattr(result, "dtype"):  # an array or a tensor: no costly look at what else it may be
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

    A module may lie in the configuration's folder, and the path of a file begins there. The file
    finds modules beside it, as a script does.

    Raises:
        ModelError: If there is no such module or file, or no such object in it.
    """
    place, _, name = spec.partition(":")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module_name = module_of(spec, folder)
    try:
        return getattr(_imported(place, module_name, folder), name)
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
    """Name the module of "module:object" or "file.py:object" in sys.modules.

    That of a file is named as it would be by an import, unless another module has this name.
    """
    place = spec.partition(":")[0]
    if not place.endswith(".py"):
        return place
    path = (folder / place).resolve()
    if path.stem.isidentifier():
        taken = sys.modules.get(path.stem)
        origin = getattr(taken, "__file__", None) if taken else _origin(path.stem)
        if (taken is None and origin is None) or _same(origin, path):
            return path.stem
    return f"{path.stem}_{crc32(str(path).encode(errors='surrogateescape')):08x}"


def _origin(name: str) -> str | None:
    try:
        found = find_spec(name)
    except ValueError:  # a module without one, or no name
        return None
    return found.origin or str(found.submodule_search_locations) if found else None


def _same(origin: str | None, path: Path) -> bool:
    return origin is not None and Path(origin).resolve() == path


def _imported(place: str, name: str, folder: Path) -> ModuleType:
    if not place.endswith(".py"):
        return import_module(name)
    path = (folder / place).resolve()
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
    """Read a module anew, if it was imported before.

    What was made by the module before keeps it: importlib.reload would change it under the
    version that still answers. Modules that it imports are not read again.
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
    # Not the compiled file: it knows its source by size and second only.
    path = loader.get_filename(module.__name__)
    exec(loader.source_to_code(loader.get_data(path), path), module.__dict__)


def check_options(service: ServiceConfig, known: Sequence[str]) -> None:
    """Refuse options that the backend does not know.

    Raises:
        ArgumentError: With the key, and the one that was perhaps meant.
    """
    for key in service.options:
        if key not in known:
            text = f"service.{service.name}.options.{key}: unknown key {suggest(key, known)}"
            raise ArgumentError(Code.EARG, text)
