"""Run the C tests that need no MPI as programs for aarch64, under qemu.

    python tests/aarch64.py MPI_INCLUDE [NAME]

MPI_INCLUDE has an mpi.h in which handles are numbers, as MPICH's; NAME is a part of file names. The
races are the programs of the thread sanitizer, which run without it here, and without an MPI, since
they call none. qemu translates for this machine, whose memory may keep more order than that of
aarch64: what passes here shows that layout, atomics and waiting work there; that their orders
suffice is for the thread sanitizer and the models of the protocol to show.

Exit status 0: all passed; 77: something is missing here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cprograms import POLICY, PROGRAMS, ROOMS, c_programs, library_sources
from jobs import ROOT

CC = "aarch64-linux-gnu-gcc"
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
PACKAGES = {CC: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross", QEMU[0]: "qemu-user"}
# What qemu 7.2 does not do as a kernel does, of which these programs are tests.
LEFT_OUT = {
    "test_launcher": "qemu refuses PR_SET_CHILD_SUBREAPER",
    "test_peer": "qemu makes /proc/self/stat up, with another start time",
    "test_segment": "qemu ignores RLIMIT_AS, and every madvise() succeeds",
}
SECONDS = 300  # a program takes some ten times as long as without qemu
SKIPPED = 77


def programs(mpi_include: str, keyword: str) -> list[Path]:
    """Compile both kinds. The races call no MPI: its functions need not exist."""
    tests, races = (
        [path for path in sorted(ROOT.glob(f"tests/c/{kind}_*.c")) if keyword in path.name]
        for kind in ("test", "race")
    )
    tests = [path for path in tests if path.stem not in LEFT_OUT]
    policy = library_sources("base", "protocol", *POLICY)
    made = c_programs([CC, "-Itests/c/no_mpi"], policy, tests, "aarch64") if tests else []
    library = [*library_sources(*ROOMS), str(no_mpi())]
    with_header = [CC, f"-I{mpi_include}"]
    return made + (c_programs(with_header, library, races, "aarch64-races") if races else [])


def no_mpi() -> Path:
    """Write functions in place of those of MPI, which end the program that calls one."""
    text = "".join(Path(file).read_text() for file in library_sources(*ROOMS))
    names = sorted(set(re.findall(r"\bMPI_[A-Z][a-z]\w+", text)))
    path = PROGRAMS / "no_mpi.c"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#include <stdlib.h>\n")
    with path.open("a") as file:
        file.writelines(f"void {name}(void); void {name}(void) {{ abort(); }}\n" for name in names)
    return path


def outcome(program: Path) -> str:
    try:
        done = subprocess.run([*QEMU, program], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as late:
        return f"failed: still running after {SECONDS} s\n{late.stdout}\n{late.stderr}"
    if done.returncode in (0, SKIPPED):
        return "skipped" if done.returncode else "passed"
    return f"failed with status {done.returncode}\n{done.stdout}{done.stderr}"


def main(mpi_include: str, keyword: str = "") -> int:
    for program, packages in PACKAGES.items():
        if not shutil.which(program):
            print(f"skipped: there is no {program}: apt-get install {packages}")
            return SKIPPED
    for name, why in LEFT_OUT.items():
        print(f"aarch64/{name:30} left out: {why}")
    failed = 0
    for program in programs(mpi_include, keyword):
        start = time.monotonic()
        how = outcome(program)
        failed += how.startswith("failed")
        print(f"aarch64/{program.name:30} {time.monotonic() - start:6.1f} s  {how}", flush=True)
    print(f"{failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
