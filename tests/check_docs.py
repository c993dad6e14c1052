"""Check what the documents say of this repository: links, anchors, paths and make targets.

MkDocs checks the links of the site that it builds, generated anchors included; this checks what a
reader of the repository sees, and what no link shows.

    python tests/check_docs.py

Prints one line per mistake, `file:line: text`. Exit status 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MAKE = re.compile(r"(?:^|`)\s*make ((?:[a-z-]+ ?)+)(?=`|$|\s+#|\s+[A-Z]+=)")
TARGET = re.compile(r"^([a-z][a-z-]*):", re.MULTILINE)
# What looks like a file of this repository: its first folder is one of ours.
PATH = re.compile(r"(?:csrc|docs|examples|jobscripts|mpiserve|tests|\.ci)/[\w./*<>{},-]*")


def documents() -> list[Path]:
    """Return the documents, built and hidden folders left out."""
    found = ROOT.rglob("*.md")
    skipped = ("build", "dist")
    return sorted(
        path
        for path in found
        if not any(p.startswith(".") or p in skipped for p in path.relative_to(ROOT).parts)
    )


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", title.strip().lower()) for title in titles]
    return {title.replace(" ", "-") for title in plain}


def is_generated(path: Path) -> bool:
    """Tell whether a document has headings that only MkDocs makes."""
    return re.search(r"^(?:<!-- generated: |::: )", path.read_text(), re.MULTILINE) is not None


def check_link(document: Path, link: str) -> str | None:
    if re.match(r"[a-z]+:", link):
        return None
    name, _, anchor = link.partition("#")
    path = (document.parent / name).resolve() if name else document
    if not path.exists():
        return f"link to {name}, which does not exist"
    if anchor and path.suffix == ".md" and not is_generated(path) and anchor not in anchors(path):
        return f"link to {link}: no heading has this anchor"
    return None


def check_path(text: str) -> str | None:
    """Wildcards must match something; what is made later is in .gitignore."""
    path = text.rstrip("./,")
    if re.search(r"[<>{}]", path) or any(ROOT.glob(path)):
        return None
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{path}/"], cwd=ROOT).returncode == 0
    return None if ignored else f"`{text}` does not exist"


def problems(document: Path, targets: set[str]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(document.read_text().splitlines(), 1):
        found = [check_link(document, link) for link in LINK.findall(line)]
        found += [
            check_path(path)
            for code in CODE.findall(line)
            for path in PATH.findall(code)
            if code.startswith(path)
        ]
        for words in MAKE.findall(line):
            unknown = [word for word in words.split() if word not in targets]
            found += [f"make {word}: no such target" for word in unknown]
        yield from ((number, text) for text in found if text)


def main() -> int:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text()))
    count = 0
    for document in documents():
        for number, text in problems(document, targets):
            print(f"{document.relative_to(ROOT)}:{number}: {text}")
            count += 1
    print(f"{len(documents())} documents, {count} mistakes")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
