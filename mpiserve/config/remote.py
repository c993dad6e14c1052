"""The table `[service.NAME.remote]`: the same model at a server, beside the local one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictStr, ValidationInfo

from mpiserve.config.tables import Table
from mpiserve.config.values import MAX_SECONDS
from mpiserve.config.version import VERSION, filled


class RemoteConfig(Table):
    """The table `[service.NAME.remote]`: a server has the same model, beside the local one."""

    model: StrictStr
    """The name of the model at the server. It has the signature of the service."""
    options: dict[str, Any] = Field(default_factory=dict)
    """How to reach the server: the options of the backend `remote`."""
    failures: int = Field(3, ge=1, lt=2**31)
    """So many failures in a row, and the server gets no more requests until it is ready again."""
    open_s: float = Field(1.0, gt=0, le=MAX_SECONDS)
    """Seconds until such a server is asked whether it is ready, and between two questions."""
    probe_s: float = Field(0.2, ge=0.01, le=MAX_SECONDS)
    """Seconds between two measurements of the side that does not answer; the side changes at most
    as often.
    """


_REASONS = {
    "backend": "the service is remote already; options.url may be a list",
    "task": "a language model has no costs by rows; use two services",
    "rows": "only rows can be split and compared",
    "tensor_parallel": "its ranks must agree on every batch; use two services",
    "derivatives": "they are those of the local model; use two services",
    "uncertainty": "only an output of the model ('model') is at the server, too",
    "max_shape": "rows of free dimensions have no cost of their own; use two services",
}


def _check_version(remote: RemoteConfig, service: Mapping[str, Any]) -> None:
    """After a reload both models must be of one version."""
    local, there = [service.get("model"), service.get("options")], [remote.model, remote.options]
    mine, other = (filled(texts, "") != texts for texts in (local, there))
    if mine and not other:
        text = f"the local model has versions, so model or options here must say {VERSION}, too"
        raise ValueError(f"{text}: otherwise two versions would answer after a reload")
    if other and not mine:
        raise ValueError(f"it says {VERSION}, which neither model nor options of the service do")


def _check_remote(remote: RemoteConfig | None, info: ValidationInfo) -> RemoteConfig | None:
    """Refuse the table beside what cannot have it."""
    service = info.data
    if remote is None:
        return None
    tensors = [*service.get("inputs", ()), *service.get("outputs", ())]
    uncertainty = service.get("uncertainty")
    for key, wrong in (
        ("backend", service.get("backend") == "remote"),
        ("task", service.get("task")),
        ("rows", service.get("rows") in ("none", "ragged")),
        ("tensor_parallel", service.get("tensor_parallel", 1) > 1),
        ("derivatives", service.get("derivatives")),
        ("uncertainty", uncertainty and uncertainty.method != "model"),
        ("max_shape", any(tensor.is_free for tensor in tensors)),
    ):
        if wrong:
            raise ValueError(f"not with this {key}: {_REASONS[key]}")
    _check_version(remote, service)
    return remote


def _check_placement(placement: str, info: ValidationInfo) -> str:
    if placement != "local" and info.data.get("remote") is None:
        raise ValueError(f"'{placement}' needs a table [service.NAME.remote]")
    return placement


def remote_of(remote: RemoteConfig | None, version: str) -> RemoteConfig | None:
    """Return the table for a version."""
    if remote is None:
        return None
    keys = {key: filled(getattr(remote, key), version) for key in ("model", "options")}
    return remote.model_copy(update=keys)


Remote = Annotated[RemoteConfig | None, AfterValidator(_check_remote)]
Placement = Annotated[
    Literal["local", "remote", "auto", "split"],
    Field(validate_default=True),
    AfterValidator(_check_placement),
]
