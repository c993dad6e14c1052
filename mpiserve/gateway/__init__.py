"""The gateway: a rank of the world whose child answers HTTP, and the client of such a gateway."""
