"""Names of versions, and where they stand in a table."""

from __future__ import annotations

import re
from typing import Any

from mpiserve.config.tables import NAME_SIZE
from mpiserve.config.values import shown

VERSION = "{version}"  # in model and options
UNTRAINED = "untrained"  # the version of a service that has no weights yet


def checked_version(version: str) -> str:
    """Check the name of a version.

    Raises:
        ValueError: If it is none.
    """
    if not re.fullmatch(r"\w[\w.+-]*", version, re.ASCII) or len(version) >= NAME_SIZE:
        raise ValueError(f"a version is letters, digits and any of _.+-, got {shown(version)}")
    return version


def filled(value: Any, version: str) -> Any:
    """Replace VERSION by the name of a version in all texts of a value."""
    if isinstance(value, str):
        return value.replace(VERSION, version)
    if isinstance(value, dict):
        return {key: filled(item, version) for key, item in value.items()}
    return [filled(item, version) for item in value] if isinstance(value, list) else value
