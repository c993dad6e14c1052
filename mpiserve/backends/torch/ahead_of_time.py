"""Compile a module to a shared library, with torch.export and AOTInductor; keep it in the cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

from mpiserve.backends.base import Native, ordered
from mpiserve.backends.cache import Cache
from mpiserve.errors import Code, ModelError
from mpiserve.mpi import families

if TYPE_CHECKING:
    import torch

    from mpiserve.backends.torch.torch_backend import TorchBackend

logger = logging.getLogger("mpiserve")

SOURCE = families.PACKAGE / "share/mpiserve/engine/aoti.cpp"
LIBRARY, MODEL = "engine.so", "model.so"
ROWS = 2  # of the example to export with: torch takes 0 and 1 for fixed numbers
OWN = ("aten", "prims")  # namespaces of operations
HEADER = "torch/csrc/inductor/aoti_runtime/interface.h"
LIMIT = 300.0  # seconds for the compiler
LARGE = 256e6  # bytes of weights: the interpreter is little of the time of a model with more


def compiled(backend: TorchBackend, build: bool) -> Native | None:
    """Return an engine for the module of a backend.

    Args:
        backend: The backend, with its module loaded.
        build: Whether to compile it if the cache does not have it.

    Raises:
        ModelError: If the module cannot be compiled, with the reason.
    """
    import torch

    _check(backend)
    cache = Cache()
    hint = cache.folder / f"{_outline(backend)}.hint"
    if build or hint.exists():
        with torch.inference_mode(False), torch.no_grad():
            program = _exported(backend)
            key = _key(program, backend)
            if build:
                native = _built(cache, key, program, backend.service.name)
                hint.touch()
                return native
            library, model = cache.find(_library_key()), cache.find(key)
            if library and model:
                return _native(library, model)
    _check_worth(backend)
    backend.to_compile = str(hint)
    return None


def _built(cache: Cache, key: str, program: torch.export.ExportedProgram, name: str) -> Native:
    library = cache.get(_library_key(), _compile_library)
    model = cache.get(key, lambda folder: _compile(program, folder, name))
    return _native(library, model)


def _native(library: Path, model: Path) -> Native:
    return Native(str(library / LIBRARY), str(model / MODEL), text="compiled by torch")


def _check_worth(backend: TorchBackend) -> None:
    """Refuse what `auto` cannot compile here, or what is not worth it."""
    _check_compiler()
    _check_headers()
    weights = backend.plain_module().state_dict().values()
    size = sum(getattr(value, "nbytes", 0) for value in weights)
    if size > LARGE:
        text = f"its weights have {size / 1e6:.0f} MB, and 'auto' compiles up to {LARGE / 1e6:g} MB"
        raise ModelError(Code.EMODEL, f"{text} (mpiserve compile: any size)")


def _check(backend: TorchBackend) -> None:
    import torch

    service = backend.service
    why = ""
    if service.task:
        why = f"the task '{service.task}' is no single module"
    elif service.options.get("compile"):
        why = "options.compile compiles it already"
    elif not backend.as_they_are:
        why = "it needs gradients, or its tensors are converted, which Python checks"
    elif backend.device.type != "cpu":
        why = f"it runs on {backend.device}, and compiled engines on CPUs"
    elif isinstance(backend.plain_module(), torch.jit.ScriptModule):
        why = "torch.export does not take TorchScript: see python -m mpiserve convert --help"
    if why:
        raise ModelError(Code.EMODEL, why)


# ---- the program


def _exported(backend: TorchBackend) -> torch.export.ExportedProgram:
    """Export a module that takes inputs and outputs, with any number of rows.

    The outputs are arguments that it writes to: results come to where clients look for them,
    dense and in the dtypes of the signature, and are never allocated.
    """
    import torch

    service = backend.service
    most = service.max_batch_rows
    rows = None if service.rows == "none" else min(ROWS, most)
    tensors = [
        torch.zeros(tensor.dims(rows), dtype=getattr(torch, tensor.dtype))
        for tensor in (*service.inputs, *service.outputs)
    ]
    free = {0: torch.export.Dim("rows", min=1, max=most)} if rows and most > rows else None
    shapes = ((free,) * len(tensors),) if free else None
    try:
        program = torch.export.export(
            _wrapped(backend), tuple(tensors), dynamic_shapes=shapes, strict=False
        )
    except Exception as error:  # of many classes
        reason = " ".join(str(error).split())[:300]
        raise ModelError(Code.EMODEL, f"torch.export refuses the model: {reason}") from error
    _check_operations(program)
    return program


def _check_operations(program: torch.export.ExportedProgram) -> None:
    """Refuse operations that the compiled program would call through an interpreter of torch's."""
    import torch

    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace not in OWN:
            text = f"it calls {node.target.name()}, which is no operation of torch's own"
            raise ModelError(Code.EMODEL, f"{text}, and only these can be compiled")


def _wrapped(backend: TorchBackend) -> torch.nn.Module:
    import torch

    service, inner = backend.service, backend.plain_module()

    class Writing(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *tensors: torch.Tensor) -> None:
            inputs, outputs = tensors[: len(service.inputs)], tensors[len(service.inputs) :]
            results = ordered(self.inner(*inputs), service)
            for spec, result, output in zip(service.outputs, results, outputs, strict=True):
                if result.dtype != output.dtype or result.shape[1:] != output.shape[1:]:
                    text = f"output '{spec.name}' is {result.dtype} {list(result.shape)}"
                    raise ModelError(Code.EMODEL, text)
                output.copy_(result.reshape(output.shape))

    return Writing()


def _outline(backend: TorchBackend) -> str:
    """Identify a module roughly, without exporting it: may the cache have it?"""
    module = backend.plain_module()
    parts = [type(module).__name__, str(module), *_settings(backend)]
    parts += [f"{name} {tuple(value.shape)}" for name, value in module.state_dict().items()]
    return _hash(parts)


def _key(program: torch.export.ExportedProgram, backend: TorchBackend) -> str:
    """Identify what is compiled: operations, weights, and all that the result depends on."""
    import torch

    graphs = [
        str(module.graph)
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
    ]
    values = program.state_dict | program.constants
    parts = [*graphs, str(program.graph_signature), str(program.range_constraints)]
    for name, value in sorted(values.items()):
        parts.append(f"{name} {_content(value)}")
    return _hash([*parts, *_settings(backend)])


def _content(value: Any) -> str:
    import torch

    if not isinstance(value, torch.Tensor):
        return repr(value)
    flat = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(flat.data).hexdigest()}"


def _settings(backend: TorchBackend) -> list[str]:
    import torch

    service = backend.service
    tensors = [str((t.name, t.dtype, t.shape)) for t in (*service.inputs, *service.outputs)]
    parts = [torch.__version__, str(service.max_batch_rows), str(service.threads), *_machine()]
    return [*parts, str(_options(service.threads)), *tensors]


def _machine() -> list[str]:
    """Describe the processor, whose instructions the compiler may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return [platform.machine(), flags]


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


# ---- compilation


def _options(threads: int) -> dict[str, Any]:
    return {"cpp.threads": threads}


def _compile(program: torch.export.ExportedProgram, folder: Path, name: str) -> None:
    """Compile a program into a folder."""
    import torch

    _check_compiler()
    begin = time.monotonic()
    # Without this, torch starts worker processes for compiling, which stay.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    package = folder / "model.pt2"
    try:
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(package),
            inductor_configs=_options(torch.get_num_threads()),
        )
    except Exception as error:  # of many classes
        reason = " ".join(str(error).split())[-300:]
        raise ModelError(Code.EMODEL, f"torch cannot compile the model: {reason}") from error
    _unpack(package, folder / MODEL)
    package.unlink()
    logger.info("service %s: compiled the model in %.1f s", name, time.monotonic() - begin)


def _unpack(package: Path, library: Path) -> None:
    """Take the library out of a package that has nothing else to run."""
    with ZipFile(package) as archive:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        if len(libraries) != 1:
            raise ModelError(Code.EMODEL, f"torch made {len(libraries)} libraries of the model")
        with archive.open(libraries[0]) as source, library.open("wb") as target:
            shutil.copyfileobj(source, target)


def _check_compiler() -> None:
    if not shutil.which(_compiler()[0]):
        text = f"it needs a C++ compiler, and there is no '{_compiler()[0]}' (CXX names another)"
        raise ModelError(Code.EMODEL, text)


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def _torch_folder() -> Path:
    import torch

    return Path(torch.__file__).parent


def _command(library: Path) -> list[str]:
    torch_folder = _torch_folder()
    flags = ["-O2", "-shared", "-fPIC", "-std=c++20", f"-I{families.include()}"]
    flags += [f"-I{torch_folder / 'include'}"]
    link = [f"-L{torch_folder / 'lib'}", f"-Wl,-rpath,{torch_folder / 'lib'}"]
    libraries = ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    return [*_compiler(), *flags, str(SOURCE), *link, *libraries, "-o", str(library)]


def _library_key() -> str:
    """Identify the library of engines: its source, torch, and where torch is."""
    import torch

    header = families.include() / "mpiserve.h"
    parts = [torch.__version__, SOURCE.read_text(), header.read_text()]
    return f"engine-{_hash([*parts, *_command(Path(LIBRARY))])}"


def _check_headers() -> None:
    if not (_torch_folder() / "include" / HEADER).is_file():
        text = f"torch is installed without the headers that it needs, in {_torch_folder()}/include"
        raise ModelError(Code.EMODEL, text)


def _compile_library(folder: Path) -> None:
    _check_compiler()
    _check_headers()
    command = _command(folder / LIBRARY)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise ModelError(Code.EMODEL, f"{command[0]} cannot compile {SOURCE.name}: {first[:300]}")
