"""Compile a module with torch.compile, if the service has the option `compile`."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from mpiserve.config import ServiceConfig
from mpiserve.errors import ArgumentError, Code

if TYPE_CHECKING:
    import torch


def compile_arguments(service: ServiceConfig, device: torch.device) -> dict[str, Any] | None:
    """Return the arguments of torch.compile, or None if the service does not set the option.

    Raises:
        ArgumentError: If this machine or this service cannot compile.
    """
    wanted = service.options.get("compile", False)
    if wanted is False:
        return None
    arguments = {"mode": wanted} if isinstance(wanted, str) else wanted
    # The number of rows varies: without this, torch compiles once for each number.
    arguments = {"dynamic": True} | ({} if arguments is True else dict(arguments))
    inductor = arguments.get("backend", "inductor") == "inductor"
    if why := _obstacle(service, inductor and device.type == "cpu"):
        raise ArgumentError(Code.EARG, f"service.{service.name}.options.compile: {why}")
    return arguments


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which torch.compile compiles nothing anew, and calls run uncompiled."""
    # Its module takes 2.5 s to import; without it nothing has been compiled.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    import torch

    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _obstacle(service: ServiceConfig, needs_compiler: bool) -> str:
    """Say why torch.compile is not possible, or return ""."""
    compiler = os.environ.get("CXX", "g++")
    if service.tensor_parallel > 1:
        return "not possible with tensor_parallel: remove one of the two"
    if not service.warmup_rows:
        return "needs warmup, which is when it compiles"
    if needs_compiler and not shutil.which(compiler):
        return f"needs a C++ compiler, and there is no '{compiler}' (CXX names another)"
    return ""


def compiled(service: ServiceConfig, module: torch.nn.Module, arguments: dict[str, Any]) -> Any:
    """Wrap a module so that its first call compiles it.

    Raises:
        ArgumentError: If the module cannot be compiled, or torch does not know the arguments.
    """
    import torch

    key = f"service.{service.name}.options.compile"
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(Code.EARG, f"{key}: TorchScript is compiled already")
    # Without this, torch starts worker processes for compiling, which stay.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    try:
        return torch.compile(module, **arguments)
    except (TypeError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise ArgumentError(Code.EARG, f"{key}: {text}") from None
