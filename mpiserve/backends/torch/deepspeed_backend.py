"""The backend `deepspeed`, the default: run modules in DeepSpeed inference engines."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import import_object
from mpiserve.backends.language import huggingface
from mpiserve.backends.torch import dtypes, weight_broadcast
from mpiserve.backends.torch.compiling import compiled
from mpiserve.backends.torch.model_files import load_module
from mpiserve.backends.torch.torch_backend import TorchBackend, set_eval
from mpiserve.backends.torch.torch_world import close_torch_world, open_torch_world
from mpiserve.config import OBJECT
from mpiserve.errors import ArgumentError, Code, ModelError
from mpiserve.failure import check_interrupt, describe
from mpiserve.mpi.requests import agree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from mpi4py import MPI


CASTS = ("float", "half", "bfloat16")  # methods with which DeepSpeed converts a module
GPU_ONLY = ("replace_with_kernel_inject", "enable_cuda_graph")
ELSEWHERE = {
    "dtype": "dtype of the service itself",
    "tensor_parallel": "tensor_parallel of the service itself",
    "mp_size": "tensor_parallel of the service itself",
    "injection_policy": "options.injection_policy",
}


class DeepSpeedBackend(TorchBackend):
    """Runs a module in an engine of `deepspeed.init_inference`.

    Accepts the models and options of the torch backend, and two more options.
    `init_inference` is a table of further keyword arguments of that function.
    `injection_policy` is for blocks that AutoTP does not know: a table whose keys are
    "module:Class", and whose values are lists of the children whose results the ranks of a
    replica add up, such as [".fc2"].
    """

    engine_options = ("init_inference", "injection_policy")
    known_options = (*TorchBackend.known_options, *engine_options)
    _in_world = False

    def read(self) -> torch.nn.Module:
        """Return the module; the head of a replica reads the weights and broadcasts them.

        Raises:
            ModelError: On every rank of the replica, if it fails on any.
        """
        comm, service = self.comm, self.service
        if comm is None or service.tensor_parallel == 1:
            return super().read()
        head = comm.rank == 0
        # Whether a file beside the weights describes the module; the head reads it too.
        described = bool(service.task) and not OBJECT.fullmatch(service.model or "")
        module = self._agreed(comm, lambda: self._read_part(head, described))
        if described:
            description = comm.bcast(huggingface.description(module) if head else None)
            module = self._agreed(comm, lambda: module or huggingface.empty(service, description))
        expected = comm.bcast(weight_broadcast.manifest(module) if head else None)
        self._agreed(comm, lambda: weight_broadcast.compare(module, expected))
        weight_broadcast.share(comm, module, service.peer_timeout_s)
        return module

    def _read_part(self, head: bool, described: bool) -> Any:
        if described and not head:
            import transformers  # noqa: F401  # while the head reads

            return None
        return load_module(self.service, weights=head)

    def _agreed(self, comm: MPI.Comm, do: Callable[[], Any]) -> Any:
        """Call a function on all ranks. Collective.

        Raises:
            ModelError: On every rank, if the function raises on any.
        """
        result, wrong = None, ""
        cause: BaseException | None = None
        try:
            result = do()
        except BaseException as error:
            check_interrupt()
            wrong, cause = describe(error), error
        wrong = agree(comm, wrong, self.service.peer_timeout_s)
        if wrong:
            raise ModelError(Code.EMODEL, wrong) from cause
        return result

    def prepare(self, module: torch.nn.Module) -> Any:
        """Make a DeepSpeed engine of the module. Collective over the ranks of a replica."""
        deepspeed = import_deepspeed(self.device.type)
        options = self._options()
        if self.comm is not None and self.service.tensor_parallel > 1:
            seconds = self.service.peer_timeout_s
            open_torch_world(self.comm, self.device.type, seconds)
            self._in_world = True
            options["tensor_parallel"] = {"tp_size": self.comm.size}
        before = dtypes.held(module)
        with without_casts(module):
            dtype = self._accepted_dtype()
            engine = deepspeed.init_inference(set_eval(module), dtype=dtype, **options)
        if not options.get("replace_with_kernel_inject"):  # this option makes other modules
            whole = self.service.tensor_parallel == 1 and "injection_policy" not in options
            dtypes.compare(engine.module, before, whole)
        return set_eval(engine)

    def _accepted_dtype(self) -> torch.dtype:
        """A dtype that DeepSpeed accepts, which has no effect: `without_casts` stops conversion."""
        known = ["float32", "bfloat16", "float16"][: 2 if self.device.type == "cpu" else 3]
        accepted = self.dtype is not None and dtypes.short(self.dtype) in known
        return self.dtype if accepted and self.dtype else self._torch.float32

    def compile(self, arguments: dict[str, Any]) -> None:
        """Wrap the module in the engine so that its first call compiles it."""
        self.module.module = compiled(self.service, self.module.module, arguments)

    def plain_module(self) -> torch.nn.Module:
        """Return the module inside DeepSpeed's engine."""
        module: torch.nn.Module = self.module.module
        return module

    def close(self) -> None:
        """Free the module's memory, and close the torch world of the replica, if any."""
        super().close()
        if self._in_world:
            self._in_world = False
            close_torch_world()

    def _options(self) -> dict[str, Any]:
        """Return the arguments of init_inference.

        Raises:
            ArgumentError: For arguments that have a key elsewhere, or need a GPU on a machine
                without one.
        """
        options = dict(self.service.options.get("init_inference", {}))
        key = f"service.{self.service.name}"
        for name, instead in ELSEWHERE.items():
            if name in options:
                text = f"{key}.options.init_inference.{name}: set {instead}"
                raise ArgumentError(Code.EARG, text)
        if self.device.type == "cpu":
            for name in GPU_ONLY:
                if options.get(name):
                    text = f"{key}.options.init_inference.{name}: needs a GPU: remove it here"
                    raise ArgumentError(Code.EARG, text)
        if policy := self.service.options.get("injection_policy"):
            options["injection_policy"] = {
                import_object(name, self.service.folder): tuple(layers)
                for name, layers in policy.items()
            }
        return options


@contextmanager
def without_casts(module: torch.nn.Module) -> Iterator[None]:
    """Keep DeepSpeed from converting a module, which has the right dtypes already.

    DeepSpeed 0.19.8 calls one of the module's methods, chosen by the dtype of `init_inference`
    (by default float16): layers of another dtype, and buffers such as those of rotary
    embeddings, would lose digits.
    """
    for name in CASTS:
        module.__dict__[name] = lambda: module
    try:
        yield
    finally:
        for name in CASTS:
            del module.__dict__[name]


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed for a kind of device, without its log and its shared-memory all-reduce.

    DeepSpeed 0.19.8 compiles that operation when a process group is made, which takes over a
    minute the first time, and the operation ignores which ranks belong to the group.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
