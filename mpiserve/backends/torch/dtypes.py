"""Convert modules and tensors to other dtypes, and report what a conversion loses."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from mpiserve.backends.arrays import cast
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch

# The arithmetic of a complex number is that of its parts. Other kinds (integers, bool, float8,
# quantised) have representations of their own and are never converted.
ARITHMETIC = {
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float64": "float64",
    "complex32": "float16",
    "complex64": "float32",
    "complex128": "float64",
}
COMPLEX = {"float32": "complex64", "float64": "complex128"}
DIGITS = {"bfloat16": 2, "float16": 3, "float32": 7, "float64": 16}

Held = dict[str, "torch.Tensor"]


def short(dtype: torch.dtype) -> str:
    """Return the name of a dtype, as in the configuration."""
    return str(dtype).removeprefix("torch.")


def is_float(dtype: torch.dtype) -> bool:
    """Return whether a dtype is one of the convertible floating dtypes."""
    return short(dtype) in DIGITS


def same_kind(a: torch.dtype, b: torch.dtype) -> bool:
    """Return whether numbers of two dtypes convert to each other: both real, or both complex."""
    return short(a) in ARITHMETIC and short(b) in ARITHMETIC and a.is_complex == b.is_complex


def in_arithmetic(dtype: torch.dtype, arithmetic: torch.dtype | None) -> torch.dtype:
    """Return the dtype, real or complex, that numbers have in an arithmetic, if there is one."""
    import torch

    if arithmetic is None or short(dtype) not in ARITHMETIC:
        return dtype
    if not dtype.is_complex:
        return arithmetic
    return getattr(torch, COMPLEX.get(short(arithmetic), ""), dtype)


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the parts of complex numbers; that of others is their own."""
    return dtype.to_real() if dtype.is_complex else dtype


def loses(source: torch.dtype, wanted: torch.dtype) -> bool:
    """Return whether `wanted` cannot represent every value of `source`."""
    import torch

    return torch.promote_types(source, wanted) is not wanted


def loss(source: torch.dtype, wanted: torch.dtype) -> str:
    """Describe the effect of a conversion on values."""
    import torch

    if not loses(source, wanted):
        return f"which loses nothing, but has the {_digits(source)} digits of {short(source)}"
    before, after = _digits(source), _digits(wanted)
    limits = torch.finfo(wanted)
    text = f"of {before} digits {after} remain" if after < before else f"{after} digits remain"
    if limits.max >= torch.finfo(source).max:
        return text
    tiny = f"below {limits.smallest_normal:.1e} it loses digits or becomes 0"
    return f"{text}, {tiny}, and a number beyond {limits.max:.1e} is an error"


def _digits(dtype: torch.dtype) -> int:
    return DIGITS[ARITHMETIC[short(dtype)]]


def held(module: torch.nn.Module) -> Held:
    """Return the parameters and buffers of a module by name; tied ones once."""
    return {name: tensor.detach() for name, tensor in _tensors(module)}


def own(module: torch.nn.Module) -> torch.dtype | None:
    """Return the dtype of all parameters of a module, or None if they differ."""
    dtypes = {_arithmetic(tensor) for tensor in module.parameters()} - {None}
    return dtypes.pop() if len(dtypes) == 1 else None


def convert(module: torch.nn.Module, wanted: torch.dtype, key: str) -> None:
    """Convert a module to the dtype of the configuration.

    Numbers of other dtypes are converted, complex ones to complex ones. A module whose parameters
    have the dtype already is not changed, including its buffers.

    Args:
        module: The module, which is changed.
        wanted: The dtype.
        key: The key of the configuration, for error texts.

    Raises:
        ArgumentError: If the module mixes dtypes on purpose, so that some would lose digits.
        ModelError: If numbers become infinite, or a tensor becomes zero.
    """
    if own(module) is wanted:
        return
    tensors = {name: tensor for name, tensor in _tensors(module) if _arithmetic(tensor)}
    found = {_arithmetic(tensor) for tensor in tensors.values()}
    for name, tensor in tensors.items():
        target = _target(tensor, wanted)
        if target is None:
            text = f"'{name}' is {short(tensor.dtype)}, which has no {short(wanted)}"
            raise ArgumentError(Code.EARG, f"{key}: {text}; leave {key.split('.')[-1]} out")
        if len(found) > 1 and loses(tensor.dtype, target):
            raise ArgumentError(Code.EARG, f"{key}: {_mixed(tensors, wanted)}")
        check_values(name, tensor, target, key)
    module._apply(lambda tensor: tensor.to(_target(tensor, wanted) or tensor.dtype))


def compare(module: torch.nn.Module, before: Held, values: bool) -> None:
    """Check that DeepSpeed has not changed the tensors of a module.

    Args:
        module: The module now.
        before: The tensors before.
        values: Whether to compare values too; not possible if ranks hold parts of the tensors.

    Raises:
        ModelError: If DeepSpeed has changed one.
    """
    for name, tensor in held(module).items():
        old = before.get(name, tensor)
        if tensor.dtype is not old.dtype:
            what = f"'{name}' from {short(old.dtype)} to {short(tensor.dtype)}"
        elif values and not _same(tensor, old):
            what = f"the values of '{name}'"
        else:
            continue
        text = f"DeepSpeed changes {what}: set backend = 'torch' for this model"
        raise ModelError(Code.EMODEL, text)


def converted(tensor: torch.Tensor, wanted: torch.dtype, what: str) -> torch.Tensor:
    """Convert numbers to another dtype of the same kind.

    Raises:
        ModelError: If a finite number becomes infinite; `what` names the tensor.
    """
    import torch

    result = torch.empty(tensor.shape, dtype=wanted)
    copy(tensor, result, what)
    return result


def copy(tensor: torch.Tensor, target: torch.Tensor, what: str) -> None:
    """Copy numbers into a tensor of another dtype of the same kind, in one pass.

    Raises:
        ModelError: If a finite number becomes infinite; `what` names the tensor.
    """
    if loses(tensor.dtype, target.dtype):
        cast(as_array(tensor), as_array(target), what)
    else:
        target.copy_(tensor)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """View a tensor as an array; copy it only from a GPU, or if it is a view that negates."""
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    from ml_dtypes import bfloat16

    return tensor.view(torch.int16).numpy().view(bfloat16)


def without_inference(module: torch.nn.Module) -> None:
    """Replace tensors that were made in inference mode, which autograd never accepts."""
    import torch
    from torch.nn.parameter import is_lazy

    new: dict[int, torch.Tensor] = {}
    for part in module.modules():
        owners: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for owner in owners:
            for name, tensor in list(owner.items()):
                if tensor is None or is_lazy(tensor) or not tensor.is_inference():
                    continue
                if id(tensor) not in new:
                    copy = tensor.clone()
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    new[id(tensor)] = torch.nn.Parameter(copy, False) if is_parameter else copy
                owner[name] = new[id(tensor)]


def without_values(module: torch.nn.Module) -> str:
    """Return the name of a tensor without values (lazy, or on the device "meta"), or ""."""
    from torch.nn.parameter import is_lazy

    named = chain(module.named_parameters(), module.named_buffers())
    return next((name for name, tensor in named if is_lazy(tensor) or tensor.is_meta), "")


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    from torch.nn.parameter import is_lazy

    named = chain(module.named_parameters(), module.named_buffers())
    return ((name, tensor) for name, tensor in named if not is_lazy(tensor))


def _arithmetic(tensor: torch.Tensor) -> torch.dtype | None:
    import torch

    name = ARITHMETIC.get(short(tensor.dtype))
    return getattr(torch, name) if name else None


def _target(tensor: torch.Tensor, wanted: torch.dtype) -> torch.dtype | None:
    """Return the target dtype of a tensor; None if `wanted` has no equivalent for it."""
    import torch

    if not tensor.is_complex():
        return wanted if is_float(tensor.dtype) else None
    if _arithmetic(tensor) is wanted:
        return tensor.dtype
    return getattr(torch, COMPLEX.get(short(wanted), ""), None)


def _same(tensor: torch.Tensor, old: torch.Tensor) -> bool:
    import torch

    # Sparse tensors and those of other classes have no plain memory to compare.
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided
    if not plain or tensor.device != old.device or tensor.data_ptr() == old.data_ptr():
        return True
    parts = (part.contiguous().reshape(-1).view(torch.uint8) for part in (tensor, old))
    return torch.equal(*parts)


def _mixed(tensors: Held, wanted: torch.dtype) -> str:
    """List the dtypes that a module mixes, with a tensor of each."""
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        names.setdefault(short(tensor.dtype), name)
    kinds = " and ".join(f"{dtype} ('{name}')" for dtype, name in names.items())
    text = f"the model holds {kinds}, and to make all {short(wanted)} would lose digits"
    return f"{text}; leave dtype out: it then keeps its own"


def check_values(name: str, tensor: torch.Tensor, target: torch.dtype, key: str) -> None:
    """Refuse a conversion that makes numbers infinite, or a whole tensor zero."""
    import torch

    if not loses(tensor.dtype, target) or not tensor.numel():
        return
    tensor = _stored(tensor)
    result = tensor.to(target)
    if bool((tensor.isfinite() & ~result.isfinite()).any()):
        lost = f"holds numbers beyond {torch.finfo(target).max:.1e}"
    elif not bool(result.any()) and bool(tensor.any()):
        lost = "becomes all zero"
    else:
        return
    text = f"'{name}' ({short(tensor.dtype)}) {lost} in {short(target)}"
    raise ModelError(Code.EMODEL, f"{key}: {text}; leave dtype out: the model then keeps its own")


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """Return the stored numbers of a tensor, which may be sparse."""
    import torch

    if tensor.layout is torch.strided:
        return tensor
    return tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
