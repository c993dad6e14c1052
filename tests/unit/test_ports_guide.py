"""The guides for those who move in show lines of the programs that the tests of ports run."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs/guide").glob("from-*.md"))
SHOWN = re.compile(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)


def blocks():
    for guide in GUIDES:
        for name, text in SHOWN.findall(guide.read_text()):
            yield pytest.param(name, text, id=f"{guide.stem}: {text.strip().splitlines()[0]}")


def windows(text, n):
    """Each n lines of a text that follow one another, with the first at the margin."""
    lines = text.splitlines(keepends=True)
    return (dedent("".join(lines[i : i + n])) for i in range(len(lines) - n + 1))


@pytest.mark.parametrize(("name", "text"), list(blocks()))
def test_what_a_guide_shows_is_in_the_program(name, text):
    program = (ROOT / "examples/11_moving_in" / name).read_text()
    assert text in windows(program, text.count("\n"))


def test_every_port_is_shown():
    shown = {name for guide in GUIDES for name, _ in SHOWN.findall(guide.read_text())}
    ports = {path.name for path in (ROOT / "examples/11_moving_in").glob("from_*")}
    assert ports and ports <= shown
