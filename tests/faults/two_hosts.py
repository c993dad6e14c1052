"""Two hosts as the place of a job: its last inference rank is alone on the second one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster import hosts
from cluster.conftest import NAMES, launcher_flags, need, short_folder
from faults.watched import Room

ON_HOSTS = {
    "MPISERVE_TRANSPORT": "auto",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}


class Place(Room):
    """Hosts, which have a /dev/shm each. Processes there are seen, and killed, from here too."""

    temporary = "/dev/shm"  # of each host its own: names of folders have numbers of processes

    def __init__(self, made: hosts.Hosts, folder: Path) -> None:
        self._hosts = made
        self._folder = folder

    def command(self, words: Sequence[str]) -> list[str]:
        return self._hosts.on("n1", words, self._folder)

    def files(self) -> list[str]:
        return [name for host in NAMES for name in self._hosts.listed(host, "/dev/shm")]

    def close(self) -> None:
        """The hosts end later."""


@contextmanager
def two_hosts(folder: Path, slots: Mapping[str, int]) -> Iterator[tuple[Place, list[str]]]:
    """Make the hosts; give the place, and what tells a launcher about them."""
    need(hosts.missing())
    with short_folder() as short, hosts.Hosts(NAMES, short) as made:
        yield Place(made, folder), launcher_flags(made, slots, folder)
