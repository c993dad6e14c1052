"""Read numbers from environment variables."""

from __future__ import annotations

import logging
import os
from math import isnan, nan

logger = logging.getLogger("mpiserve")


def seconds(name: str, default: float) -> float:
    """Read a time of at least 0; log a warning and use the default if it is not a number."""
    return number(name, default, "a number of seconds")


def number(name: str, default: float, what: str = "a number") -> float:
    """Read a number of at least 0; log a warning and use the default if it is none."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = nan
    if isnan(value):
        logger.warning("%s=%.40r is not %s: using %g", name, text, what, default)
        return default
    return max(0.0, value)
