"""What the gateway says of the models, whichever protocol asks: the tables of the answers."""

from __future__ import annotations

from typing import Any

from mpiserve.gateway.hub import Hub
from mpiserve.gateway.infer import find
from mpiserve.gateway.services import Service
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.tokens import Holder
from mpiserve.wire import open_inference_server as wire

SERVES = ("ready", "busy")


class Models:
    """The models of a job, for who may use them. A name and a version that there is not are errors.

    Args:
        hub: The link to the rank.
        statistics: What was answered.
        version: Of mpiserve.
    """

    def __init__(self, hub: Hub, statistics: Statistics, version: str) -> None:
        self._hub = hub
        self._statistics = statistics
        self._version = version

    def all_ready(self, who: Holder) -> bool:
        """Say whether all services serve, of those that it may use."""
        names = filter(who.may_use, self._hub.states)
        return not self._hub.drains and all(map(self._serves, names))

    def server(self) -> dict[str, Any]:
        """Describe the server."""
        return {"name": "mpiserve", "version": self._version, "extensions": wire.EXTENSIONS}

    def described(self, who: Holder, name: str, version: str | None) -> dict[str, Any]:
        """Describe a model."""
        return find(self._hub, who, name, version).described()

    def is_ready(self, who: Holder, name: str, version: str | None) -> bool:
        """Say whether a model serves."""
        return not self._hub.drains and self._serves(find(self._hub, who, name, version).name)

    def config(self, who: Holder, name: str, version: str | None) -> dict[str, Any]:
        """Describe a model in the way of Triton's configuration, as far as its clients need it."""
        service = find(self._hub, who, name, version)
        rows = service.rows == "independent"
        return {
            "name": service.name,
            "platform": service.described()["platform"],
            "max_batch_size": service.max_batch_rows if rows else 0,
            "input": [_configured(tensor, rows) for tensor in service.inputs],
            "output": [_configured(tensor, rows) for tensor in service.outputs],
        }

    def statistics(self, who: Holder, name: str = "", version: str | None = None) -> dict[str, Any]:
        """Return what was answered for a model, or for all."""
        if name:
            return {"model_stats": [self._counted(find(self._hub, who, name, version))]}
        services = self._hub.services.values()
        return {"model_stats": [self._counted(one) for one in services if who.may_use(one.name)]}

    def index(self, who: Holder, *, only_ready: bool) -> list[dict[str, Any]]:
        """List the models, or those that serve."""
        entries = [self._entry(name) for name in self._hub.states if who.may_use(name)]
        return [entry for entry in entries if entry["state"] == "READY" or not only_ready]

    async def load(self, who: Holder, name: str, parameters: Any) -> None:
        """Load a model again, or the version that the parameters name."""
        who.check_change()
        version = parameters.get("version", "") if isinstance(parameters, dict) else ""
        await self._hub.change("reload", find(self._hub, who, name, None).name, str(version))

    async def unload(self, who: Holder, name: str) -> None:
        """Free the memory of a model."""
        who.check_change()
        await self._hub.change("unload", find(self._hub, who, name, None).name, "")

    def _serves(self, name: str) -> bool:
        return self._hub.states.get(name) in SERVES

    def _entry(self, name: str) -> dict[str, Any]:
        service, state = self._hub.services.get(name), self._hub.states[name]
        entry = {"name": name, "state": "READY" if state in SERVES else "UNAVAILABLE"}
        if service is not None:
            entry["version"] = service.version
        return entry | {"reason": "" if state in SERVES else self._hub.reasons.get(name, state)}

    def _counted(self, service: Service) -> dict[str, Any]:
        executions = self._hub.sent(service.name)
        return self._statistics.table(service.name, service.version, executions)


def _configured(tensor: wire.Tensor, rows: bool) -> dict[str, Any]:
    dims = list(tensor.shape[1:] if rows else tensor.shape)
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.datatype}", "dims": dims}
