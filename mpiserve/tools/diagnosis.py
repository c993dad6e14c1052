"""Find problems of a set-up: pure functions of facts that each rank collects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mpiserve.mpi import check

ERROR, WARNING = "error", "warning"
SKEW = 0.1  # seconds between two clocks that do not disturb logs
NUMBERS = ("MPISERVE_OPEN_TIMEOUT", "MPISERVE_CLOSE_TIMEOUT", "MPISERVE_GRACE")
SPIN = 0.001  # seconds of a barrier from which on ranks wait for each other's cores
YIELD = {
    "MPICH": "MPIR_CVAR_CH4_PROGRESS_THROTTLE=1 and "
    "MPIR_CVAR_CH4_PROGRESS_THROTTLE_NO_PROGRESS_COUNT=8",
    "Open MPI": "mpiexec --map-by :oversubscribe, or OMPI_MCA_mpi_yield_when_idle=1",
}
CORES = "fewer ranks on the node, or more cores for the job"


class Finding(NamedTuple):
    """A problem of a set-up.

    Attributes:
        severity: "error" if jobs fail or give wrong results; "warning" if they are slow or
            confusing.
        text: What is wrong, and where.
        remedy: The setting that fixes it.
    """

    severity: str
    text: str
    remedy: str


@dataclass(frozen=True)
class Facts:
    """Facts about one rank.

    Attributes:
        rank: The rank in the world.
        host: The name of the node.
        node: A number for the node: the lowest rank on it.
        cores: The cores that the rank may use.
        node_cores: The number of cores of the node.
        world: The number of ranks of the world.
        library: The version text of the MPI library.
        build: The MPI that mpiserve was built with.
        level: The thread level: single, funneled, serialized or multiple.
        memory: Bytes of memory that the node can still give; None if unknown.
        gpus: The number of GPUs of the node.
        skew: Seconds by which the rank's clock is ahead of rank 0's.
        barrier: Seconds that a barrier of the node takes.
        kernel: The release of Linux, if it schedules each session as a group; else "".
        environment: The variables that matter.
    """

    rank: int
    host: str
    node: int
    cores: tuple[int, ...]
    node_cores: int
    world: int
    library: str
    build: str
    level: str
    memory: int | None
    gpus: int = 0
    skew: float = 0.0
    barrier: float = 0.0
    kernel: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


World = Sequence[Facts]


def find(world: World, window: int = 0) -> list[Finding]:
    """List the problems, errors first.

    Args:
        world: The facts of all ranks.
        window: Bytes of memory that the largest window takes; 0 if unknown.
    """
    found = [finding for check in CHECKS for finding in check(world)]
    found += small_memory(world, window)
    return sorted(found, key=lambda finding: finding.severity != ERROR)


def wrong_launcher(world: World) -> Iterator[Finding]:
    """A launcher of another MPI starts worlds of one rank."""
    facts = world[0]
    text = check.world_mismatch(facts.world, facts.library, facts.environment)
    if text:
        remedy = "the mpiexec of this MPI; under Slurm srun --mpi=pmix (Open MPI), pmi2 (MPICH)"
        yield Finding(ERROR, text, remedy)


def wrong_build(world: World) -> Iterator[Finding]:
    """Mpiserve was built for another MPI than the one that is loaded."""
    for facts in world:
        text = check.mpi_mismatch(facts.build, facts.library)
        if text:
            yield Finding(ERROR, f"rank {facts.rank}: {text}", check.REBUILD)
            return


def mixed_levels(library: str, levels: Sequence[str]) -> Iterator[Finding]:
    """MPICH requires MPI_THREAD_MULTIPLE on all ranks or on none; `levels` are by rank."""
    others = [level for level in levels if level != "multiple"]
    if check.vendor(library)[0] == "MPICH" and others and len(others) < len(levels):
        text = f"rank {levels.index('multiple')} runs at thread level multiple and rank "
        text += f"{levels.index(others[0])} at {others[0]}, which corrupts messages in MPICH"
        yield Finding(
            ERROR, text, "MPIR_CVAR_DEFAULT_THREAD_LEVEL=MPI_THREAD_MULTIPLE on all ranks"
        )


def thread_levels(world: World) -> Iterator[Finding]:
    """MPICH must not mix levels, and a broker thread needs at least "serialized"."""
    yield from mixed_levels(world[0].library, [facts.level for facts in world])
    low = [facts.rank for facts in world if facts.level in ("single", "funneled")]
    if low and several_nodes(world):
        text = f"rank {low[0]} runs at thread level {world[low[0]].level}: as an inference rank it "
        text += "cannot have a broker thread, and clients of other nodes wait for its model"
        yield Finding(WARNING, text, "import mpiserve before mpi4py.MPI")


def several_nodes(world: World) -> bool:
    """Return whether ranks are on different nodes."""
    return len({facts.node for facts in world}) > 1


def nodes(world: World) -> dict[int, list[Facts]]:
    """List the ranks of each node."""
    members: dict[int, list[Facts]] = {}
    for facts in world:
        members.setdefault(facts.node, []).append(facts)
    return members


def crowded(world: World) -> Iterator[Finding]:
    """More ranks than cores need an MPI that yields."""
    remedy = YIELD.get(check.vendor(world[0].library)[0], CORES)
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        if len(ranks) > len(cores) and ranks[0].barrier > SPIN:
            text = f"{len(ranks)} ranks on {len(cores)} cores of {ranks[0].host} do not yield "
            text += f"their cores: a barrier takes {1e3 * ranks[0].barrier:.1f} ms"
            yield Finding(WARNING, text, remedy)


def starving(world: World) -> Iterator[Finding]:
    """Linux 6.18 lets ranks that yield starve processes of other sessions.

    Seen with 6.18.44, for up to a minute; the commit 1319ea57529e of Linux mends it.
    """
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        if len(ranks) > len(cores) and ranks[0].kernel.startswith("6.18."):
            text = f"{len(ranks)} ranks on {len(cores)} cores of {ranks[0].host}: with Linux "
            text += f"{ranks[0].kernel} ranks that wait can stop other processes for up to a minute"
            yield Finding(WARNING, text, f"sysctl kernel.sched_autogroup_enabled=0, or {CORES}")


def one_core_for_many(world: World) -> Iterator[Finding]:
    """Ranks that are bound to the same cores while others are free."""
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        free = ranks[0].node_cores - len(cores)
        if len(ranks) > len(cores) and free > 0:
            text = f"{len(ranks)} ranks of {ranks[0].host} are bound to the same {len(cores)} "
            text += f"core(s), while {free} of the node are free"
            yield Finding(WARNING, text, "mpiexec --bind-to none, or srun --cpus-per-task=1")


def threads(world: World) -> Iterator[Finding]:
    """Threads of OpenMP and BLAS on every rank."""
    for ranks in nodes(world).values():
        cores = {core for facts in ranks for core in facts.cores}
        wanted = sum(threads_of(facts) for facts in ranks)
        if wanted > max(len(cores), len(ranks)):
            value = ranks[0].environment.get("OMP_NUM_THREADS", "not set: one for each core")
            text = f"{len(ranks)} ranks of {ranks[0].host} start {wanted} threads on {len(cores)} "
            text += f"cores (OMP_NUM_THREADS is {value})"
            yield Finding(WARNING, text, "OMP_NUM_THREADS=1, and threads in the configuration")


def threads_of(facts: Facts) -> int:
    """Return the number of threads that OpenMP would start."""
    value = facts.environment.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() else len(facts.cores)


def transport(world: World) -> Iterator[Finding]:
    """A forced transport that is slower than another one, or does not work."""
    forced = {facts.environment.get("MPISERVE_TRANSPORT", "auto") for facts in world}
    if "shared" in forced and several_nodes(world):
        text = "MPISERVE_TRANSPORT=shared, but the ranks are on several nodes"
        yield Finding(ERROR, text, "MPISERVE_TRANSPORT=auto")
    if "rma" in forced and any(len(ranks) > 1 for ranks in nodes(world).values()):
        text = "MPISERVE_TRANSPORT=rma prevents ranks of one node from using shared memory"
        yield Finding(WARNING, text, "MPISERVE_TRANSPORT=auto")


def no_thread(world: World) -> Iterator[Finding]:
    """No thread makes progress while a model runs."""
    for facts in world:
        rma = several_nodes(world) or facts.environment.get("MPISERVE_TRANSPORT") == "rma"
        if facts.environment.get("MPISERVE_THREAD") == "off" and rma:
            text = "MPISERVE_THREAD=off: clients of other nodes wait while a model runs"
            yield Finding(WARNING, text, "MPISERVE_THREAD unset")
            return


def bad_numbers(world: World) -> Iterator[Finding]:
    """The default replaces limits that are not numbers."""
    for name in NUMBERS:
        values = [facts.environment[name] for facts in world if name in facts.environment]
        wrong = [value for value in values if not re.fullmatch(r"\d+(\.\d*)?", value)]
        if wrong:
            text = f"{name}={wrong[0]!r} is not a number of seconds: the default is used"
            yield Finding(WARNING, text, f"{name}=60, for example")


def gpus(world: World) -> Iterator[Finding]:
    """CUDA_VISIBLE_DEVICES names more GPUs than the node has."""
    for facts in world:
        named = facts.environment.get("CUDA_VISIBLE_DEVICES", "")
        wanted = [word for word in named.split(",") if word.strip() not in ("", "-1", "NoDevFiles")]
        if len(wanted) > facts.gpus:
            text = f"rank {facts.rank} on {facts.host}: CUDA_VISIBLE_DEVICES={named}, but the node "
            text += f"has {facts.gpus} GPU(s): models would run on the CPU, or fail"
            yield Finding(
                WARNING, text, "--gpus-per-node of the job, or CUDA_VISIBLE_DEVICES unset"
            )
            return


def clocks(world: World) -> Iterator[Finding]:
    """Clocks that differ mix up the order of log lines."""
    worst = max(world, key=lambda facts: abs(facts.skew))
    if abs(worst.skew) > SKEW:
        text = f"the clock of {worst.host} (rank {worst.rank}) is {worst.skew:+.2f} s off rank 0's"
        yield Finding(
            WARNING, text, "chrony or ntp on the nodes; do not compare times of their logs"
        )


def known_broken(world: World) -> Iterator[Finding]:
    """MPI libraries that need a setting."""
    library, environment = world[0].library, world[0].environment
    if "Open MPI v4.1.4" in library and environment.get("OMPI_MCA_osc", "") != "sm,ucx":
        text = "one-sided operations of Open MPI 4.1.4 crash on one node and fail between nodes"
        yield Finding(ERROR, text, "OMPI_MCA_osc=sm,ucx")
    old = re.search(r"MPICH Version:\s*4\.0\.", library) and several_nodes(world)
    if old and any(facts.level == "multiple" for facts in world):
        text = "MPICH 4.0 hung between nodes at thread level multiple"
        yield Finding(WARNING, text, "import mpiserve before mpi4py.MPI, or MPICH 4.3 or newer")


def small_memory(world: World, window: int) -> Iterator[Finding]:
    """Windows that do not fit into the memory of a node."""
    for ranks in nodes(world).values():
        free = ranks[0].memory
        if free is not None and window > free:
            text = f"a window may take {window / 2**20:.0f} MiB, and {ranks[0].host} has "
            text += f"{free / 2**20:.0f} MiB of memory left"
            remedy = "nodes with more memory, or less pool_bytes and max_batch_rows"
            yield Finding(ERROR, text, remedy)


CHECKS: tuple[Callable[[World], Iterator[Finding]], ...] = (
    wrong_launcher,
    wrong_build,
    known_broken,
    thread_levels,
    transport,
    crowded,
    starving,
    one_core_for_many,
    threads,
    no_thread,
    gpus,
    clocks,
    bad_numbers,
)
