"""The routes of the Open Inference Protocol, but that of inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mpiserve.gateway.infer import read_body
from mpiserve.gateway.models import Models
from mpiserve.gateway.tokens import Holder
from mpiserve.wire import open_inference_server as wire

MOST_BYTES = 64 << 10  # of the body of a request that carries no tensors
HOLDER = "mpiserve.holder"  # in the scope of a request: who sends it


def reply(table: object, status: int = 200) -> Response:
    """Make an answer of JSON."""
    return Response(wire.dump(table), status, media_type="application/json")


class Routes:
    """The handlers.

    Args:
        models: The models.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def app(self, more: Sequence[Route]) -> Router:
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
        return Router([*routes, *more], redirect_slashes=False)

    async def live(self, request: Request) -> Response:
        """Say that the server answers."""
        return reply({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether all services serve, of those that the client may use."""
        ready = self._models.all_ready(who(request))
        return reply({"ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        """Describe the server."""
        return reply(self._models.server())

    async def model(self, request: Request) -> Response:
        """Describe a model."""
        return reply(self._models.described(who(request), *_named(request)))

    async def model_ready(self, request: Request) -> Response:
        """Say whether a model serves."""
        name, version = _named(request)
        ready = self._models.is_ready(who(request), name, version)
        return reply({"name": name, "ready": ready}, 200 if ready else 503)

    async def config(self, request: Request) -> Response:
        """Describe a model in the way of Triton's configuration."""
        return reply(self._models.config(who(request), *_named(request)))

    async def model_statistics(self, request: Request) -> Response:
        """Return what was answered for a model."""
        return reply(self._models.statistics(who(request), *_named(request)))

    async def all_statistics(self, request: Request) -> Response:
        """Return what was answered."""
        return reply(self._models.statistics(who(request)))

    async def index(self, request: Request) -> Response:
        """List the models, or those that serve."""
        options = await _body_of(request)
        return reply(self._models.index(who(request), only_ready=bool(options.get("ready"))))

    async def load(self, request: Request) -> Response:
        """Load a model again, or the version that the parameters name."""
        body = await _body_of(request)
        await self._models.load(who(request), _named(request)[0], body.get("parameters"))
        return reply({})

    async def unload(self, request: Request) -> Response:
        """Free the memory of a model."""
        await _body_of(request)
        await self._models.unload(who(request), _named(request)[0])
        return reply({})


def who(request: Request) -> Holder:
    """Return who sends a request."""
    holder: Holder = request.scope[HOLDER]
    return holder


def _named(request: Request) -> tuple[str, str | None]:
    return request.path_params["name"], request.path_params.get("version")


async def _body_of(request: Request) -> dict[str, Any]:
    headers = dict(request.scope["headers"])
    body = await read_body(headers, request.receive, MOST_BYTES)
    return wire.load(body) if body.strip() else {}
