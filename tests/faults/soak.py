"""Run a job in which a model dies every few seconds, and check that nothing grows.

    python tests/faults/soak.py [--minutes 60] [--every 5]

Three clients ask all the time. Memory, descriptors and processes of each rank are read after each
fault; the medians of the first and the last quarter of the run must be alike.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults.running import LEFT_WITHIN, Seen, mpi, started, transport
from faults.table import PLAIN, Expect, Fault
from faults.watched import Process, Watched

CLIENTS = 3
PAGE = os.sysconf("SC_PAGE_SIZE")
KINDS = ["null_read", "exit_7", "kill_itself", "abort", "hang", "stop", "raise_", "fork"]
# What may differ between two quarters of a run in which nothing grows.
MEMORY, SHARE, DESCRIPTORS, PROCESSES = 4 << 20, 0.02, 1, 1


@dataclass
class Sample:
    """What the processes of a rank, or those without a rank, have at one moment."""

    memory: int = 0
    descriptors: int = 0
    processes: int = 0

    def add(self, process: Process) -> None:
        """Count one more process; one that ends meanwhile counts nothing."""
        folder = Path(f"/proc/{process.pid}")
        try:
            resident = int((folder / "statm").read_text().split()[1])
            shared = int((folder / "statm").read_text().split()[2])
            descriptors = len(list((folder / "fd").iterdir()))
        except OSError:
            return
        self.memory += PAGE * (resident - shared)
        self.descriptors += descriptors
        self.processes += 1


def sampled(job: Watched) -> dict[int, Sample]:
    """Return a sample of each rank, and under -1 of launchers, children and what they start."""
    found: dict[int, Sample] = {}
    for process in job.processes():
        found.setdefault(process.rank, Sample()).add(process)
    return found


def quarters(values: list[int]) -> tuple[float, float]:
    """Return the medians of the second and of the last quarter: the first one is the start."""
    size = max(len(values) // 4, 1)
    return median(values[size : 2 * size] or values), median(values[-size:])


def growth(samples: list[dict[int, Sample]]) -> list[str]:
    """Print the figures of each rank, and return what has grown."""
    grown = []
    for rank in sorted(samples[0]):
        mine = [sample[rank] for sample in samples if rank in sample]
        name = f"rank {rank}" if rank >= 0 else "launcher, children"
        for what in ("memory", "descriptors", "processes"):
            before, after = quarters([getattr(sample, what) for sample in mine])
            limits = {"memory": MEMORY + SHARE * before, "descriptors": DESCRIPTORS}
            bad = after - before > limits.get(what, PROCESSES)
            unit = (1 << 20, " MiB") if what == "memory" else (1, "")
            text = f"{name:20} {what:12} {before / unit[0]:9.1f} -> {after / unit[0]:9.1f}{unit[1]}"
            print(text, "  GROWS" if bad else "", flush=True)
            grown += [text] if bad else []
    return grown


def run(folder: Path, seconds: float, every: float) -> list[str]:
    """Run the job, and return what is wrong."""
    plan = {"triggers": KINDS, "seconds": seconds, "every": every, "pause": 0.01}
    service = {"timeout_s": 1.0, "restarts": 1_000_000}
    fault = Fault(0, "soak", {PLAIN: Expect()}, plan=plan, service=service)
    samples = []
    # The log has hundreds of deaths.
    with (
        redirect_stdout(io.StringIO()),
        started(folder, fault, PLAIN, clients=CLIENTS) as job,
    ):
        while not job.until(lambda: False, every) and job.launcher.poll() is None:
            samples.append(sampled(job))
        job.wait(60)
        job.settle(LEFT_WITHIN)
        seen = Seen(job, fault, PLAIN, CLIENTS)
    bad = [f"{len(seen.of('wrong'))} wrong answers"] if seen.of("wrong") else []
    bad += [event["text"] for event in seen.of("error", guilty=False)]
    bad += [f"status {job.status}"] if job.status else []
    left = [*job.left, *job.shm, *job.session]
    bad += [f"remains: {left}"] if left else []
    deaths = [event for event in seen.events.get("model", []) if event["kind"] == "act"]
    print(f"{len(samples)} samples, {len(deaths)} faults, {len(seen.of('error'))} requests failed")
    return bad + (growth(samples[:-1]) if len(samples) > 1 else ["no samples"])


def end_in_order(number: int, frame: object) -> None:
    """End as an exception does, so that the job ends too."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, end_in_order)
    print(f"{args.minutes:g} minutes, a fault every {args.every:g} s, {mpi()}, {transport()}")
    with tempfile.TemporaryDirectory(prefix="mpiserve-") as folder:
        bad = run(Path(folder), 60 * args.minutes, args.every)
    print(*(bad or ["nothing grows"]), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
