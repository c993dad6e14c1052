"""What stands where a model was."""

from __future__ import annotations

from typing import Any

from mpiserve.backends.base import Backend
from mpiserve.errors import Code, ModelError


class Absent(Backend):
    """Answers nothing."""

    text = ""

    def run(self, inputs: Any) -> Any:
        """Refuse."""
        raise ModelError(Code.EMODEL, f"service '{self.service.name}' {self.text}")


class Unloaded(Absent):
    """Stands where a model was that a client has unloaded: every batch is an error."""

    text = "has no model now: it was unloaded; reload it"


class Suspended(Absent):
    """Stands where a model was that a rank of an adaptive pool has given up: no batch comes."""

    text = "is suspended on this rank"
