"""Every simulation rank queries a service with three temperatures."""

import numpy as np

import mpiserve

with mpiserve.open() as session:
    rank = session.comm.rank
    service = session.service("fahrenheit")
    celsius = np.array([[-40], [0], [100]], np.float32) + rank
    fahrenheit = service(celsius)
    for c, f in zip(celsius[:, 0], fahrenheit[:, 0], strict=True):
        print(f"rank {rank}: {c:6.1f} C is {f:6.1f} F", flush=True)
