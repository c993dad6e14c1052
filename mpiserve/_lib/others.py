"""What a rank knows of the other ranks of its session."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpiserve._lib import core


class Others:
    """The functions of a session that tell how other ranks are."""

    _lib: core.Session

    def states(self, name: str) -> tuple[core.ReplicaState, ...]:
        """Return the states of the replicas of a service; on simulation ranks.

        As `Service.states`, also for a service that no replica could load.

        Raises:
            NotFoundError: If there is no service of this name.
        """
        return self._lib.states(name)

    def peer_error(self) -> tuple[int, int, str]:
        """Return whether a simulation rank ended with an error; on inference ranks.

        Returns:
            The world rank of the failed one or -1, the number of simulation ranks that have not
            left, and the text of the error.
        """
        return self._lib.peer_error()

    def lost(self) -> tuple[int, str]:
        """Return how many ranks of the world are known to have died, and their names.

        Ranks of other nodes are seen only with an MPI that goes on after a failure, as Open MPI 5
        under `mpirun --with-ft ulfm`.
        """
        return self._lib.lost()
