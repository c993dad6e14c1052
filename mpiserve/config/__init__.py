"""Read and check the configuration: services, pools and the partition of a world."""

from mpiserve.config.file import Config, Group, PartitionConfig, PoolConfig
from mpiserve.config.service import MAX_TENSORS, ServiceConfig
from mpiserve.config.tables import DTYPES, MAX_DIMS, NAME_SIZE, TensorConfig
from mpiserve.config.values import OBJECT

__all__ = [
    "DTYPES",
    "MAX_DIMS",
    "MAX_TENSORS",
    "NAME_SIZE",
    "OBJECT",
    "Config",
    "Group",
    "PartitionConfig",
    "PoolConfig",
    "ServiceConfig",
    "TensorConfig",
]
