"""Make the pictures of the gallery from what the examples wrote into their folders out/.

    python docs/generate/pictures.py

Run the examples first, as docs/gallery.md says. An example that has not run keeps its picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs/images"
WIDTH, COLOURS, MOST = 1000, 128, 100_000  # pixels; bytes of a picture


def shrink(example: str) -> None:
    """Make a small picture of one that an example drew."""
    source = ROOT / "examples" / example / "out/picture.png"
    if not source.exists():
        return
    picture = Image.open(source).convert("RGB")
    picture = picture.resize((WIDTH, WIDTH * picture.height // picture.width), Image.LANCZOS)
    target = IMAGES / f"{example}.png"
    colours = COLOURS
    while True:
        picture.quantize(colours, dither=Image.Dither.NONE).save(target, optimize=True)
        if target.stat().st_size < MOST:
            return
        colours //= 2


def draw_search(example: str) -> None:
    """Draw the scores of the best runs for each question of the semantic search."""
    source = ROOT / "examples" / example / "out/result.json"
    if not source.exists():
        return
    ranking = json.loads(source.read_text())["ranking"]
    rcParams["svg.fonttype"] = "none"  # text stays text
    rcParams["svg.hashsalt"] = "gallery"  # the same file from run to run
    figure = Figure(figsize=(9, 0.62 * len(ranking) + 0.6), layout="constrained")
    axes = figure.add_subplot()
    for row, entry in enumerate(ranking):
        for place, answer in enumerate(entry["answers"]):
            right = answer["kind"] == entry["kind"]
            at = row + 0.27 * (place - 1)
            axes.barh(at, answer["score"], 0.24, color="#00897b" if right else "#c5cae9")
        best = entry["answers"][0]
        axes.text(best["score"] + 0.01, row - 0.27, best["line"], va="center", fontsize=7)
    axes.set_yticks(range(len(ranking)), [entry["question"] for entry in ranking], fontsize=7.5)
    axes.set(xlim=(0, 0.85), xlabel="cosine between question and line (green: a run that is meant)")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / f"{example}.svg", metadata={"Date": None})


def main() -> int:
    """Make all pictures; exit status 1 if one is missing or too large."""
    shrink("01_reacting_flow")
    shrink("05_shallow_water")
    shrink("08_survival")
    draw_search("07_semantic_search")
    names = ("01_reacting_flow.png", "05_shallow_water.png", "07_semantic_search.svg")
    names += ("08_survival.png",)
    sizes = {name: (IMAGES / name).stat().st_size for name in names}
    for name, size in sizes.items():
        print(f"docs/images/{name}: {size:,} bytes")
    return int(any(size >= MOST for size in sizes.values()))


if __name__ == "__main__":
    sys.exit(main())
