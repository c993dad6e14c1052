"""The table `[gateway]`: the rank that answers HTTP."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, NamedTuple

from pydantic import Field, StrictStr, ValidationInfo, field_validator, model_validator

from mpiserve.config.tables import Table

UNIX = "unix:"
BESIDE = "unix"  # of gRPC: a socket in the folder of the other one
LONGEST_PATH = 107  # bytes of the path of a socket
MAX_CONNECTIONS = 100_000


class Address(NamedTuple):
    """Where the gateway listens: a path, or else a host and a port.

    Attributes:
        path: Of a socket; "" for none.
        host: The number of an interface.
        port: 0 for any free one.
    """

    path: str
    host: str = ""
    port: int = 0

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return bool(self.path) or ip_address(self.host).is_loopback


class GatewayConfig(Table):
    """The table `[gateway]`: one rank of the world that answers clients outside of the job."""

    address: StrictStr = ""
    """Where it listens: `"unix:PATH"`, or `"127.0.0.1:PORT"`, with port 0 for any free one. By
    default a socket in a new folder that only the user can enter.
    """
    grpc_address: StrictStr = ""
    """Where it answers gRPC: `"unix"` for a socket beside that of `address` which only the user can
    reach, `"unix:PATH"`, or `"127.0.0.1:PORT"`, with port 0 for any free one. Without it there is
    no gRPC.
    """
    endpoint_file: StrictStr = ""
    """The file with the address and the token, which only the user can read. By default
    `mpiserve-endpoint.json` in the folder of the socket, or in a new one.
    """
    tokens_file: StrictStr = ""
    """A file that only the user can read, with tokens of more clients: a table for each, which may
    have a rate of its own, and services that it is for.
    """
    tls_certificate: StrictStr = ""
    """The file of a certificate: then clients of an address with a port, by HTTP and by gRPC, speak
    TLS. Sockets of files need none.
    """
    tls_key: StrictStr = ""
    """The file of the certificate's key."""
    insecure: bool = False
    """Whether an address that other machines reach may go without TLS."""
    access_log: StrictStr = ""
    """A file that gets one line for each request; without it there is none."""
    connections: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = 512
    """The most connections at the same time; more are closed at once."""
    queue: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = 1024
    """The most requests that wait for one service; more are refused with status 503."""
    head_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Seconds in which a connection must have sent the head of a request."""
    body_timeout_s: Annotated[float, Field(gt=0, le=86400)] = 60.0
    """Seconds in which the body of a request must have come."""
    request_timeout_s: Annotated[float, Field(gt=0, le=1e7)] = 600.0
    """Seconds after which a request that has no deadline of its own ends with status 504."""
    process_timeout_s: Annotated[float, Field(ge=1, le=86400)] = 60.0
    """Seconds after which the process that speaks to clients is ended, and another one started, if
    it hangs.
    """

    @field_validator("address", "grpc_address")
    @classmethod
    def _check_address(cls, address: str, info: ValidationInfo) -> str:
        if address and (info.field_name, address) != ("grpc_address", BESIDE):
            parsed(address)
        return address

    @model_validator(mode="after")
    def _check_open(self) -> GatewayConfig:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key belong together")
        if self.tls_certificate and not any(one and one.host for one in self._both.values()):
            raise ValueError("tls_certificate is for addresses with a port, and there is none")
        is_safe = bool(self.tls_certificate) or self.insecure
        for key, where in self._both.items():
            if where and not where.is_private and not is_safe:
                text = "other machines reach it, and read the token: set tls_certificate"
                raise ValueError(f"{key} '{where.host}': {text} and tls_key, or insecure = true")
        return self

    @property
    def _both(self) -> dict[str, Address | None]:
        return {"address": self.where, "grpc_address": self.grpc_where}

    @property
    def where(self) -> Address | None:
        """The address; None for a socket in a new folder."""
        return parsed(self.address) if self.address else None

    @property
    def grpc_where(self) -> Address | None:
        """The address of gRPC; None for a socket in a new folder, or for none."""
        return parsed(self.grpc_address) if self.grpc_address not in ("", BESIDE) else None


def parsed(address: str) -> Address:
    """Read an address.

    Raises:
        ValueError: If it is neither "unix:PATH" nor "NUMBER:PORT".
    """
    if address.startswith(UNIX):
        path = address[len(UNIX) :]
        if not path or len(path.encode()) > LONGEST_PATH:
            raise ValueError(f"the path of a socket has 1 to {LONGEST_PATH} bytes")
        return Address(path)
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"'{address}' is neither 'unix:PATH' nor '127.0.0.1:PORT'")
    try:
        ip_address(host)
    except ValueError:
        raise ValueError(f"'{host}' is not the number of an interface, as 127.0.0.1") from None
    return Address("", host, int(port))
