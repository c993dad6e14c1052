"""The texts of `repr`: what a session, a service or a request is, and its state now.

None waits for another rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpiserve.config.tensor import Tensor
from mpiserve.errors import Code, Error

if TYPE_CHECKING:
    from mpiserve._lib import core


def session(lib: core.Session) -> str:
    """Describe a session: who this rank is, and the services that can serve."""
    who = f"{lib.role} rank {lib.rank} of {len(lib.roles)}"
    if lib.role == "inference":
        return f"<session of {who}>"
    try:
        names = ", ".join(service.name for service in lib.services())
    except Error:
        return f"<session of {who}, closed>"
    return f"<session of {who}, services: {names or 'none'}>"


def service(of: core.Service) -> str:
    """Describe a service: where it is, its state, its signature."""
    where = f"at rank {of.head}, {of.transport}"
    if of.transport == "shared":  # otherwise the state is a message
        where += f", {_state(of)}"
    return f"<service {of.name!r} {where}: {_side(of.inputs)} -> {_side(of.outputs)}>"


def _state(of: core.Service) -> str:
    try:
        return of.state
    except Error:
        return "closed"


def _side(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)


def pace(of: core.Pace, name: str) -> str:
    """Describe a pace: what it was made with, and how old its last answer was."""
    how = f"every {of.every}, lag {of.lag}" + (", extrapolated" if of.extrapolate else "")
    age = "no answer yet" if of.age is None else f"the last answer {of.age} steps old"
    return f"<pace of {name!r}: {how}, {age}>"


def request(of: core.Request, name: str, ended: bool, code: int, text: str) -> str:
    """Describe a request: under way, who has answered it, or its error."""
    if not ended:
        state = "under way"
    elif code:
        known = Code(code).name if code in Code._value2member_map_ else str(code)
        state = f"{known}: {text}"
    else:
        stats = of.stats or {}
        state = f"answered by the {stats['source']}, {stats['rows']} rows"
        state += f" in {stats['total_ns'] / 1e6:.3g} ms"
    return f"<request to {name!r}, {state}>"
