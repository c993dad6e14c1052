"""A ZeroMQ worker that runs the network, to compare mpiserve with.

    python -m mpiserve.bench.worker ADDRESS ROWS

It prints "ready", then answers until a request is empty.
"""

from __future__ import annotations

import sys

from mpiserve.bench.models import mlp

STOP = b""


def main() -> None:
    """Answer requests."""
    import torch
    import zmq

    address, rows = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    module = mlp()
    with zmq.Context() as context, context.socket(zmq.REP) as socket, torch.inference_mode():
        socket.bind(address)
        print("ready", flush=True)
        while len(message := socket.recv(copy=False)):
            x = torch.frombuffer(message.buffer, dtype=torch.float32).reshape(rows, -1)
            socket.send(module(x).numpy(), copy=False)
        socket.send(STOP)


if __name__ == "__main__":
    main()
