"""The program `report`: what MPISERVE_PROFILE has measured in a session, once more."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mpiserve.observe import parts, summary


def report(name: str, picture: str | None = None) -> int:
    """Print the report in a file, or of the parts in a folder, which gets a file beside it.

    Args:
        name: Of the file or folder.
        picture: A file for a picture of it.

    Returns:
        The exit status: 1 if there is none.
    """
    path = Path(name)
    try:
        made = _of_parts(path) if path.is_dir() else json.loads(path.read_text())
        if not made or made.get("format") != summary.FORMAT:
            raise ValueError("there is no report of this version")
    except (OSError, ValueError) as error:
        print(f"mpiserve: {name}: {error}", file=sys.stderr)
        return 1
    print(f"mpiserve: {summary.text(made)}")
    return _draw(made, Path(picture)) if picture else 0


def _draw(made: summary.Report, picture: Path) -> int:
    try:
        from mpiserve.tools.report_picture import draw

        draw(made, picture)
    except (ImportError, OSError, ValueError) as error:  # of a kind that nobody can draw
        print(f"mpiserve: {picture}: {error}", file=sys.stderr)
        return 1
    return 0


def _of_parts(folder: Path) -> summary.Report:
    made = summary.report(parts.read(folder))
    if made:
        summary.write(made, folder.with_suffix(".json"))
    return made
