"""What the head of a replica publishes of its service."""

from __future__ import annotations

from typing import Any

from mpiserve.config import ServiceConfig, TensorConfig
from mpiserve.config.batching import delay_us
from mpiserve.config.tensor import Tensor
from mpiserve.config.uncertainty import is_hidden


def description(service: ServiceConfig, replica: int, **outcome: Any) -> dict[str, Any]:
    """Describe a service to the broker.

    Args:
        service: The service's table.
        replica: The number of the replica.
        outcome: What only its model, or its failure, can tell.

    Returns:
        Arguments of `Session.publish`.
    """
    finite = service.check == "finite"
    return {
        "name": service.name,
        "inputs": [signature(tensor) for tensor in service.inputs],
        "outputs": [signature(tensor) for tensor in service.outputs],
        "largest": [
            [tensor.largest for tensor in side] for side in (service.inputs, service.outputs)
        ],
        "max_batch_rows": service.max_batch_rows,
        "max_delay_us": delay_us(service),
        "reproducible": service.reproducible,
        "pool_bytes": service.pool_bytes,
        "stickiness": service.stickiness,
        "max_queue_rows": service.max_queue_rows,
        "on_full": service.on_full,
        "allow_empty": service.allow_empty or service.rows == "ragged",
        "replica": replica,
        "checks": [(finite and not is_hidden(service, t), t.min, t.max) for t in service.outputs],
        "uncertain": service.uncertainty is not None,
        "cache_rows": service.cache_rows,
        "cache_step": service.cache_step,
        **outcome,
    }


def signature(tensor: TensorConfig) -> Tensor:
    """Describe a tensor as the broker publishes it."""
    return Tensor(tensor.name, tensor.dtype, tensor.shape)
