"""Run a job whose gateway is asked by clients that mean no good, and check that nobody notices.

    python tests/hostile_clients.py [--minutes 10] [--seed NUMBER] [--silent 2000]

A simulation rank checks its answers and measures them, at first alone, then beside the clients of
hostile_http.py, which come in rounds. Another client of the gateway asks all the time, and gets
right answers. No process may grow; nothing that is secret may be in a log or an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import hostile_http
import mpijob
import numpy as np
from coupling import RUN
from faults.soak import quarters
from gateway_job import Job, make, until_true
from hostile_http import CLOSED, INFER, ROWS, Target

CONNECTIONS = 200
GATEWAY = f"""
[gateway]
address = "127.0.0.1:0"
endpoint_file = "endpoint.json"
tokens_file = "tokens.toml"
access_log = "access.log"
connections = {CONNECTIONS}
head_timeout_s = 1.0
body_timeout_s = 1.0
"""
CONFIG = f"""\
[service.twice]
backend = "python"
model = "model:twice"
inputs = [{{ name = "x", dtype = "float32", shape = [-1, 3] }}]
outputs = [{{ name = "y", dtype = "float32", shape = [-1, 3] }}]
max_batch_rows = {ROWS}
"""
# It has the times of its answers written down at its end.
SIMULATION = """\
from pathlib import Path
import time
import mpiserve
import numpy as np

with mpiserve.open() as session:
    twice, n, seen = session.service("twice"), 0, []
    while not Path("stop").exists():
        x = np.arange(3 * (1 + n % 5), dtype=np.float32).reshape(-1, 3) + n
        begin = time.monotonic()
        y = twice(x)
        seen.append((begin, time.monotonic() - begin))
        assert (y == 2 * x).all(), n
        n += 1
        time.sleep(1e-3)
    np.save("seen.npy", np.array(seen))
print("the simulation is right", flush=True)
"""
ALONE = 2.0  # seconds
OTHERS = 200  # descriptors of this process that are no silent connections
FUZZERS = 3
# What a process may gain between two quarters of the rounds, and at most above the first one.
# The heap may keep a body of 64 MiB, and Python collects 2,000 connections of a round late.
GAIN, PEAK = 96 << 20, 192 << 20
SLOWER = 1000.0  # times that a median may become: who waits for a client waits for a second
POLITE = 10  # of attackers, who would be on another machine: they take what cores are left


class Good:
    """A client that asks for right answers all the time, from construction to `end`.

    Attributes:
        right: How many it has got.
        wrong: What it has got instead.
        missed: How often it found no room.
    """

    def __init__(self, target: Target, token: str, mark: str) -> None:
        self.right = self.missed = 0
        self.wrong: list[str] = []
        self._target, self._token, self._mark = target, token, mark
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        n = 0
        while not self._over.wait(0.01):
            n += 1
            self._ask(float(n % 1000))

    def _ask(self, value: float) -> None:
        entry = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [value] * 3}
        body = json.dumps({"id": self._mark, "inputs": [entry]}).encode()
        fields = [("Authorization", f"Bearer {self._token}"), ("Connection", "close")]
        fields.append(hostile_http.length(len(body)))
        data: bytes | None = b""
        with suppress(OSError):
            data = self._target.say([hostile_http.head("POST", INFER, fields) + body])
        if data is None:
            self.wrong.append("a good client: no answer in time")
            return
        status = hostile_http.status_of(data)
        if status == CLOSED:
            self.missed += 1
        elif status == 200 and self._is_right(data, value):
            self.right += 1
        else:
            self.wrong.append(f"a good client: {data[:300]!r}")

    def _is_right(self, data: bytes, value: float) -> bool:
        try:
            table = json.loads(data.partition(b"\r\n\r\n")[2])
            return bool(
                table["id"] == self._mark and table["outputs"][0]["data"] == [2 * value] * 3
            )
        except (ValueError, LookupError, TypeError):
            return False


class Attack:
    """All attackers of a job, in rounds.

    Args:
        target: The gateway.
        seed: Of all that is random.
        count: Connections that say nothing, in each round.
    """

    def __init__(self, target: Target, seed: int, count: int) -> None:
        self._target, self._seed, self._count = target, seed, count
        self._number = 0

    def round(self) -> None:
        """Have each kind come once, with fuzzers beside those that are slow."""
        with ThreadPoolExecutor(1, initializer=os.nice, initargs=(POLITE,)) as thread:
            thread.submit(self._round).result()

    def _round(self) -> None:
        """Its threads are as polite as the one that starts them."""
        self._number += 1
        hostile_http.silent(self._target, self._count)
        kinds = list(hostile_http.seeded(self._seed, self._number))
        with ThreadPoolExecutor(len(kinds) + FUZZERS) as threads:
            slow = [threads.submit(self._act, kind, dice) for kind, dice in kinds]
            over = threading.Event()
            fuzz = [threads.submit(self._fuzz, i, over) for i in range(FUZZERS)]
            for future in slow:
                future.result()
            over.set()
            for future in fuzz:
                future.result()

    def _act(self, kind: Callable[[Target, Random], None], dice: Random) -> None:
        try:
            kind(self._target, dice)
        except OSError as error:
            self._target.wrong.append(f"{kind.__name__}: {error}")

    def _fuzz(self, number: int, over: threading.Event) -> None:
        n = 0
        while not over.is_set():
            dice = Random(f"{self._seed} {self._number} {number} {n}")
            self._act(hostile_http.malformed, dice)
            n += 1


def memory_of(pid: int) -> tuple[int, int]:
    """Return the bytes that a process has to itself, and the most that it had at any time."""
    page = os.sysconf("SC_PAGE_SIZE")
    size, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM")).split()[1]
    return page * (size - shared), int(peak) << 10


def growth(name: str, samples: list[tuple[int, int]]) -> list[str]:
    """Say what a process has gained, and return it if it is too much."""
    before, after = quarters([size for size, _ in samples])
    peak = samples[-1][1] - samples[0][1]
    text = f"{name}: {before / 2**20:.1f} -> {after / 2**20:.1f} MiB, peak +{peak / 2**20:.1f}"
    print(text, flush=True)
    return [f"{text}: it grows"] if after - before > GAIN or peak > PEAK else []


def compared(seen: np.ndarray, begin: float, end: float) -> list[str]:
    """Say how long the simulation waits for answers, alone and beside the clients."""
    when, times = seen.T
    alone = times[(when > begin - ALONE) & (when < begin)]
    beside = times[(when >= begin) & (when < end)]
    if not len(alone) or not len(beside):
        return ["the simulation has asked nothing"]
    ratios = []
    for q in (50, 99):
        a, b = np.percentile(alone, q), np.percentile(beside, q)
        ratios.append(b / a)
        print(f"simulation, p{q}: {1e6 * a:.0f} us alone, {1e6 * b:.0f} us: {b / a:.1f} times")
    print(f"simulation, longest: {1e3 * alone.max():.1f} ms alone, {1e3 * beside.max():.1f} ms")
    return [f"answers take {ratios[0]:.0f} times as long"] if ratios[0] > SLOWER else []


def leaks(folder: Path, text: str, secrets: list[str]) -> list[str]:
    """Return what is in a log that should not be."""
    logs = {"the job": text, "the access log": (folder / "access.log").read_text()}
    found = [name for name, log in logs.items() if any(secret in log for secret in secrets)]
    bad = [f"{name} tells a secret" for name in found]
    shown = {name: log[log.find("Traceback") :] for name, log in logs.items() if "Traceback" in log}
    return bad + [f"{name} shows the program: {text[:4000]}" for name, text in shown.items()]


def allow(count: int) -> int:
    """Let this process have so many connections; return how many it may have."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(now, count + OTHERS)
    if most != resource.RLIM_INFINITY and wanted > most:
        print(f"{most} descriptors are the most here: {most - OTHERS} silent connections")
        wanted = most
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
    return min(count, wanted - OTHERS)


def answers(target: Target) -> bool:
    """Tell whether there is a gateway."""
    ask = hostile_http.head("GET", "/v2/health/live", [("Connection", "close")])
    return hostile_http.status_of(target.say([ask]) or b"") == 200


def attacked(job: Job, seconds: float, attack: Attack, good: Good) -> list[str]:
    """Attack for so long, two rounds at least; return what has grown."""
    pids = {"gateway's process": job.child(), "gateway's rank": _rank_of(job)}
    end = time.monotonic() + seconds
    samples: dict[str, list[tuple[int, int]]] = {name: [] for name in pids}
    rounds = 0
    while rounds < 2 or time.monotonic() < end:
        attack.round()
        rounds += 1
        if job.child() != pids["gateway's process"]:
            return ["the gateway's process has died"]
        for name, pid in pids.items():
            samples[name].append(memory_of(pid))
    print(f"{rounds} rounds; a good client: {good.right} answers, {good.missed} times no room")
    return [line for name, seen in samples.items() for line in growth(name, seen)]


def _rank_of(job: Job) -> int:
    return int(json.loads((job.folder / "endpoint.json").read_text())["pid"])


def run(mpiexec: Any, folder: Path, seconds: float, seed: int, count: int) -> list[str]:
    """Run the job, and return what is wrong."""
    dice = Random(seed)
    weak, mark = (f"{dice.getrandbits(200):050x}" for _ in range(2))
    tokens = folder / "tokens.toml"
    tokens.touch(mode=0o600)
    tokens.write_text(f'[mallory]\ntoken = "{weak}"\n')
    make(folder, GATEWAY, CONFIG, SIMULATION)
    with Job(mpiexec, folder, ["-n", 3, *RUN, "c.toml", "sim.py"], seconds + 120) as job:
        host, port = job.url.removeprefix("http://").split(":")
        secrets = [job.token, weak, mark]
        target = Target((host, int(port)), weak, secrets)
        attack = Attack(target, seed, allow(count))
        until_true(lambda: answers(target))
        time.sleep(ALONE)
        begin = time.monotonic()
        good = Good(target, job.token, mark)
        try:
            bad = attacked(job, seconds, attack, good)
        finally:
            good.end()
        over = time.monotonic()
    for (kind, status), number in sorted(target.counts.items()):
        print(f"{kind}: {number} times {status or 'closed'}")
    bad += [*target.wrong[:20], *good.wrong[:20]]
    bad += [] if good.right else ["no good client was answered"]
    if job.done.returncode or "the simulation is right" not in job.done.stdout:
        return [*bad, f"the job ended with status {job.done.returncode}: {job.done.stderr[-2000:]}"]
    bad += compared(np.load(folder / "seen.npy"), begin, over)
    return bad + leaks(folder, job.done.stdout + job.done.stderr, secrets)


def start(args: list[Any], timeout: float, cwd: Path) -> Any:
    """Run mpiexec, as the fixture of this name does."""
    settings = mpijob.settings()
    command = [settings["MPIEXEC"], *map(str, args)]
    return mpijob.run(command, timeout=timeout, env=settings, cwd=cwd)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--silent", type=int, default=2000, help="connections that say nothing")
    args = parser.parse_args()
    print(f"{args.minutes:g} minutes, seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        bad = run(start, Path(folder), 60 * args.minutes, args.seed, args.silent)
    print(*(bad or ["nobody notices"]), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
