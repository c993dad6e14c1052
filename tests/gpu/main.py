"""Set up an environment, run each check as a job of its own, and sum up: see README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
NOT_BUILT = {
    "cuda graphs": "eager kernels alone: a graph for each shape is not captured",
    "overlapped copies": "rows are copied to the device and back beside no other work",
    "device arrays": "arrays on a device are not taken: a simulation copies them to the host",
    "lost context": "a model shares its process with the rank, which an illegal access ends",
    "tensorrt, vllm": "no provider and no engine of theirs was configured",
}
# What the GPU may cost beside the same work in one process.
ROW_US, ROWS_RATIO, COPY_RATIO = 10.0, 0.90, 0.80

Judge = Callable[[dict[str, Any], dict[str, Any]], tuple[bool, str]]


@dataclass
class Check:
    """One job: its configuration, its ranks, and what its figures must be."""

    name: str
    config: str
    ranks: int
    judge: Judge
    baseline: bool = False
    limit: float = 120.0
    outcome: str = ""
    text: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def near(found: dict[str, Any], _: dict[str, Any]) -> tuple[bool, str]:
    """Results as on the CPU: float32, and TF32 in convolutions."""
    worst = {name: value for name, value in found.items() if name != "gpu"}
    text = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return all(value < 2e-3 for value in worst.values()), f"largest difference: {text}"


def equal(found: dict[str, Any], _: dict[str, Any]) -> tuple[bool, str]:
    return found["equal"], "greedy tokens are those of generate() on the CPU"


def one_row(found: dict[str, Any], base: dict[str, Any]) -> tuple[bool, str]:
    more = found["p50_us"] - base["p50_us"]
    text = f"{found['p50_us']:.1f} us, in process {base['p50_us']:.1f} us: {more:+.1f} us"
    return more <= ROW_US, f"{text} (at most {ROW_US:g} more)"


def rows(found: dict[str, Any], base: dict[str, Any]) -> tuple[bool, str]:
    ratio = found["rows_per_s"] / base["rows_per_s"]
    text = f"{found['rows_per_s'] / 1e6:.1f} million rows/s, {ratio:.2f} of in process"
    return ratio >= ROWS_RATIO, f"{text} (at least {ROWS_RATIO:g})"


def large(found: dict[str, Any], base: dict[str, Any]) -> tuple[bool, str]:
    ratio = found["bytes_per_s"] / base["bytes_per_s"]
    text = f"{found['bytes_per_s'] / 1e9:.1f} GB/s, {ratio:.2f} of both directions together"
    return ratio >= COPY_RATIO, f"{text} (at least {COPY_RATIO:g})"


def survives(found: dict[str, Any], _: dict[str, Any]) -> tuple[bool, str]:
    said = "memory" in found["text"].lower()
    return said and found["right_after"], f"the client got: {found['text'] or 'no error'}"


CHECKS = (
    Check("results", "services.toml", 2, near),
    Check("language", "llama.toml", 2, equal),
    Check("one_row", "services.toml", 2, one_row, baseline=True),
    Check("rows", "services.toml", 5, rows, baseline=True),
    Check("large", "services.toml", 2, large, baseline=True),
    Check("out_of_memory", "services.toml", 2, survives),
)


class Machine:
    """The environment that the jobs run in, and the time that is left."""

    def __init__(self, out: Path, bundle: Path, minutes: float) -> None:
        self.out, self.bundle = out, bundle
        self.end = time.monotonic() + 60 * minutes
        self.env = out / "env"
        self.python = str(self.env / "bin/python")
        out.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, limit: float, *command: str, **env: str) -> str:
        """Run a command under a limit, with a log of its own; give what it printed.

        Raises:
            RuntimeError: If it failed or ran out of time.
        """
        left = min(limit, self.end - time.monotonic())
        if left <= 0:
            raise RuntimeError("the time of the whole check is over")
        log = self.out / f"{name}.log"
        # The launcher gets SIGTERM at the limit, and ends its ranks.
        limited = ["timeout", "-k", "5", f"{left:.0f}", *command]
        with log.open("w") as file:
            done = subprocess.run(
                limited, stdout=file, stderr=subprocess.STDOUT, env=os.environ | env, cwd=HERE
            )
        if done.returncode == 124:
            raise RuntimeError(f"not over after {left:.0f} s: see {log.name}")
        text = log.read_text(errors="replace")
        if done.returncode:
            last = [line for line in text.splitlines() if line.strip()][-1:]
            raise RuntimeError(f"status {done.returncode}: {''.join(last)[:300]}")
        return text

    def set_up(self) -> None:
        """An environment on top of this Python, with the bundle, and mpiserve built in it."""
        if not Path(self.python).exists():
            self.run("venv", 60, sys.executable, "-m", "venv", "--without-pip", str(self.env))
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        site = self.env / "lib" / version / "site-packages"
        (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = (self.python, "-m", "pip", "install", "-q", "--no-index", "--no-deps")
        self.run("bundle", 120, *pip, *map(str, sorted(self.bundle.glob("*.whl"))))
        mpicc = {"MPICC": str(self.env / "bin/mpicc"), "FC": ""}
        build = (*pip, "--no-build-isolation", "--force-reinstall", str(ROOT))
        self.run("build", 240, *build, **mpicc)

    def job(self, check: Check) -> dict[str, Any]:
        """Run a check's job."""
        command = [str(self.env / "bin/mpiexec"), "-n", str(check.ranks), self.python]
        command += ["-m", "mpiserve", "run", str(self.out / check.config), str(HERE / "jobs.py")]
        command += [check.name, str(self.out)]
        return found_in(self.run(check.name, check.limit, *command, **job_settings()))

    def baseline(self, check: Check) -> dict[str, Any]:
        """Measure the same work in one process."""
        command = (self.python, str(HERE / "baseline.py"), check.name)
        return found_in(self.run(f"{check.name}-baseline", 60, *command, **job_settings()))


def job_settings() -> dict[str, str]:
    settings = {"PYTHONPATH": str(HERE), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    for line in (ROOT / "tests/env.openmpi").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            settings[name] = value
    return settings


def found_in(text: str) -> dict[str, Any]:
    lines = [line for line in text.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise RuntimeError("the job gave no figures")
    return json.loads(lines[-1].removeprefix("FOUND "))


def conclude(machine: Machine, check: Check) -> None:
    """Run a check and say how it ended."""
    try:
        check.figures = machine.job(check)
        if not check.figures.pop("gpu"):
            check.outcome, check.text = "no device", "the models ran on the CPU"
            return
        base = machine.baseline(check) if check.baseline else {}
        good, check.text = check.judge(check.figures, base)
        check.figures |= {f"in_process_{key}": value for key, value in base.items()}
        check.outcome = "passed" if good else "failed"
    except RuntimeError as error:
        check.outcome, check.text = "failed", str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build/gpu-bundle")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu")
    parser.add_argument("--minutes", type=float, default=9.0)
    args = parser.parse_args()
    machine = Machine(args.out.resolve(), args.bundle.resolve(), args.minutes)
    checks = [Check("set-up", "", 0, near), *CHECKS]
    begin = time.monotonic()
    try:
        machine.set_up()
        folder = str(machine.out)
        made = machine.run(
            "make", 60, machine.python, str(HERE / "make.py"), folder, **job_settings()
        )
        checks[0].outcome, checks[0].text = "passed", made.strip().splitlines()[-1]
    except RuntimeError as error:
        checks[0].outcome, checks[0].text = "failed", str(error)
    show(checks[0], begin)
    for check in checks[1:]:
        begin = time.monotonic()
        if checks[0].outcome == "passed":
            conclude(machine, check)
        else:
            check.outcome, check.text = "failed", "not run: the set-up failed"
        show(check, begin)
    return report(machine, checks)


def show(check: Check, begin: float) -> None:
    seconds = time.monotonic() - begin
    print(f"{check.name:18} {check.outcome:10} {seconds:6.1f} s  {check.text}", flush=True)


def report(machine: Machine, checks: list[Check]) -> int:
    entries = [
        {key: value for key, value in asdict(check).items() if key not in ("judge", "baseline")}
        for check in checks
    ]
    entries += [
        {"name": name, "outcome": "not built", "text": text} for name, text in NOT_BUILT.items()
    ]
    for entry in entries[len(checks) :]:
        print(f"{entry['name']:18} {entry['outcome']:10} {'':8}  {entry['text']}")
    path = machine.out / "report.json"
    path.write_text(json.dumps(entries, indent=1) + "\n")
    words = [entry["outcome"] for entry in entries]
    kinds = ("passed", "failed", "no device", "not built")
    print(", ".join(f"{words.count(kind)} {kind}" for kind in kinds) + f"; {path}")
    return 1 if "failed" in words else 0


if __name__ == "__main__":
    sys.exit(main())
