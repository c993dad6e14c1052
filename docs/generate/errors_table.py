"""The table of error codes, from mpiserve.h and mpiserve.errors."""

from __future__ import annotations

import header

from mpiserve.errors import Code, from_code


def page() -> str:
    """Write the table as Markdown."""
    _, parts = header.sections(header.HEADER.read_text())
    items = {item.names[0]: item for part in parts for item in part.items}
    meaning = {name.split()[0]: text for name, text in items["mpiserve_code"].members}
    lines = ["| code | C | Python | meaning |", "| --- | --- | --- | --- |"]
    for code in Code:
        name = f"MPISERVE_{code.name}"
        raised = type(from_code(code)).__name__
        python = f"[`{raised}`][mpiserve.errors.{raised}]" if code else "–"
        lines.append(f"| {code.value} | `{name}` | {python} | {meaning[name] or 'success'} |")
    return "\n".join(lines)
