"""The coupled job: each rank segments its images, and measures every cell that it finds."""

import json
from pathlib import Path

import numpy as np

import mpiserve

OUT = Path(__file__).resolve().parent / "out"
IMAGES, BATCH, SIZE, HALF = 24, 8, 64, 12


def draw(random):
    """Make an image of discs that do not touch: the image, and radius and brightness of each."""
    y, x = np.mgrid[:SIZE, :SIZE]
    image = random.normal(0.05, 0.02, (SIZE, SIZE))
    cells = []
    for row in (HALF, SIZE // 2, SIZE - HALF):
        for column in (HALF, SIZE // 2, SIZE - HALF):
            if random.random() < 0.6:
                radius, bright = random.uniform(4, 8), random.uniform(0.7, 1.0)
                image[(y - row) ** 2 + (x - column) ** 2 <= radius**2] += bright
                cells.append((radius, bright))
    return image.astype(np.float32), cells


def places(mask):
    """Find the regions of a mask: the middle of each, in the order of rows and columns."""
    left, found = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        region = [min(left)]
        left.discard(region[0])
        for y, x in region:
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in left:
                    left.discard(near)
                    region.append(near)
        if len(region) > 9:
            found.append(np.round(np.mean(region, 0)).astype(int))
    return sorted(found, key=lambda at: tuple(np.round(at / 20)))


def crop(image, at):
    """Cut out the cell at a place."""
    wide = np.pad(image, HALF)
    return wide[at[0] : at[0] + 2 * HALF, at[1] : at[1] + 2 * HALF]


def measure(session, images):
    """Segment images and measure their cells: an array of features for each image."""
    segment, features = session.service("segment"), session.service("measure")
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    under_way = [segment.submit(batch) for batch in batches]
    for batch, request in zip(batches, under_way, strict=True):
        for image, mask in zip(batch, request.result(), strict=True):
            cells = places(mask > 0.5)
            if not cells:
                yield np.empty((0, 3), np.float32)
                continue
            yield features(*(np.stack([crop(a, at) for at in cells]) for a in (image, mask)))


with mpiserve.open() as session:
    rank = session.comm.rank
    random = np.random.default_rng(rank)
    images, truth = zip(*(draw(random) for _ in range(IMAGES)), strict=True)
    found = list(measure(session, np.stack(images)))
    every = session.comm.gather((found, truth))

if rank == 0:
    pairs = [pair for found, truth in every for pair in zip(found, truth, strict=True)]
    same = [(f, t) for f, t in pairs if len(f) == len(t) > 0]
    features = np.concatenate([f for f, _ in same])
    radius, bright = np.array([cell for _, t in same for cell in t]).T
    result = {
        "images": len(pairs),
        "cells": sum(len(t) for _, t in pairs),
        "found": sum(len(f) for f, _ in pairs),
        "area_error": float(np.mean(abs(features[:, 0] / (np.pi * radius**2) - 1))),
        "brightness_correlation": float(np.corrcoef(features[:, 1], bright)[0, 1]),
        "most_elongated": float(features[:, 2].max()),
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "cells.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
