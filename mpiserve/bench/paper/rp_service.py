"""A service of RADICAL-Pilot that does nothing: its own server, one request at a time.

    rp_service.py

It runs in the environment of RADICAL-Pilot, without mpiserve. The line that it prints has its
address, and when it began and was ready.
"""

import time

BEGIN = time.time()

import radical.utils  # noqa: E402 - the time that it takes counts


def noop(*_: object) -> list[int]:
    """Say when the service began and ended to work on a request."""
    begin = time.monotonic_ns()
    return [begin, time.monotonic_ns()]


def main() -> None:
    """Answer until the task is cancelled."""
    server = radical.utils.zmq.Server()
    server.register_request("noop", noop)
    server.start()
    print(f"endpoint: {server.addr},{BEGIN},{time.time()}", flush=True)
    server.wait()


if __name__ == "__main__":
    main()
