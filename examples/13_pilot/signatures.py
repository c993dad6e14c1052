"""A client task: look for the signature in the windows of one part of the genome.

python signatures.py PART PARTS
"""

import json
import sys
from pathlib import Path

import numpy as np
from data import BASES, genome

import mpiserve
import mpiserve.radical

OUT = Path(__file__).resolve().parent / "out"
WINDOW, STEP = 200, 180  # so that each signature is in some window as a whole
ALIKE = 11  # bases of 12
REQUEST = 16  # windows


def search(service, bases):
    """Ask for all windows at once; return where the signature is."""
    starts = np.arange(0, BASES - WINDOW + STEP, STEP).clip(max=BASES - WINDOW)
    windows = np.stack([bases[start : start + WINDOW] for start in starts])
    pieces = [slice(i, i + REQUEST) for i in range(0, len(starts), REQUEST)]
    requests = [service.submit(windows[piece]) for piece in pieces]
    found = set()
    for piece, request in zip(pieces, requests, strict=True):
        score, at = request.result(timeout=60)
        found |= set((starts[piece] + at)[score >= ALIKE].tolist())
    return found, len(starts)


if __name__ == "__main__":
    part, parts = map(int, sys.argv[1:])
    bases, planted = genome(part)
    with mpiserve.connect(mpiserve.radical.endpoint("models")) as session:
        found, windows = search(session.service("scan"), bases)
    result = {
        "windows": windows,
        "planted": len(planted),
        "found": len(planted & found),
        "elsewhere": len(found - planted),
    }
    (OUT / f"signatures-{part}.json").write_text(json.dumps(result) + "\n")
    print(f"part {part} of {parts}: {result}")
