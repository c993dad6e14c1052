"""Protocols of servers, as pure functions between bytes and arrays."""
