"""The route `/metrics`: what the gateway counts, and what the ranks of its node show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mpiserve.gateway.hub import Hub
from mpiserve.gateway.protocol import Limits
from mpiserve.gateway.routes import who
from mpiserve.gateway.traffic import Traffic
from mpiserve.observe import exposition
from mpiserve.observe.exposition import Family, Labels
from mpiserve.observe.ranks import Ranks, allow_many


class Metrics:
    """What Prometheus asks for.

    The ranks of the job are read from their memory, so that a scrape costs them nothing. The names
    of Triton are those of the replicas, which count the requests of all clients.

    Args:
        hub: The link to the rank.
        traffic: What clients have sent.
        limits: Of the connections, by protocol.
        run: The number of the session.
    """

    def __init__(self, hub: Hub, traffic: Traffic, limits: dict[str, Limits], run: int) -> None:
        self._hub = hub
        self._traffic = traffic
        self._limits = limits
        self._run = exposition.run_label(run)
        self._ranks = Ranks(run)
        self._turn = asyncio.Lock()
        allow_many()

    def route(self) -> Route:
        """Make the route."""
        return Route("/metrics", self._answer, methods=["GET"])

    async def _answer(self, request: Request) -> Response:
        who(request).check_all()
        async with self._turn:
            # All of /proc is read: other clients do not wait for it.
            await asyncio.to_thread(self._ranks.find)
            text = exposition.text(self._ranks.read(), self._families())
        return Response(text, media_type=exposition.TYPE)

    def _families(self) -> Iterable[Family]:
        traffic = self._traffic
        requests = Family(
            "mpiserve_gateway_requests_total", "counter", "Requests that the gateway has answered."
        )
        for (protocol, method, route, code), count in traffic.requests.items():
            labels = {"protocol": protocol, "method": method, "route": route, "code": code}
            requests.add(self._with(labels), count)
        yield requests
        for name, kind, values, what in (
            ("request_seconds_total", "counter", traffic.seconds, "Seconds that requests took."),
            ("received_bytes_total", "counter", traffic.received, "Bytes of requests' bodies."),
            ("sent_bytes_total", "counter", traffic.sent, "Bytes of the bodies of answers."),
            ("requests_under_way", "gauge", traffic.under_way, "Requests without an answer yet."),
        ):
            yield self._family(name, kind, what, "protocol", values)
        what = "Requests and connections that were refused, by reason."
        yield self._family("refused_total", "counter", what, "reason", traffic.refused)
        what = "Requests by the name of the client's token, - for none."
        yield self._family("token_requests_total", "counter", what, "token", traffic.tokens)
        opened = {protocol: limits.open for protocol, limits in self._limits.items()}
        yield self._family("connections", "gauge", "Open connections.", "protocol", opened)
        yield from self._queues()

    def _queues(self) -> Iterable[Family]:
        queues = self._hub.queues
        sent, what = (
            {service: self._hub.sent(service) for service in queues},
            "Requests to the ranks.",
        )
        yield self._family("job_requests_total", "counter", what, "service", sent)
        for name, kind, values, what in (
            ("merged_total", "counter", "merged", "Requests that went together with others."),
            ("waiting", "gauge", "waiting", "Requests that wait to be sent to a rank."),
        ):
            counts = {service: getattr(queue, values) for service, queue in queues.items()}
            yield self._family(name, kind, what, "service", counts)

    def _family(
        self, name: str, kind: str, what: str, label: str, values: Mapping[str, float]
    ) -> Family:
        made = Family(f"mpiserve_gateway_{name}", kind, what)
        for key, value in values.items():
            made.add(self._with({label: key}), value)
        return made

    def _with(self, labels: Labels) -> Labels:
        return {"run": self._run} | labels
