"""Read numbers from environment variables."""

from __future__ import annotations

import logging
import os
from math import isnan, nan

logger = logging.getLogger("mpiserve")


def seconds(name: str, default: float) -> float:
    """Read a time of at least 0; log a warning and use the default if it is not a number."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = nan
    if isnan(value):
        logger.warning("%s=%.40r is not a number of seconds: using %g", name, text, default)
        return default
    return max(0.0, value)
