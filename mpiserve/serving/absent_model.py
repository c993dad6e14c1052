"""Backends for services whose model is unloaded or suspended."""

from __future__ import annotations

from typing import Any

from mpiserve.backends.base import Backend
from mpiserve.errors import Code, ModelError


class Absent(Backend):
    """Refuses every batch."""

    text = ""

    def run(self, inputs: Any) -> Any:
        """Refuse a batch."""
        raise ModelError(Code.EMODEL, f"service '{self.service.name}' {self.text}")


class Unloaded(Absent):
    """Replaces a model that a client has unloaded: every batch is an error."""

    text = "has no model now: it was unloaded; reload it"


class Suspended(Absent):
    """Replaces a model that is unloaded until its rank serves it again: it gets no batch."""

    text = "is suspended on this rank"
