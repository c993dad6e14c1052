from typing import Any

import numpy as np

FIELDS: dict[str, type]

class Table:
    tensors: tuple[np.ndarray, ...]
    columns: dict[str, np.ndarray]
    rows: int
    capacity: int
    def __init__(self, row_bytes: list[int], capacity: int) -> None: ...

class Ring:
    address: int
    bytes: int
    def __init__(self, memory: Any) -> None: ...
    @property
    def dropped(self) -> int: ...
    @property
    def closed(self) -> str | None: ...
    def take(self, tables: list[Table]) -> int: ...
    def close(self, why: str) -> None: ...
