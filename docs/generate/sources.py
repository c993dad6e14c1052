"""Files of the repository that documents link to, as pages of the site: links work from disk."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
LANGUAGES = {
    ".c": "c",
    ".h": "c",
    ".py": "python",
    ".f90": "fortran",
    ".toml": "toml",
    ".cff": "yaml",
    "": "sh",
}


def outside(link: str, page: str) -> Path | None:
    """Return what a link on a page names, if that is in the repository and not under docs."""
    path = (ROOT / "docs" / page).parent / link
    path = Path(posixpath.normpath(path))
    return None if path.is_relative_to(ROOT / "docs") or not path.exists() else path


def uri(path: Path) -> str:
    """Return the address of a source's page, relative to docs."""
    return f"source/{path.relative_to(ROOT).as_posix()}.md"


def rewrite(text: str, page: str) -> str:
    """Let links that leave docs lead to the pages of their sources."""

    def link(match: re.Match[str]) -> str:
        path = outside(match[2], page)
        if path is None:
            return match[0]
        address = posixpath.relpath(uri(path), posixpath.dirname(page) or ".")
        return f"{match[1]}{address}{match[3] or ''}{match[4]}"

    return LINK.sub(link, text)


def linked(text: str, page: str) -> list[Path]:
    """Return what a document links to outside of docs."""
    found = (outside(match[2], page) for match in LINK.finditer(text))
    return [path for path in found if path]


def page(path: Path) -> str:
    """Write the page of a file or a folder as Markdown."""
    name = path.relative_to(ROOT).as_posix()
    head = f"---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# {name}\n\n"
    if path.is_dir():
        name = path.name
        return head + "\n".join(f"- [{each.name}]({name}/{each.name}.md)" for each in members(path))
    text = path.read_text()
    if path.suffix == ".md":
        title, _, body = text.partition("\n")
        return head.replace(f"# {name}", title) + _local(body, path)
    return f"{head}````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"


def members(folder: Path) -> list[Path]:
    """Return the files of a folder that a person would read."""
    kinds = {*LANGUAGES, ".md", ".nml"}
    return sorted(
        each
        for each in folder.iterdir()
        if each.is_file() and each.suffix in kinds and not each.name.endswith(("_c", "_f"))
    )


def _local(text: str, path: Path) -> str:
    """Keep the links of a document that lead to another page; the others become plain."""

    def link(match: re.Match[str]) -> str:
        target = Path(posixpath.normpath(path.parent / match[2]))
        if not target.is_relative_to(ROOT) or not target.exists():
            return match[0]
        inside = target.relative_to(ROOT).as_posix()
        address = inside.removeprefix("docs/") if inside.startswith("docs/") else uri(target)
        address = posixpath.relpath(address, posixpath.dirname(uri(path)))
        return f"{match[1]}{address}{match[3] or ''}{match[4]}"

    return LINK.sub(link, text)
