"""Find missing files, objects and packages of a configuration, without loading a model."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any, NamedTuple

from mpiserve import backends
from mpiserve.backends.language.tasks import input_problems
from mpiserve.backends.remote.remote_backend import api_of
from mpiserve.backends.remote.settings import OptionError, remote_table, settings_of
from mpiserve.backends.torch.deepspeed_backend import ELSEWHERE
from mpiserve.config import OBJECT, Config, Group, ServiceConfig
from mpiserve.config.gateway_files import check_files
from mpiserve.config.trainer import trained
from mpiserve.config.uncertainty import seen
from mpiserve.config.values import cut, shown, suggest
from mpiserve.errors import ConfigError, ModelError
from mpiserve.launch import definitions

POOL = 256 << 20  # bytes of a service whose pool_bytes is 0
NEEDS = {
    "deepspeed": ("deepspeed", "mpiserve"),
    "torch": ("torch", "mpiserve"),
    "onnx": ("onnxruntime", "mpiserve[onnx]"),
    "remote": ("urllib3", "mpiserve[remote]"),
}
NUMBER = (int, float)
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "arguments": ((dict,), "a table"),
    "weights": ((str,), "the path of a file"),
    "compile": ((bool, str, dict), "true, a mode, or a table"),
    "init_inference": ((dict,), "a table"),
    "injection_policy": ((dict,), "a table"),
    "providers": ((list,), "a list"),
    "provider_options": ((dict,), "a table"),
    "stop_tokens": ((int, list), "a number, or a list of them"),
    "pad_token": ((int,), "a number"),
    "generation": ((dict,), "a table"),
    "self_check": ((bool,), "true or false"),
    "stream_timeout_s": (NUMBER, "a number of seconds"),
    "pooling": ((str,), "a text"),
    "normalize": ((bool,), "true or false"),
}


class Finding(NamedTuple):
    """A problem of a configuration.

    Attributes:
        key: The key of the configuration.
        text: What is wrong, and what to do.
        sure: Whether the service cannot work; otherwise this is a warning.
    """

    key: str
    text: str
    sure: bool = True


def findings(config: Config) -> list[Finding]:
    """Find what the configuration names and this machine lacks, without importing it."""
    written = [service.of_version() for service in config.services if not service.derivative]
    found = [*chain.from_iterable(map(_of_service, written)), *_trainers(config)]
    found += [*unspared(config), *_memory(config), *_alike(config)]
    return [*found, *_gateway(config)]


def _trainers(config: Config) -> Iterator[Finding]:
    for name, table in config.trainer.items():
        if table.step:
            service = trained(config, name)
            node = yield from _found(f"trainer.{name}.step", table.step, service)
            if isinstance(node, definitions.Function):
                called = definitions.signature(node)
                yield from _bound(f"trainer.{name}.step", node.name, called, 4, {})


def _gateway(config: Config) -> Iterator[Finding]:
    """Check the files that the table names; with a wrong one there is no gateway."""
    try:
        if config.gateway:
            check_files(config.gateway, config.folder, [one.name for one in config.services])
    except ConfigError as error:
        yield Finding("gateway", str(error))


def unspared(config: Config) -> list[Finding]:
    """Name the services whose replicas no spare can replace, where there are spares."""
    groups = config.groups if config.partition.spares else ()
    return [
        Finding("partition.spares", _why_not(group), sure=False)
        for group in groups
        if group not in config.spared
    ]


def _why_not(group: Group) -> str:
    names = " + ".join(f"'{service.name}'" for service in group.services)
    text = f"no spare takes the place of a replica of {names}, "
    if group.pool:
        return text + "which share an adaptive pool: its other ranks load their models"
    ranks = f"which has {group.tensor_parallel} ranks (tensor_parallel), as spares have one rank: "
    return text + ranks + "with replicas = 2, one answers when the other has lost a rank"


def window_bytes(services: Sequence[ServiceConfig]) -> int:
    """Estimate the bytes of the window of a rank that serves these services."""
    return sum(
        max(service.pool_bytes or POOL, 2 * batch) + batch
        for service in services
        for batch in [service.max_batch_rows * service.row_bytes]
    )


def _of_service(service: ServiceConfig) -> Iterator[Finding]:
    key = f"service.{service.name}"
    for finding in chain(
        _backend(service),
        _options(service),
        _engine_options(service),
        _model(service),
        _uncertainty(service),
        _warmup(service),
        _task(service),
        _functions(service),
        _here(service),
        _beside(service),
    ):
        yield finding._replace(key=f"{key}.{finding.key}")


def _backend(service: ServiceConfig) -> Iterator[Finding]:
    if not OBJECT.fullmatch(service.backend):
        return
    node = yield from _found("backend", service.backend, service)
    if isinstance(node, definitions.Function) or (
        isinstance(node, ast.ClassDef) and definitions.plain(node)
    ):
        yield Finding("backend", f"'{service.backend}' is not a subclass of mpiserve.Backend")


def _options(service: ServiceConfig) -> Iterator[Finding]:
    known = backends.known_options(service)
    if known is None:
        return
    for name, value in service.options.items():
        key = f"options.{cut(name)}"
        if name not in known:
            hint = suggest(name, known)
            yield Finding(key, f"unknown key {hint}")
        elif wanted := _wanted(name, value):
            yield Finding(key, f"must be {wanted}, got {shown(value)}")


def _engine_options(service: ServiceConfig) -> Iterator[Finding]:
    """Check arguments of DeepSpeed that have a key elsewhere, and classes of its policy."""
    arguments, policy = (
        value if isinstance(value, dict) else {}
        for value in map(service.options.get, ("init_inference", "injection_policy"))
    )
    for name, instead in ELSEWHERE.items():
        if name in arguments:
            yield Finding(f"options.init_inference.{name}", f"set {instead}")
    for name in policy:
        if OBJECT.fullmatch(name):
            yield from _found("options.injection_policy", name, service)
        else:
            yield Finding("options.injection_policy", f"must be 'module:Class', got {shown(name)}")


def _task(service: ServiceConfig) -> Iterator[Finding]:
    """Check the names of the inputs of a task."""
    if service.task is None:
        return
    key = "model_inputs" if service.model_inputs else "inputs"
    names = [tensor.name for tensor in service.model_inputs or service.inputs]
    for text in input_problems(service.task, names):
        yield Finding(key, text)


def _wanted(name: str, value: Any) -> str:
    """Return the kind that the value of an option must have, or "" if it has that kind."""
    kinds, wanted = KINDS.get(name, ((object,), ""))
    fits = type(value) in kinds if isinstance(value, bool) else isinstance(value, kinds)
    return "" if fits or not wanted else wanted


def _model(service: ServiceConfig) -> Iterator[Finding]:
    model = service.model or ""
    if service.backend == "echo" or OBJECT.fullmatch(service.backend):
        return
    if service.backend == "remote":
        yield from _remote(service)
    elif OBJECT.fullmatch(model) and service.backend != "onnx":
        node = yield from _found("model", model, service)
        called = _callable if service.backend == "python" else _factory
        yield from called(service, node)
        yield from _weights(service)
    elif service.backend == "python":
        yield Finding("model", f"must be 'module:callable', got {shown(model)}")
    else:
        yield from _model_file(service, model)


def _remote(service: ServiceConfig) -> Iterator[Finding]:
    try:
        api_of(service, settings_of(service))
    except OptionError as error:
        yield Finding(f"options.{error.name}", error.text)
    except ModelError as error:
        yield Finding("backend", error.text)


def _beside(service: ServiceConfig) -> Iterator[Finding]:
    """Look at the remote model beside a local one as at a service of its own."""
    if service.remote:
        table = remote_table(service)
        library = (finding for finding in _here(table) if finding.key == "backend")
        for finding in chain(_options(table), _remote(table), library):
            yield finding._replace(key=f"remote.{finding.key}")


def _model_file(service: ServiceConfig, model: str) -> Iterator[Finding]:
    path = service.folder / model  # os.path, as Path raises for a name that is too long
    if service.task and not os.path.isfile(path / "config.json"):
        text = "it has no config.json" if os.path.isdir(path) else "no such directory"
        kind = "needs a Hugging Face directory, or 'module:callable'"
        yield Finding("model", f"{cut(str(path), 300)}: {text}; task '{service.task}' {kind}")
    elif os.path.isdir(path) and not service.task:
        yield Finding("model", f"{path} is a directory: set task = 'generate' or 'embed'")
    elif not os.path.exists(path):
        hint = "" if ":" not in model else "; a callable is named 'module:callable'"
        yield Finding("model", f"{cut(str(path), 300)}: no such file{hint}")
    for option in ("arguments", "weights"):
        if option in service.options and service.backend != "onnx":
            yield Finding(f"options.{option}", "needs a model 'module:callable'")


def _weights(service: ServiceConfig) -> Iterator[Finding]:
    weights = service.options.get("weights")
    if service.backend != "python" and isinstance(weights, str):
        yield from _file("options.weights", service, weights)


def _uncertainty(service: ServiceConfig) -> Iterator[Finding]:
    table = service.uncertainty
    if table is None:
        return
    for name in table.weights:
        yield from _file("uncertainty.weights", service, name)
    if table.data:
        yield from _file("uncertainty.data", service, table.data)
    if table.method == "distance" and not _installed("sklearn"):
        text = "'distance' needs scikit-learn, which is not here: pip install 'mpiserve[trust]'"
        yield Finding("uncertainty.method", text, sure=False)


def _file(key: str, service: ServiceConfig, name: str) -> Iterator[Finding]:
    if not service.untrained and not os.path.exists(service.folder / name):
        yield Finding(key, f"{cut(str(service.folder / name), 300)}: no such file")


def _warmup(service: ServiceConfig) -> Iterator[Finding]:
    if isinstance(service.warmup, str) and not os.path.isfile(service.folder / service.warmup):
        yield Finding("warmup", f"{cut(str(service.folder / service.warmup), 300)}: no such file")


def _factory(service: ServiceConfig, node: definitions.Definition | None) -> Iterator[Finding]:
    """Check a callable that returns a module, called once with options.arguments."""
    arguments = service.options.get("arguments", {})
    if node is not None and isinstance(arguments, dict):
        made = definitions.signature(node)
        yield from _bound("options.arguments", node.name, made, 0, arguments)


def _callable(service: ServiceConfig, node: definitions.Definition | None) -> Iterator[Finding]:
    """Check a function of the inputs and options, or a class of the options with __call__."""
    count = len(service.model_inputs or service.inputs)
    if isinstance(node, ast.ClassDef):
        yield from _bound("options", node.name, definitions.signature(node), 0, service.options)
        if definitions.plain(node) and not definitions.has_method(node, "__call__"):
            yield Finding("model", f"objects of '{node.name}' cannot be called: no __call__")
        call = definitions.signature(node, method="__call__")
        yield from _bound("model", f"{node.name}.__call__", call, count, {})
    elif isinstance(node, ast.AsyncFunctionDef):
        yield Finding("model", f"'{node.name}' is async: write a plain function")
    elif node is not None:
        function = definitions.signature(node)
        yield from _bound("options", node.name, function, count, service.options)


def _functions(service: ServiceConfig) -> Iterator[Finding]:
    counts = {
        "preprocess": len(service.inputs),
        "postprocess": len(service.model_outputs or seen(service)),
    }
    for key, count in counts.items():
        spec = getattr(service, key)
        if spec is None:
            continue
        node = yield from _found(key, spec, service)
        if isinstance(node, definitions.Function):
            yield from _bound(key, node.name, definitions.signature(node), count, {})


def _found(
    key: str, spec: str, service: ServiceConfig
) -> Iterator[Finding] | Any:  # a generator that returns the definition
    try:
        return definitions.find(spec, service.folder)
    except definitions.Missing as error:
        yield Finding(key, f"'{cut(spec, 200)}': {error}")
    except definitions.Unknown as error:
        yield Finding(key, f"'{cut(spec, 200)}': {error}", sure=False)
    return None


def _bound(
    key: str, name: str, signature: Any, count: int, options: Mapping[str, Any]
) -> Iterator[Finding]:
    """Check a call with `count` arrays, and options by name, against a signature."""
    if signature is None:
        return
    known = signature.parameters
    given = dict(options)
    if count and "clients" in known:
        given.setdefault("clients", None)
    any_name = any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values())
    for option in options:
        if option not in known and not any_name:
            names = [each for each in list(known)[count:] if each != "clients"]
            hint = suggest(option, names)
            yield Finding(f"{key}.{cut(option)}", f"'{name}' has no such argument {hint}")
            return
    try:
        signature.bind(*[None] * count, **given)
    except TypeError as error:
        with_inputs = f", called with {count} array(s)" if count else ""
        yield Finding(key, f"'{name}'{with_inputs}: {error}")


def _here(service: ServiceConfig) -> Iterator[Finding]:
    """Warn about what this machine lacks, since the machine of the job may have it."""
    module, package = NEEDS.get(service.backend, ("", ""))
    if module and not _installed(module):
        text = f"'{service.backend}' needs {module}, which is not here: pip install '{package}'"
        yield Finding("backend", text, sure=False)
    if service.task and service.backend != "remote" and not _installed("transformers"):
        text = "needs transformers, which is not here: pip install 'mpiserve[language]'"
        yield Finding("task", text, sure=False)
    cores = os.cpu_count() or service.threads
    if service.threads > cores:
        text = f"{service.threads} threads on each rank; this machine has {cores} cores"
        yield Finding("threads", text, sure=False)


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # the module is imported and has no spec
        return True


def _memory(config: Config) -> Iterator[Finding]:
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # not available on every system
        return
    for group in config.groups:
        needed = window_bytes(group.services)
        if needed > whole:
            largest = max(group.services, key=lambda service: window_bytes([service]))
            text = f"a rank needs {needed} bytes for its windows, this machine has {whole}"
            remedy = "lower max_batch_rows, or pool_bytes"
            yield Finding(f"service.{largest.name}", f"{text}: {remedy}", sure=False)


def _alike(config: Config) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in config.service:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            yield Finding(f"service.{name}", f"differs from '{other}' by case alone", sure=False)
