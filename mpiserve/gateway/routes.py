"""The routes of the Open Inference Protocol, but that of inference."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mpiserve.gateway.hub import Hub
from mpiserve.gateway.infer import find, read_body
from mpiserve.gateway.services import Service
from mpiserve.gateway.statistics import Statistics
from mpiserve.wire import open_inference_server as wire

SERVES = ("ready", "busy")
MOST_BYTES = 64 << 10  # of the body of a request that carries no tensors


def reply(table: object, status: int = 200) -> Response:
    """Make an answer of JSON."""
    return Response(wire.dump(table), status, media_type="application/json")


class Routes:
    """The handlers.

    Args:
        hub: The link to the rank.
        statistics: What was answered.
        version: Of mpiserve.
    """

    def __init__(self, hub: Hub, statistics: Statistics, version: str) -> None:
        self._hub = hub
        self._statistics = statistics
        self._version = version

    def app(self) -> Router:
        """Make the application; without Starlette's middleware, which answers errors itself."""
        get = {
            "/v2": self.server,
            "/v2/health/live": self.live,
            "/v2/health/ready": self.ready,
            "/v2/models/stats": self.all_statistics,
        }
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            get[path] = self.model
            get[f"{path}/ready"] = self.model_ready
            get[f"{path}/config"] = self.config
            get[f"{path}/stats"] = self.model_statistics
        post = {
            "/v2/repository/index": self.index,
            "/v2/repository/models/{name}/load": self.load,
            "/v2/repository/models/{name}/unload": self.unload,
        }
        routes = [Route(path, handler, methods=["GET"]) for path, handler in get.items()]
        routes += [Route(path, handler, methods=["POST"]) for path, handler in post.items()]
        return Router(routes, redirect_slashes=False)

    async def live(self, request: Request) -> Response:
        """Say that the server answers."""
        return reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether all services serve."""
        ready = not self._hub.drains and all(map(self._serves, self._hub.states))
        return reply({"ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Describe the server."""
        return reply({"name": "mpiserve", "version": self._version, "extensions": wire.EXTENSIONS})

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        return reply(self._find(request).described())

    async def model_ready(self, request: Request) -> Response:
        """Say whether a model serves."""
        name = self._find(request).name
        ready = not self._hub.drains and self._serves(name)
        return reply({"name": name, "ready": ready}, 200 if ready else 503)

    async def config(self, request: Request) -> Response:
        """Describe a model in the way of Triton's configuration, as far as its clients need it."""
        service = self._find(request)
        rows = service.rows == "independent"
        return reply(
            {
                "name": service.name,
                "platform": service.described()["platform"],
                "max_batch_size": service.max_batch_rows if rows else 0,
                "input": [_configured(tensor, rows) for tensor in service.inputs],
                "output": [_configured(tensor, rows) for tensor in service.outputs],
            }
        )

    async def model_statistics(self, request: Request) -> Response:
        """Return what was answered for a model."""
        return reply({"model_stats": [self._counted(self._find(request))]})

    async def all_statistics(self, request: Request) -> Response:
        """Return what was answered."""
        return reply({"model_stats": [*map(self._counted, self._hub.services.values())]})

    async def index(self, request: Request) -> Response:
        """List the models, or those that serve."""
        options = await _body_of(request)
        entries = [self._entry(name) for name in self._hub.states]
        if options.get("ready"):
            entries = [entry for entry in entries if entry["state"] == "READY"]
        return reply(entries)

    async def load(self, request: Request) -> Response:
        """Load a model again, or the version that the parameters name."""
        parameters = (await _body_of(request)).get("parameters") or {}
        version = parameters.get("version", "") if isinstance(parameters, dict) else ""
        await self._hub.change("reload", self._named(request), str(version))
        return reply({})

    async def unload(self, request: Request) -> Response:
        """Free the memory of a model."""
        await _body_of(request)
        await self._hub.change("unload", self._named(request), "")
        return reply({})

    def _named(self, request: Request) -> str:
        return find(self._hub, request.path_params["name"], None).name

    def _find(self, request: Request) -> Service:
        return find(self._hub, request.path_params["name"], request.path_params.get("version"))

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


async def _body_of(request: Request) -> dict[str, Any]:
    headers = dict(request.scope["headers"])
    body = await read_body(headers, request.receive, MOST_BYTES)
    return wire.load(body) if body.strip() else {}
