"""Variables of the environment that are numbers."""

from __future__ import annotations

import logging
import os
from math import isnan, nan

logger = logging.getLogger("mpiserve")


def seconds(name: str, default: float) -> float:
    """Read a time, at least 0; what is none is told in the log, and the default holds."""
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = nan
    if isnan(value):
        logger.warning("%s=%.40r is no number of seconds: %g is taken", name, text, default)
        return default
    return max(0.0, value)
