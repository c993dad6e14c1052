"""A model of two ranks that dies, hangs or fails on one of them, and its configuration."""

# A row whose first number is below 0 says what the rank does that its second number names.
MODELS = """\
import os
import signal
import time

import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(4, 8)
        self.fc2 = torch.nn.Linear(8, 4)
        self.told = False
        with torch.no_grad():
            for numbers in self.parameters():
                numbers.fill_(0.5)

    def forward(self, x):
        if torch.distributed.is_initialized():
            rank = torch.distributed.get_rank()
            if not self.told:
                self.tell(rank)
            for kind, who, *_ in x.tolist():
                if kind < 0 and who == rank:
                    KINDS[int(-kind) - 1]()
        return self.fc2(torch.relu(self.fc1(x)))

    def tell(self, rank):
        self.told = True
        with open("pids.txt", "a") as file:
            print(os.getpid(), file=file)
        with open(f"pid.{rank}.new", "w") as file:
            print(os.getpid(), file=file)
        os.rename(f"pid.{rank}.new", f"pid.{rank}")


def crash():
    open("crashed", "w").close()
    os._exit(9)


def fail():
    raise ValueError("bad at one rank")


KINDS = [
    lambda: os.kill(os.getpid(), signal.SIGKILL),
    lambda: time.sleep(1000),
    fail,
    crash,
]


def good():
    return torch.nn.Sequential(Block())


def gated():
    # It is not loaded again before a file is there.
    while os.path.exists("crashed") and not os.path.exists("gate"):
        time.sleep(0.01)
    return good()


def aborts():
    try:
        os.close(os.open("first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        os.abort()
    return good()


def raises():
    try:
        os.close(os.open("second", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise RuntimeError("no weights on this rank") from None
    return good()
"""

CONFIG = """\
[service.pair]
model = "models:{version}"
version = "good"
tensor_parallel = 2
peer_timeout_s = 20
timeout_s = 2
restarts = 100
options = { injection_policy = { "models:Block" = [".fc2"] } }
inputs = [{ name = "x", dtype = "float32", shape = [-1, 4] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 4] }]
rows = "independent"
input_memory = "view"
max_batch_rows = 64
max_delay_us = 50000
"""
