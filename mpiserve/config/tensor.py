"""One tensor of a service's signature."""

from typing import NamedTuple


class Tensor(NamedTuple):
    """Name, dtype and shape; shape[0] is -1, the number of rows."""

    name: str
    dtype: str
    shape: tuple[int, ...]
