"""A server of the Open Inference Protocol that fails as it is told, for tests of its clients.

Its model doubles a tensor `x`. Another one speaks the OpenAI API: its model writes a prompt
backwards. Real servers cannot be told to fail; tests/launch has some of these.
"""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

LENGTH = "Inference-Header-Content-Length"
TENSOR = {"datatype": "FP32", "shape": [-1, 2]}
METADATA = {
    "name": "double",
    "inputs": [TENSOR | {"name": "x"}],
    "outputs": [TENSOR | {"name": "y"}],
}

Fault = Callable[["Handler"], bool]  # whether it has dealt with the request


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        known = self.path in ("/v2/models/double", "/v2/models/double/ready")
        known = known and time.monotonic() >= self.server.ready_at
        self.reply(200 if known else 404, METADATA if known else {"error": "no such model"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.seen += 1
            self.server.most = max(self.server.most, self.server.begin())
            fault = self.server.faults.pop(0) if self.server.faults else None
        try:
            if fault is None or not fault(self):
                self.answer(body)
        finally:
            self.server.end()

    def answer(self, body: bytes) -> None:
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.reply(401, {"error": "who are you?"})
        else:
            self.infer(body)

    def infer(self, body: bytes) -> None:
        import numpy as np

        size = int(self.headers[LENGTH])
        tensor = json.loads(body[:size])["inputs"][0]
        data = (2 * np.frombuffer(body[size:], np.float32)).tobytes()
        text = json.dumps({"outputs": [tensor | {"name": "y"}]}).encode()
        self.reply(200, text + data, {LENGTH: str(len(text))})

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items() | {("Content-Length", str(len(data)))}:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *text: Any) -> None:
        pass


class OpenAIHandler(Handler):
    """Answers one connection of the OpenAI API."""

    def do_GET(self) -> None:
        if time.monotonic() < self.server.ready_at:
            self.reply(503, {"detail": "it starts"})
        elif self.path == "/v1/models" and self.server.lists:
            self.reply(200, {"data": [{"id": "backwards"}]})
        else:
            self.reply(404, {"detail": "no such path"})

    def infer(self, body: bytes) -> None:
        asked = json.loads(body)
        self.server.asked.append(asked)
        if self.path == "/v1/embeddings":
            vectors = [[len(text), asked.get("scale", 1)] for text in asked["input"]]
            data = [{"index": i, "embedding": v} for i, v in reversed([*enumerate(vectors)])]
            self.reply(200, {"data": data})
            return
        if asked["model"] != "backwards":
            self.reply(404, {"error": {"message": "no such model"}})
            return
        chat = self.path == "/v1/chat/completions"
        prompt = asked["messages"][-1]["content"] if chat else asked["prompt"]
        if not prompt:
            self.reply(400, {"error": {"message": "an empty prompt", "type": "invalid"}})
            return
        said = prompt[::-1][: asked.get("max_tokens")]
        choice = {"message": {"role": "assistant", "content": said}} if chat else {"text": said}
        usage = {"usage": {"completion_tokens": len(said)}} if self.server.counts else {}
        self.reply(200, {"choices": [choice]} | usage)


class Server(socketserver.ThreadingMixIn, HTTPServer):
    """A server, from the `with` on, at a port or at a path of a socket.

    Attributes:
        faults: What happens to the next requests.
        token: What it demands; "" for nothing.
        seen: Requests so far.
        most: The most that it had at the same time.
        ready_at: When it knows its model, as time.monotonic tells it.
        asked: What it was asked by the OpenAI API.
        counts: Whether it counts tokens there.
        lists: Whether it lists its models there.
    """

    daemon_threads = True

    def __init__(self, address: Any = ("127.0.0.1", 0), handler: type[Handler] = Handler) -> None:
        self.address_family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.faults: list[Fault] = []
        self._connections: list[socket.socket] = []
        self.lock = threading.Lock()
        self.ready_at = 0.0
        self.token, self.seen, self.most, self._now = "", 0, 0, 0
        self.asked: list[Any] = []
        self.counts = self.lists = True
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer looks for the name of its host

    def get_request(self) -> Any:
        made, address = super().get_request()
        self._connections.append(made)
        return made, address or ("", 0)  # a socket with a path has none

    def begin(self) -> int:
        self._now += 1
        return self._now

    def end(self) -> None:
        with self.lock:
            self._now -= 1

    @property
    def url(self) -> str:
        where = self.server_address
        return f"unix:{where}" if isinstance(where, str) else f"http://127.0.0.1:{where[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()
        for made in self._connections:
            with suppress(OSError):  # it has ended
                made.shutdown(socket.SHUT_RDWR)


def hang_up(handler: Handler) -> bool:
    """Close the connection without an answer, as a server does that has kept it for long."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def say(status: int, **headers: str) -> Fault:
    """Answer with a status."""

    def fault(handler: Handler) -> bool:
        handler.reply(status, {"error": f"said {status}"}, headers)
        return True

    return fault


def take(seconds: float) -> Fault:
    """Take so long for the answer."""

    def fault(handler: Handler) -> bool:
        time.sleep(seconds)
        return False

    return fault


def meet(number: int) -> Fault:
    """Wait until so many requests are there, or for 10 s."""

    def fault(handler: Handler) -> bool:
        end = time.monotonic() + 10
        while handler.server.most < number and time.monotonic() < end:
            time.sleep(0.01)
        return False

    return fault


def start_again(handler: Handler) -> bool:
    """Know no model for a while, as Triton does not when it starts."""
    handler.server.ready_at = time.monotonic() + 0.3
    return say(404)(handler)
