"""What any simulation rank may ask of the replicas of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpiserve._lib import core


class Changes:
    """The functions of a session that change the models of services and their replicas."""

    _lib: core.Session

    def reload(self, name: str, version: str = "", timeout: float | None = None) -> None:
        """Load another version of a service's model while the simulation goes on.

        Call it on one simulation rank; it is not collective. Replicas answer with the old
        version until all have loaded the new one. The new version answers every request that
        any rank submits after this has returned. The derivatives of the service change with it.

        Args:
            name: The name of the service.
            version: The name of the version, which `model` or `options` of the service use. By
                default the current version is read again.
            timeout: In seconds; None waits for ever. After RequestTimeout either nothing has
                changed, or the replicas change when the work that they have begun has ended.

        Raises:
            ModelError: If a replica could not load the version, with the reason. All replicas
                go on with the old version; with `reload = "in-place"` only this replica does.
            ConfigError: If neither `model` nor `options` of the service use a version.
            NotFoundError: If there is no such service.
            Error: With code ESTATE, if another rank reloads the service.
        """
        self._lib.reload(name, version, timeout)

    def unload(self, name: str, timeout: float | None = None) -> None:
        """Free the memory of a service's model in all replicas; on simulation ranks.

        Until a `reload`, requests fail with ModelError, including those that wait already.
        """
        self._lib.unload(name, timeout)

    def start(self, name: str, timeout: float | None = None) -> None:
        """Let as many replicas of a service serve as the configuration says, as `scale` does."""
        self._lib.scale(name, None, timeout)

    def stop(self, name: str, timeout: float | None = None) -> None:
        """Let no replica of a service serve, and free the models; as `scale` with 0.

        Until a `start`, requests fail with ModelError, including those that wait already.
        """
        self._lib.scale(name, 0, timeout)

    def scale(self, name: str, replicas: int, timeout: float | None = None) -> None:
        """Let so many replicas of a service serve, while the simulation goes on.

        Call it on one simulation rank; it is not collective. More replicas are those of the
        configuration that do not serve, then spare ranks (`[partition] spares`), which load the
        model and serve until they are stopped. To serve with fewer, spares stop first: they send
        the requests that wait to other replicas, and free the model. It returns when the models
        answer or are freed. A spare serves one service at a time, or those of one pool.

        Args:
            name: The name of the service.
            replicas: How many are to serve; 0 stops the service.
            timeout: In seconds; None waits for ever. After RequestTimeout it happens later.

        Raises:
            ArgumentError: If the session has fewer replicas and spares of this service.
            NotFoundError: If there is no such service.
            ModelError: If a model could not be loaded, with the reason.
            Error: With code ESTATE and what each rank said, if no spare is left, or if a replica
                cannot be stopped: one of several ranks, or of an adaptive pool.
        """
        self._lib.scale(name, replicas, timeout)
