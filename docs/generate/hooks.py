"""What MkDocs calls while it builds the site: pages of notebooks and linked sources, references."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import configuration
import errors_table
import header
import module
import notebook
import sources
from mkdocs.structure.files import File, Files

# A document says where a generated part stands by a line of its own: <!-- generated: NAME -->
GENERATED = {
    "c": header.page,
    "fortran": module.page,
    "configuration": configuration.page,
    "errors": errors_table.page,
}


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each source that a document, or another such page, links to."""
    wanted = [
        path
        for file in files.documentation_pages()
        for path in sources.linked(Path(file.abs_src_path).read_text(), file.src_uri)
    ]
    seen: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in seen:
            continue
        seen.add(path)
        files.append(File.generated(config, sources.uri(path), content=sources.page(path)))
        if path.is_dir():
            wanted += sources.members(path)
        elif path.suffix == ".md":
            page = "../" + path.relative_to(sources.ROOT).as_posix()
            wanted += sources.linked(path.read_text(), page)
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = notebook.page(Path(file.abs_src_path))
        files.append(File.generated(config, file.src_uri[:-5] + "md", content=text))
        for name, data in pictures.items():
            uri = Path(file.src_uri).with_name(name).as_posix()
            files.append(File.generated(config, uri, content=data))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Put in what is generated, and lead links that leave docs to the pages of their sources."""
    for name, make in GENERATED.items():
        text = text.replace(
            f"<!-- generated: {name} -->", make() if f": {name} -->" in text else ""
        )
    if page.file.src_uri.startswith("source/"):
        return text
    if page.file.src_uri in ("index.md", "gallery.md"):  # their sections have no other page
        page.meta["hide"] = ["navigation"]
    text = text.replace(".ipynb)", ".md)")  # a forge shows the notebook itself
    # A forge does not show the titles of blocks, so the line above says the name of the file too.
    text = re.sub(r'^`([\w.]+)`:\n\n(?=```\w+ title="\1")', "", text, flags=re.MULTILINE)
    return sources.rewrite(text, page.file.src_uri)
