"""Turn mpiserve.h into the C reference: each declaration with its contract.

The header's form is the only C that this reads: a comment begins with the name that it describes,
and the declarations below it, up to the next empty line, are what it is about.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

HEADER = Path(__file__).resolve().parents[2] / "csrc/include/mpiserve.h"

COMMENT = re.compile(r"/\*(.*?)\*/", re.DOTALL)
SECTION = re.compile(r"^/\* -{4} (.+?) -+ \*/$", re.MULTILINE)
FUNCTION = re.compile(r"\b(mpiserve_\w+)\(")
TYPE = re.compile(r"typedef (?:(?:enum|struct) |int \(\*)(mpiserve_\w+)")
CONDITION = re.compile(r"^#(?:ifndef MPISERVE_NO_MPI|endif)\n", re.MULTILINE)
MEMBER = re.compile(r"^  (\S[^/]*?)\s*(?:/\*(.*?)\*/)?$", re.DOTALL)


@dataclass
class Item:
    """Some declarations and the comment above them.

    Attributes:
        names: What is declared, in order.
        text: The comment's text, its indentation removed.
        code: The declarations as they stand.
        members: Of an enum or struct: declarations, each with its comment.
    """

    names: list[str]
    text: str
    code: str
    members: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Section:
    """A part of the header under one headline."""

    title: str
    items: list[Item]


def sections(text: str) -> tuple[str, list[Section]]:
    """Read a header.

    Returns:
        The text of its first comment, and its parts: constants and types first.
    """
    about = _plain(COMMENT.search(text)[1])
    body = text.partition('extern "C" {\n#endif\n')[2].rpartition("#ifdef __cplusplus")[0]
    first, *rest = SECTION.split(CONDITION.sub("", body))
    titled = zip(rest[::2], rest[1::2], strict=True)
    return about, [
        Section("Constants and types", _items(first)),
        *(Section(title[0].upper() + title[1:], _items(part)) for title, part in titled),
    ]


def functions(parts: list[Section]) -> dict[str, str]:
    """Return the contract of each function by its name."""
    items = [item for part in parts for item in part.items]
    return {name: item.text for item in items for name in item.names if f"{name}(" in item.code}


def _items(text: str) -> list[Item]:
    blocks = [block for block in re.split(r"\n\s*\n(?! \*)", text.strip()) if block.strip()]
    return [_item(block) for block in blocks]


def _item(block: str) -> Item:
    comment = COMMENT.match(block)
    code = (block[comment.end() :] if comment else block).strip("\n")
    text = _plain(comment[1]) if comment else ""
    bare = COMMENT.sub("", code)
    names = FUNCTION.findall(bare) or TYPE.findall(bare)
    names = names or re.findall(r"#define (\w+)", bare)
    return Item(names, text, code, _members(code))


def _members(code: str) -> list[tuple[str, str]]:
    body = re.search(r"\{\n?(.*)\}", code, re.DOTALL)
    if not body:
        return []
    # One declaration a line; a comment may go on below it.
    lines = re.split(r"\n(?=  \S)", body[1].strip("\n"))
    if len(lines) == 1:  # an enum in one line
        lines = ["  " + part.strip() for part in re.split(r",(?![^/]*\*/)", body[1])]
    found = [MEMBER.match(line) for line in lines]
    return [(match[1].rstrip(",;"), _plain(match[2] or "")) for match in found if match]


def _plain(comment: str) -> str:
    lines = [re.sub(r"^ ?\*( |$)", "", line) for line in comment.strip().splitlines()]
    head, *rest = lines or [""]
    return "\n".join([head.strip(), *dedent("\n".join(rest)).splitlines()]).strip()


def page() -> str:
    """Write the reference as Markdown."""
    about, parts = sections(HEADER.read_text())
    known = {name for part in parts for item in part.items for name in item.names}
    lines = [linked(_conventions(about), known), ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        for item in part.items:
            lines += _entry(item, known)
    return "\n".join(lines)


def _conventions(about: str) -> str:
    """Make the list of the first comment one of Markdown."""
    text = about.partition("\n\n")[2]
    return re.sub(
        r"^ {2}- ", "- ", re.sub(r"^ {4}(?=\S)", "  ", text, flags=re.M), flags=re.M
    ).replace("Conventions\n", "## Conventions\n\n")


def _entry(item: Item, known: set[str]) -> list[str]:
    names = item.names or ["mpiserve.h"]
    title = ", ".join(f"`{name}`" for name in names[:3]) + " and others" * (len(names) > 3)
    anchors = "".join(f'<span id="{name}"></span>' for name in names[1:])
    text = re.sub(rf"^{names[0]}(?:, mpiserve_\w+)*: ", "", item.text)
    lines = [f"### {title} {{ #{names[0]} }}", "", anchors, ""]
    if not item.members:
        lines += ["```c", item.code, "```", ""]
    lines += [linked(text[:1].upper() + text[1:], known), ""]
    if item.members:
        lines += ["| member | meaning |", "| --- | --- |"]
        rows = ((name, " ".join(text.split())) for name, text in item.members)
        lines += [
            f"| `{name}` | {linked(text, known).replace('|', '&#124;')} |" for name, text in rows
        ]
        lines.append("")
    return lines


def linked(text: str, known: set[str], page: str = "") -> str:
    """Set names of the interface as code, those that the reference has as links to it."""

    def link(match: re.Match[str]) -> str:
        name = match[0].rstrip("()")
        return f"[`{match[0]}`]({page}#{name})" if name in known else f"`{match[0]}`"

    text = re.sub(r"[<>*]", lambda sign: f"\\{sign[0]}", text)
    return re.sub(r"\b(?:mpiserve|MPISERVE|MPI)_\w+(?:\(\))?|(?<![\w/])_E[A-Z]+\b", link, text)
