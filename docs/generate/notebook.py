"""Make pages of notebooks: what they say, their code, and what it showed when it ran."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of a notebook, and the pictures that it shows, by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            parts.append(_shown(output, f"{path.stem}-{len(pictures)}.png", pictures))
    download = f"[{path.name}]({path.name} 'the notebook')"
    parts.insert(1, f"This page is a notebook: download {download} and run it.")
    return "\n\n".join(parts) + "\n", pictures


def _shown(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    """Show a picture where there is one, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        pictures[name] = b64decode("".join(data["image/png"]))
        return f"![A picture that the notebook draws]({name})"
    text = "".join(output.get("text") or data["text/plain"])
    return f"```text\n{text.rstrip()}\n```"
