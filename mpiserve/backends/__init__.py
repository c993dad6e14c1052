"""Backends run models. Each imports its own libraries, when it loads a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Backend, import_object
from mpiserve.errors import Code, ModelError
from mpiserve.terminal import silence_libraries

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpiserve.config import ServiceConfig

_BUILT_IN = {
    "deepspeed": ("mpiserve.backends.torch.deepspeed_backend", "DeepSpeedBackend"),
    "torch": ("mpiserve.backends.torch.torch_backend", "TorchBackend"),
    "onnx": ("mpiserve.backends.onnx", "OnnxBackend"),
    "python": ("mpiserve.backends.python", "PythonBackend"),
    "echo": ("mpiserve.backends.echo", "EchoBackend"),
    "remote": ("mpiserve.backends.remote.remote_backend", "RemoteBackend"),
}


def known_options(service: ServiceConfig) -> tuple[str, ...] | None:
    """Return the options that a service's backend knows, without importing its libraries.

    Returns:
        The options; None if any may be right, as for keyword arguments and the user's classes.
    """
    if service.backend not in _BUILT_IN:
        return None
    kind = _built_in(_name(service))
    if service.task and service.backend != "remote":
        from mpiserve.backends.language.tasks import OPTIONS

        return (*OPTIONS[service.task], *kind.engine_options)
    return kind.known_options


def _name(service: ServiceConfig) -> str:
    """DeepSpeed's models without DeepSpeed are those of the backend torch."""
    return "torch" if service.engine == "eager" else service.backend


def _built_in(backend: str) -> Any:
    module, name = _BUILT_IN[backend]
    return getattr(import_module(module), name)


def create(service: ServiceConfig, comm: MPI.Comm | None = None, local_rank: int = 0) -> Backend:
    """Make the backend of a service, without loading its model.

    Raises:
        ModelError: If a class of the user's cannot be found or is not a Backend.
    """
    silence_libraries()
    if service.rows == "ragged":
        from mpiserve.backends.ragged import RaggedBackend

        return RaggedBackend(service, _create, comm, local_rank)
    if service.rows == "none" and (service.backend != "echo" or service.has_free_dims):
        from mpiserve.backends.whole import WholeBackend

        return WholeBackend(service, _create_any, comm, local_rank)
    return _create_any(service, comm, local_rank)


def _create_any(
    service: ServiceConfig, comm: MPI.Comm | None = None, local_rank: int = 0
) -> Backend:
    """Make a backend that takes arrays of any shape that the signature allows."""
    if service.has_free_dims:
        from mpiserve.backends.any_shape import AnyShapeBackend

        return AnyShapeBackend(service, _create, comm, local_rank)
    return _create(service, comm, local_rank)


def _create(service: ServiceConfig, comm: MPI.Comm | None = None, local_rank: int = 0) -> Backend:
    """Make a backend that takes arrays as clients give them."""
    if service.untrained:
        from mpiserve.backends.untrained import Untrained

        return Untrained(service, comm, local_rank)
    if service.uncertainty and service.uncertainty.method == "distance":
        from mpiserve.backends.distance import DistanceBackend

        return DistanceBackend(service, _create, comm, local_rank)
    if service.preprocess or service.postprocess:
        from mpiserve.backends.pre_post import ProcessedBackend

        return ProcessedBackend(service, _create, comm, local_rank)
    if service.derivative:
        from mpiserve.backends.torch.derivatives import DerivativeBackend

        kind = DerivativeBackend
    elif service.backend in _BUILT_IN:
        kind = _built_in(_name(service))
    else:
        kind = import_object(service.backend, service.folder)
    if not (isinstance(kind, type) and issubclass(kind, Backend)):
        text = f"'{service.backend}' is not a subclass of mpiserve.Backend"
        raise ModelError(Code.EMODEL, text)
    return kind(service, comm, local_rank)
