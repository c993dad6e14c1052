"""Run `bench --case paper` on two hosts of this machine: clients on one, services on the other.

python tests/cluster/paper.py [OPTIONS OF bench]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mpijob
from cluster import hosts
from cluster.conftest import NAMES, short_folder

BENCH = (sys.executable, "-m", "mpiserve", "bench", "--case", "paper")


def environment(cluster: hosts.Hosts) -> dict[str, str]:
    """Return what tells the launchers of both MPIs the way to the hosts, and their network."""
    return mpijob.settings() | {
        "MPISERVE_BENCH_HOSTS": ",".join(NAMES),
        "PRTE_MCA_plm_ssh_agent": str(cluster.remote_shell),
        # With :oversubscribe Open MPI 5 places all on the first host. There are slots for all.
        "PRTE_MCA_rmaps_default_mapping_policy": "slot",
        "OMPI_MCA_btl_tcp_if_include": f"{hosts.NETWORK}.0/24",
        "OMPI_MCA_mpi_yield_when_idle": "1",
        # Each host's own: its folders there have names of process ids, which hosts share.
        "TMPDIR": "/dev/shm",
        "HYDRA_LAUNCHER": "ssh",
        "HYDRA_LAUNCHER_EXEC": str(cluster.remote_shell),
    }


def main() -> int:
    """Make the hosts, and run the benchmark on the first one."""
    if problem := hosts.missing():
        print(problem, file=sys.stderr)
        return 1
    with short_folder() as folder, hosts.Hosts(NAMES, folder) as cluster:
        command = cluster.on("n1", [*BENCH, *sys.argv[1:]], Path.cwd())
        return subprocess.run(command, env=environment(cluster)).returncode


if __name__ == "__main__":
    sys.exit(main())
