"""The network of example 01, which crashes, hangs and returns NaN at random."""

import ctypes
import json
import random
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "01_reacting_flow"))
import chemistry

OUT = Path(__file__).resolve().with_name("out")
CALLS = OUT / "calls"
KINDS = ("crash", "hang", "nan")
LOST = 0.05  # of the rows of a batch, where some are NaN


class Faulty(nn.Module):
    """Answer as the network does, or not at all.

    The number of the call decides, which lies in a file: a process that takes over goes on there.
    Before the simulation has made that file, nothing goes wrong.
    """

    def __init__(self, module: nn.Module, seed: int, rate: float):
        super().__init__()
        self.module, self.seed, self.rate = module, seed, rate

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """Return the rows of `state` after the reaction substep, if all goes well."""
        if not CALLS.exists():
            return self.module(state)
        draw = random.Random(f"{self.seed} {count_call()}")
        kind = draw.choice(KINDS)
        kind = kind if draw.random() < self.rate else ""
        if kind:
            note(kind)
        if kind == "crash":
            ctypes.string_at(0)  # reads the address 0
        elif kind == "hang":
            time.sleep(3600)
        reacted = self.module(state)
        if kind == "nan":
            lost = draw.sample(range(len(state)), max(1, int(LOST * len(state))))
            reacted[lost] = float("nan")
        return reacted


def count_call() -> int:
    """Count a call, and return how many were before; each is a byte of a file."""
    with CALLS.open("ab") as file:
        file.write(b".")
        return file.tell() - 1


def note(kind: str) -> None:
    """Write down what happens, before it does."""
    with (OUT / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time.time(), "kind": kind}) + "\n")


def build(seed: int, rate: float) -> nn.Module:
    """Return the network with faults; `coupling.toml` names this function as the model."""
    OUT.mkdir(exist_ok=True)
    return Faulty(chemistry.build(), seed, rate).eval()
