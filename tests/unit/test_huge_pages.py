"""Huge pages for memory that children share."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpiserve.serving.isolation import huge_pages

# Prints the bytes that were made huge, and what the kernel counts, of 32 MiB of small pages.
COLLAPSE = """
import mmap
from mpiserve.serving.isolation import huge_pages

memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory.write(bytes(range(256)) * (len(memory) >> 8))
memory.madvise(mmap.MADV_HUGEPAGE)
made = sum(huge_pages.collapse())
assert memory[:] == bytes(range(256)) * (len(memory) >> 8)
counts = dict(line.split(":") for line in open("/proc/self/smaps_rollup") if ":" in line)
print(made, int(counts["AnonHugePages"].split()[0]) << 10)
"""


def test_what_lies_in_small_pages_is_in_huge_ones_afterwards() -> None:
    result = subprocess.run(
        [sys.executable, "-c", COLLAPSE], capture_output=True, text=True, check=True
    )
    made, counted = map(int, result.stdout.split())
    if not made:
        pytest.skip("this kernel makes no huge pages when asked")
    assert counted >= 30 << 20


@pytest.mark.parametrize(
    "mapping",
    [
        "7f0000000000-7f0000800000 r--p 00000000 00:00 0",
        "7f0000000000-7f0000800000 rw-s 00000000 00:01 77 /memfd:mpiserve (deleted)",
        "7f0000000000-7f0000800000 rw-p 00000000 00:01 77 /usr/lib/libm.so",
        "7ffc00000000-7ffc00800000 rw-p 00000000 00:00 0 [stack]",
        "7f0000000000-7f0000100000 rw-p 00000000 00:00 0",
    ],
)
def test_memory_of_others_is_left_alone(
    mapping: str, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    path = tmp_path / "maps"
    path.write_text(f"{mapping}\n")
    monkeypatch.setattr(huge_pages, "MAPPINGS", str(path))
    asked: list[object] = []
    monkeypatch.setattr(huge_pages.handover, "collapse", lambda *range_: asked.append(range_))
    assert not list(huge_pages.collapse())
    assert not asked
