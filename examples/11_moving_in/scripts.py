"""What runs before the model of from_smartredis: in a database, a script of RedisAI."""

from __future__ import annotations

import numpy as np


def pre_process(pixels: np.ndarray) -> np.ndarray:
    """Scale bytes to numbers from -1 to 1."""
    return pixels.astype(np.float32) / np.float32(127.5) - 1
