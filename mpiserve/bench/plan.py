"""The sizes and numbers of rounds of the measurements."""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20

# The number of rounds by bytes each way: more if a round is short.
FULL = {
    8: 20000,
    KIB: 20000,
    16 * KIB: 5000,
    64 * KIB: 2000,
    256 * KIB: 800,
    MIB: 200,
    16 * MIB: 40,
}
QUICK = {8: 200, KIB: 200, MIB: 20}

# The same between nodes, where a round takes ten times as long.
HOSTS = {8: 4000, KIB: 4000, 64 * KIB: 1000, 4 * MIB: 100}

LEAST_WARM = 5  # more than the slots of a lane, so that warm-up uses all of them
LEAST_ROUNDS = 4


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        rounds: In total, by bytes.
        repetitions: The number of parts into which the rounds are split. All cases take turns,
            so that other load on the machine affects them alike.
        quick: Whether to check only that the benchmark works.
    """

    rounds: dict[int, int]
    repetitions: int
    quick: bool = False

    @property
    def sizes(self) -> list[int]:
        """The bytes each way, in ascending order."""
        return list(self.rounds)

    def share(self, size: int, part: float = 1.0) -> tuple[int, int]:
        """Return warm-up rounds and rounds of one repetition.

        Args:
            size: Bytes each way.
            part: A factor below 1 for slow cases.
        """
        rounds = max(LEAST_ROUNDS, int(self.rounds[size] * part) // self.repetitions)
        return max(LEAST_WARM, rounds // 10), rounds


def plan(quick: bool, hosts: bool = False) -> Plan:
    """Return the plan of a quick or a full run, on one node or between two."""
    if quick:
        return Plan(QUICK, 1, quick=True)
    return Plan(HOSTS if hosts else FULL, 5)
