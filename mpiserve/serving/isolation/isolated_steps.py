"""The steps of a model that runs in a child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import Steps
from mpiserve.serving.isolation.messages import Failure, StepsState
from mpiserve.serving.isolation.process import ChildProcess, LostError

if TYPE_CHECKING:
    import numpy as np

IDLE = StepsState(busy=False, room=True)


class IsolatedSteps(Steps):
    """Passes requests to the steps in a child, and their results back.

    Args:
        child: Returns the child, which may be a new one.
        lose: Called when the child is lost, with the error.
        limit: The seconds that a call may take; 0 means no limit.

    Attributes:
        state: What the child has said last.
        takes_over: Whether the steps can take over state of another version.
    """

    def __init__(
        self,
        child: Callable[[], ChildProcess],
        lose: Callable[[LostError], None],
        limit: float,
    ) -> None:
        self._child = child
        self._lose = lose
        self._limit = limit
        self._held: set[int] = set()
        self._lost: dict[int, LostError] = {}  # requests of a child that is lost
        self.state = IDLE
        self.takes_over = False

    @property
    def busy(self) -> bool:
        """Whether the steps have work."""
        return bool(self._lost) or _value(self.state.busy)

    @property
    def room(self) -> bool:
        """Whether the steps have room."""
        return _value(self.state.room)

    def begin(self, key: int, client: int, inputs: tuple[np.ndarray, ...]) -> None:
        """Pass a request to the child."""
        self.state = self._call("begin", key, client, inputs)
        self._held.add(key)

    def step(self) -> Mapping[int, Any]:
        """Have the child do a step; requests whose child was lost end first."""
        if self._lost:
            lost, self._lost = self._lost, {}
            return lost
        self.state, results = self._call("step")
        self._held -= results.keys()
        return {
            key: result.error() if isinstance(result, Failure) else result
            for key, result in results.items()
        }

    def drop(self, key: int) -> None:
        """Drop a request, unless the child that held it is lost."""
        self._lost.pop(key, None)
        if key in self._held:
            self._held.discard(key)
            self.state = self._call("drop", key)

    def take_over(self, old: Steps) -> None:
        """Have the child take over state of the version before, which is in another one."""
        if self.takes_over and isinstance(old, IsolatedSteps):
            self.state = self._call("take_over", old._call("copy"))

    def _call(self, name: str, *arguments: Any) -> Any:
        what = "in a step of the model"
        try:
            return self._child().call(
                name, *arguments, limit=self._limit, what=what, key="timeout_s"
            )
        except LostError as error:
            self._lost |= dict.fromkeys(self._held, error)  # others may not have ended yet
            self._held.clear()
            self.state = IDLE
            self._lose(error)
            raise


def _value(state: bool | Failure) -> bool:
    if isinstance(state, Failure):
        raise state.error()
    return state
