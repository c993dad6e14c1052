"""What jobs with faults have seen.

python tests/faults/seen.py      print what the last runs have seen, and write build/faults.md
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEEN = "faults.jsonl"  # in the folder of each job of tests/run.py

COLUMNS = ("fault", "launched", "MPI", "transport", "what was said", "next answer", "job")
COLUMNS += ("requests of others", "status", "left behind", "")


def rows() -> Iterator[dict[str, Any]]:
    """What the jobs of tests/run.py have seen."""
    for path in sorted((ROOT / "build/test-logs").glob(f"*/{SEEN}")):
        yield from map(json.loads, path.read_text().splitlines())


def line(row: dict[str, Any]) -> str:
    cells = [str(row.get(column, "")).replace("|", "/").replace("\n", " ") for column in COLUMNS]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """Return the table of what was seen, in Markdown."""
    order = sorted(rows(), key=lambda row: (int(row["fault"].split()[0]), *row.values()))
    head = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    counts = Counter(row[""].partition(":")[0] for row in order)
    summary = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    return "\n".join(["# Faults", "", f"{summary}.", "", *head, *map(line, order), ""])


def main() -> None:
    text = page()
    (ROOT / "build/faults.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
