"""Load weights of safetensors files into a module."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends import file_kinds
from mpiserve.backends.torch import dtypes
from mpiserve.config import ServiceConfig
from mpiserve.errors import Code, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

logger = logging.getLogger("mpiserve")

COMPILED = "_orig_mod."  # torch.compile adds it to the names of what it wraps
PARALLEL = "module."  # DataParallel and the like add it before all names
SHOWN = 3  # names in an error

State = dict[str, "torch.Tensor"]


def load(service: ServiceConfig, module: torch.nn.Module, path: Path) -> None:
    """Fill a module from a safetensors file, or an index of several.

    Names may have the prefixes of torch.compile and DataParallel. Tied tensors may be stored
    once.

    Args:
        service: The service; if it sets a dtype, the module has it already.
        module: The module, which is changed.
        path: The file.

    Raises:
        ModelError: If the file is missing or of another kind, or does not fit the module.
    """
    mine = module.state_dict()
    found = _renamed(path, _read(path), mine)
    for name in found.keys() & mine.keys():
        _check_one(path, name, found[name], mine[name], service)
    _check_tied(path, mine, found)
    # torch reports missing names, since modules may rename old ones or need only some.
    missing, more = module.load_state_dict(found, strict=False)
    _check_names(path, mine, found, missing, more)


def _read(path: Path) -> State:
    if path.is_dir():
        raise ModelError(Code.EMODEL, f"{path} is a directory: options.weights names a file in it")
    return _shards(path) if path.name.endswith(".index.json") else _file(path)


def _file(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(Code.EMODEL, f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        what = file_kinds.describe(path)
        if not what or file_kinds.is_safetensors(path):
            what = f"it is broken or cut off ({error})"
        text = f"{path.name}: options.weights must name a safetensors file: {what}"
        raise ModelError(Code.EMODEL, text) from None


def _shards(path: Path) -> State:
    if not path.is_file():
        raise ModelError(Code.EMODEL, f"{path}: no such file")
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        text = f"{path.name}: not an index of safetensors files: it has no 'weight_map'"
        raise ModelError(Code.EMODEL, text) from None
    found: State = {}
    for name in sorted(set(files.values())):
        found |= _file(path.parent / name)
    if missing := [name for name in files if name not in found]:
        text = f"{path.name}: its files lack {_list(missing)}"
        raise ModelError(Code.EMODEL, text)
    return {name: found[name] for name in files}


def _renamed(path: Path, found: State, mine: State) -> State:
    """Rename the tensors of a file to their names in the module."""
    known = {short: name for name, short in _short(mine).items()}
    names = {name: known.get(short, short) for name, short in _short(found).items()}
    if any(name in mine for name in found):  # a prefix is on all names or on none
        names = {name: name if name in mine else new for name, new in names.items()}
    if changed := [name for name in found if name not in mine and names[name] in mine]:
        text = "is loaded as" if len(changed) == 1 else "and others are loaded as"
        logger.info("%s: '%s' %s '%s'", path.name, changed[0], text, names[changed[0]])
    return {names[name]: tensor for name, tensor in found.items()}


def _short(names: Iterable[str]) -> dict[str, str]:
    """Map names to the same names without the prefixes of torch.compile and DataParallel."""
    short = {name: name.replace(COMPILED, "") for name in names}
    if not all(name.startswith(PARALLEL) for name in short.values()):
        return short
    return {name: one.removeprefix(PARALLEL) for name, one in short.items()}


def _check_names(
    path: Path, mine: State, found: State, missing: list[str], more: list[str]
) -> None:
    filled = [mine[name] for name in found if name in mine]
    there = {_storage(value) for value in filled if _is_whole(value)}
    lacking = [name for name in missing if _storage(mine.get(name)) not in there]
    parts = []
    if lacking:
        parts.append(f"lacks {len(lacking)} of its {len(mine)} tensors ({_list(lacking)})")
    if more:
        parts.append(f"has {len(more)} that the module does not have ({_list(more)})")
    if not parts:
        return
    text = f"{path.name} does not fit the module: it {' and '.join(parts)}"
    if prefix := _prefix(mine, found):
        text += f". Names differ by '{prefix}': save the state_dict of that submodule, without it"
    raise ModelError(Code.EMODEL, text)


def _prefix(mine: State, found: State) -> str:
    """Return a common prefix of the file's names that the module's names lack, or ""."""
    first = next(iter(found), "")
    for end in (i + 1 for i, letter in enumerate(first) if letter == "."):
        cut = first[:end]
        if all(name.startswith(cut) and name[end:] in mine for name in found):
            return cut
    return ""


def _check_one(
    path: Path, name: str, tensor: torch.Tensor, mine: Any, service: ServiceConfig
) -> None:
    if not hasattr(mine, "is_meta"):
        text = f"{path.name}: '{name}' is not a tensor in the module, but {type(mine).__name__}"
        raise ModelError(Code.EMODEL, text)
    if mine.is_meta:
        text = f"{path.name}: '{name}' of the module is on the device 'meta'; build it on the CPU"
        raise ModelError(Code.EMODEL, text)
    if not _is_lazy(mine) and tensor.shape != mine.shape:
        shapes = f"{list(tensor.shape)} in the file and {list(mine.shape)} in the module"
        raise ModelError(Code.EMODEL, f"{path.name}: '{name}' is {shapes}")
    if tensor.dtype is mine.dtype:
        return
    kinds = f"{dtypes.short(tensor.dtype)} in the file and {dtypes.short(mine.dtype)} in the module"
    text = f"{path.name}: '{name}' is {kinds}"
    if not _converts(tensor.dtype, mine.dtype):
        raise ModelError(Code.EMODEL, f"{text}; make the dtypes the same")
    if dtypes.loses(tensor.dtype, mine.dtype):
        if not service.dtype:
            text += ", which would lose digits; build the module in that dtype, or"
            text += f" set dtype = '{dtypes.short(mine.dtype)}'"
            raise ModelError(Code.EMODEL, text)
        dtypes.check_values(name, tensor, mine.dtype, f"service.{service.name}.dtype")


def _converts(source: torch.dtype, wanted: torch.dtype) -> bool:
    """Return whether both dtypes are real floating dtypes, or both complex."""
    both_real = dtypes.is_float(source) and dtypes.is_float(wanted)
    return both_real or (source.is_complex and wanted.is_complex)


def _check_tied(path: Path, mine: State, found: State) -> None:
    """Refuse different values for tied tensors, of which the last would win."""
    import torch

    first: dict[tuple[int, ...], str] = {}
    for name, tensor in found.items():
        value = mine.get(name)
        if value is None or not _has_storage(value) or not value.numel():
            continue
        other = first.setdefault((value.data_ptr(), *value.shape, *value.stride()), name)
        if not torch.equal(found[other], tensor):
            text = f"'{other}' and '{name}' are one tensor in the module, but differ in the file"
            raise ModelError(Code.EMODEL, f"{path.name}: {text}")


def _storage(value: Any) -> int:
    """Return a number that is the same for tied tensors only."""
    address = value.untyped_storage().data_ptr() if _has_storage(value) else 0
    return address or id(value)


def _has_storage(value: Any) -> bool:
    import torch

    is_tensor = isinstance(value, torch.Tensor) and not _is_lazy(value)
    return is_tensor and value.layout is torch.strided


def _is_lazy(value: Any) -> bool:
    """Return whether a tensor gets its shape from its weights."""
    from torch.nn.parameter import is_lazy

    return bool(is_lazy(value))


def _is_whole(value: Any) -> bool:
    """Return whether a tensor covers its whole storage, so that filling it fills tied tensors."""
    if not _has_storage(value):
        return False
    return bool(value.untyped_storage().nbytes() == value.numel() * value.element_size())


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + more
