"""Write job scripts for batch systems, from a configuration and a plan. Pure functions.

`python -m mpiserve run` runs a Python script as one program for all ranks. Any other command is
a second program beside `python -m mpiserve serve`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mpiserve.config.partition import GATEWAY, INFERENCE, SIMULATION, TRAINER
from mpiserve.errors import ArgumentError, Code
from mpiserve.launch.plan import Plan, ranges

PMI = {"openmpi": "pmix", "mpich": "pmi2"}  # srun's --mpi
SURVIVE = {"openmpi": "--with-ft ulfm", "mpich": "-disable-auto-cleanup"}  # mpiexec's
SERVE = '"$python" -m mpiserve serve "$config"'
GUESTS = {
    TRAINER: '"$python" -m mpiserve train "$config"',
    GATEWAY: '"$python" -m mpiserve gateway "$config"',
}
# Begins a file that gives each rank its program; its lines follow, then END.
RANKS_FILE = ("ranks=$(mktemp ranks.XXXXXX)", "trap 'rm -f \"$ranks\"' EXIT", 'cat >"$ranks" <<END')
MODULES = """
# Before "set -u": the script of a module may use variables that are not set.
{lines}
"""
BODY = """
set -euo pipefail
{folder}
python=${{MPISERVE_PYTHON:-.venv/bin/python}}  # in the environment with mpiserve
config={config}

# One thread for each rank; the configuration sets the threads of the models.
export OMP_NUM_THREADS=1
"""
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
TIMES = "HH:MM:SS, D-HH:MM:SS, minutes, or such as 90m, 2h, 1d12h"
DEFAULT_TIME = "00:15:00"
LONGEST = 366 * 86400
WORD = re.compile(r"[A-Za-z0-9_][\w.,:/@+=-]*", re.ASCII)  # an account, a queue or a module


@dataclass(frozen=True)
class Job:
    """The contents of a job script.

    Attributes:
        config: The path of the configuration, as seen from the job.
        program: The simulation: a Python script and its arguments, or any other command.
        plan: The partition; `run` computes the same one from the configuration.
        mpi: "openmpi" or "mpich".
        time: The time limit, in one of the forms TIMES; 15 minutes by default.
        gpus_per_node: The GPUs of a node, for its inference ranks.
        het: Slurm only: make a heterogeneous job, with nodes of its own for each role.
        made_by: The command that makes this script, for its first lines.
        account: The account, project or bank, if the site needs one.
        partition: The partition or queue, if not the default one.
        modules: The modules to load.
        env: The variables to set, each NAME=VALUE.
        fault_tolerant: Let the other ranks live when one has died.
    """

    config: str
    program: Sequence[str]
    plan: Plan
    mpi: str = "openmpi"
    time: str = ""
    gpus_per_node: int = 0
    het: bool = False
    made_by: str = ""
    account: str = ""
    partition: str = ""
    modules: Sequence[str] = ()
    env: Sequence[str] = ()
    fault_tolerant: bool = False

    @property
    def seconds(self) -> int:
        """The time limit."""
        return seconds_of(self.time or DEFAULT_TIME)

    @property
    def spmd(self) -> bool:
        """Whether `run` starts a script on all ranks."""
        return self.program[0].endswith(".py") and not self.het

    @property
    def ranks(self) -> int:
        """The ranks of the world."""
        return len(self.plan.roles)

    @property
    def nodes(self) -> int:
        """The nodes of the job."""
        return len(set(self.plan.nodes))

    @property
    def threads(self) -> int:
        """The cores of a rank: as many as the rank with the most threads needs."""
        return max(assignment.service.threads for assignment in self.plan.serving.values())

    def simulation(self) -> str:
        """Write the command of the simulation; the job script appends its own arguments."""
        words = ['"$python"'] * self.program[0].endswith(".py")
        return " ".join([*words, *map(quoted, self.program), '"$@"'])

    def mpiexec(self) -> str:
        """Write the first words of every mpiexec."""
        return '"${MPIEXEC:-mpiexec}"' + f" {SURVIVE[self.mpi]}" * self.fault_tolerant

    def run(self) -> str:
        """Write the command of all ranks."""
        script = " ".join(map(quoted, self.program))
        return f'"$python" -m mpiserve run "$config" {script} "$@"'

    def parts(self, flag: str = "-n") -> str:
        """Write the programs as arguments of mpiexec."""
        if self.spmd:
            return f"{flag} {self.ranks} {self.run()}"
        commands = {SIMULATION: self.simulation(), INFERENCE: SERVE, **GUESTS}
        return " : \\\n  ".join(
            f"{flag} {count} {commands[role]}" for role, count in self.plan.segments()
        )


def quoted(word: str) -> str:
    """Quote a word for the shell; "python" becomes $python."""
    return '"$python"' if word in ("python", "python3") else shlex.quote(word)


def jobscript(site: str, job: Job) -> str:
    """Write the job script of a site: one of SITES.

    Raises:
        ArgumentError: If the site is unknown, or does not support an option of the job.
    """
    if site not in SITES:
        raise ArgumentError(Code.EARG, f"unknown site '{site}' (one of: {', '.join(SITES)})")
    if job.het and (site != "slurm" or not job.plan.dedicated()):
        text = "--het needs Slurm, and nodes of their own for the inference ranks"
        raise ArgumentError(Code.EARG, f"{text}: set placement = 'dedicated'")
    if job.fault_tolerant and site not in SURVIVABLE:
        text = (
            f"--fault-tolerant: for {', '.join(SURVIVABLE)}; how {site} lets ranks live is unknown"
        )
        raise ArgumentError(Code.EARG, text)
    check(site, job)
    return SITES[site](job)


def check(site: str, job: Job) -> None:
    """Refuse values that the script cannot pass on unchanged.

    Raises:
        ArgumentError: With a text that names the option.
    """
    if job.mpi not in PMI:
        raise ArgumentError(Code.EARG, f"--mpi {job.mpi!r}: must be {' or '.join(PMI)}")
    if job.gpus_per_node < 0:
        text = f"--gpus-per-node {job.gpus_per_node}: must be at least 0"
        raise ArgumentError(Code.EARG, text)
    for word in (job.config, *job.program, *job.env, job.made_by):
        if not word.isprintable():
            text = f"{word!r}: a script cannot have unprintable characters"
            raise ArgumentError(Code.EARG, text)
    named = [("account", job.account), ("partition", job.partition)]
    for option, word in [*named, *(("module", word) for word in job.modules)]:
        if word and not WORD.fullmatch(word):
            raise ArgumentError(
                Code.EARG, f"--{option} {word!r}: must be letters, digits, _.,:/@+=-"
            )
    for setting in job.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", setting, re.ASCII):
            raise ArgumentError(Code.EARG, f"--env {setting!r}: must be NAME=VALUE")
    if not 0 < job.seconds <= LONGEST:
        raise ArgumentError(Code.EARG, f"--time {job.time!r}: must be over 0, up to a year")
    guests = [role for role in GUESTS if role in job.plan.roles]
    if guests and not job.spmd and (site in IN_FILES or job.het):
        text = f"{site}: three programs, one of them the {guests[0]}, are for mpirun and pbs"
        raise ArgumentError(Code.EARG, f"{text}: start a script, or leave [{guests[0]}] out")
    if site in IN_FILES and not job.spmd:
        for word in (job.config, *job.program):
            if shlex.quote(word) != word:
                text = f"{word!r}: two programs under {site} cannot have words with such characters"
                raise ArgumentError(Code.EARG, f"{text}: put the command into a script of yours")


def seconds_of(time: str) -> int:
    """Read a time limit.

    Raises:
        ArgumentError: If it has none of the forms TIMES.
    """
    clock = re.fullmatch(
        r"(?:(?:(\d+)d?-)?(\d+):(\d\d):(\d\d)|(\d+)d?-(\d+)(?::(\d\d))?)", time, re.ASCII
    )
    if clock:
        days, hours, minutes, seconds, day, hour, minute = (
            int(part or 0) for part in clock.groups()
        )
        return 86400 * (days + day) + 3600 * (hours + hour) + 60 * (minutes + minute) + seconds
    if re.fullmatch(r"\d+", time, re.ASCII):
        return 60 * int(time[:9])
    if re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", time, re.ASCII) and time:
        return sum(int(n[:9]) * UNITS[unit] for n, unit in re.findall(r"(\d+)([dhms])", time))
    raise ArgumentError(Code.EARG, f"--time {time[:40]!r}: must be {TIMES}")


def clock_of(seconds: int) -> str:
    """Write a time as HH:MM:SS."""
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def whose(job: Job, account: str, partition: str) -> list[str]:
    """Write the directives of the account and the partition, if they are given."""
    pairs = ((account, job.account), (partition, job.partition))
    return [f"{flag}{word}" for flag, word in pairs if word]


def head(job: Job, what: str, submit: str, directives: Sequence[str], folder: str) -> str:
    """Write the first part of a script."""
    infer = ranges(job.plan.ranks(INFERENCE))
    lines = [
        "#!/bin/bash",
        f"# {what}: {job.ranks} ranks on {job.nodes} nodes; inference ranks: {infer}.",
        f"# Submit it: {submit} [ARGUMENTS OF THE SIMULATION]",
        *([f"# Made by: {job.made_by}"] if job.made_by else []),
        "#",
        *directives,
    ]
    modules = "\n".join(f"module load {shlex.quote(name)} || exit 1" for name in job.modules)
    before = MODULES.format(lines=modules) if modules else ""
    body = BODY.format(folder=folder, config=shlex.quote(job.config))
    after = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings(job))
    return "\n".join(lines) + "\n" + before + body + after


def settings(job: Job) -> list[tuple[str, str]]:
    """The variables that the script sets."""
    pairs = [setting.partition("=") for setting in job.env]
    return [(name, value) for name, _, value in pairs]


def slurm(job: Job) -> str:
    """Write a job script for Slurm: one program, two programs, or a heterogeneous job."""
    directives = ["#SBATCH --job-name=mpiserve", f"#SBATCH --time={clock_of(job.seconds)}"]
    directives += ["#SBATCH --output=%x-%j.log"]
    folder = 'cd "${SLURM_SUBMIT_DIR:?this is a job script: submit it with sbatch}"'
    kind = slurm_het if job.het else slurm_run if job.spmd else slurm_multi_prog
    note = "# With the wrong --mpi every rank has a world of its own. If one rank dies, all end."
    if job.fault_tolerant:
        directives += ["#SBATCH --no-kill"]  # of a node that has failed
        note = "# If one rank dies, the others go on."
        kind = slurm_mpiexec if job.mpi == "openmpi" else kind
        if job.mpi == "mpich" and len(set(job.plan.nodes)) > 1:
            note += " Those of other nodes are not told, and wait at the end."
    what, resources, body = kind(job)
    text = head(job, f"Slurm, {what}", "sbatch SCRIPT", [*directives, *resources], folder)
    return text + "\n" + "\n".join([note, *body]) + "\n"


def slurm_resources(job: Job, role: str | None = None) -> list[str]:
    """Write the directives for the nodes of a role, or of all ranks."""
    nodes = [n for n, r in zip(job.plan.nodes, job.plan.roles, strict=True) if role in (None, r)]
    lines = [
        f"#SBATCH --nodes={len(set(nodes))}",
        f"#SBATCH --ntasks={len(nodes)}",
        f"#SBATCH --ntasks-per-node={max(nodes.count(node) for node in set(nodes))}",
        f"#SBATCH --cpus-per-task={job.threads if role != SIMULATION else 1}",
    ]
    if job.gpus_per_node and role != SIMULATION:
        lines.append(f"#SBATCH --gpus-per-node={job.gpus_per_node}")
    return lines + whose(job, "#SBATCH --account=", "#SBATCH --partition=")


def srun(job: Job) -> str:
    """Write the first words of every srun."""
    kill = "--no-kill --kill-on-bad-exit=0" if job.fault_tolerant else "--kill-on-bad-exit=1"
    return f'srun --mpi="${{MPISERVE_PMI:-{PMI[job.mpi]}}}" {kill}'


def slurm_mpiexec(job: Job) -> tuple[str, list[str], list[str]]:
    """Fault tolerance of Open MPI, which is there under its own launcher only."""
    if job.het:
        text = "--fault-tolerant: Open MPI needs its own launcher for that, which has no --het"
        raise ArgumentError(Code.EARG, text)
    what = "one program" if job.spmd else "two programs"
    return what, slurm_resources(job), [f"{job.mpiexec()} {job.parts()}"]


def slurm_run(job: Job) -> tuple[str, list[str], list[str]]:
    """One program for all tasks."""
    return "one program", slurm_resources(job), [f"{srun(job)} {job.run()}"]


def slurm_multi_prog(job: Job) -> tuple[str, list[str], list[str]]:
    """Two programs; a file gives the ranks of each."""
    body = [
        *RANKS_FILE,
        f"{ranges(job.plan.ranks(SIMULATION))} {multi_prog(job.simulation())}",
        f"{ranges(job.plan.ranks(INFERENCE))} {multi_prog(SERVE)}",
        "END",
        f'{srun(job)} --ntasks={job.ranks} --distribution=block --multi-prog "$ranks"',
    ]
    return "two programs", slurm_resources(job), body


def multi_prog(command: str) -> str:
    """Write a command for the file of --multi-prog, which expands variables but keeps quotes."""
    return command.replace('"$@"', "$*").replace('"', "")


def slurm_het(job: Job) -> tuple[str, list[str], list[str]]:
    """Two programs, each on nodes of its own."""
    first, second = job.plan.segments()[0][0], job.plan.segments()[-1][0]
    commands = {SIMULATION: job.simulation(), INFERENCE: SERVE}
    resources = [
        *slurm_resources(job, first),
        "#SBATCH hetjob",
        *slurm_resources(job, second),
    ]
    body = [
        f"{srun(job)} --het-group=0 {commands[first]} : \\",
        f"  --het-group=1 {commands[second]}",
    ]
    return "a heterogeneous job", resources, body


def pbs(job: Job) -> str:
    """Write a job script for PBS Pro."""
    gpus = f":ngpus={job.gpus_per_node}" * bool(job.gpus_per_node)
    cores = job.plan.per_node * job.threads
    directives = [
        "#PBS -N mpiserve",
        f"#PBS -l select={job.nodes}:ncpus={cores}:mpiprocs={job.plan.per_node}{gpus}",
        "#PBS -l place=scatter",
        f"#PBS -l walltime={clock_of(job.seconds)}",
        "#PBS -j oe",
        *whose(job, "#PBS -A ", "#PBS -q "),
    ]
    folder = 'cd "${PBS_O_WORKDIR:?this is a job script: submit it with qsub}"'
    text = head(job, "PBS Pro", "qsub -- SCRIPT", directives, folder)
    return f"{text}\n{job.mpiexec()} {job.parts()}\n"


def lsf(job: Job) -> str:
    """Write a job script for LSF with jsrun: a resource set is a node."""
    hours, minutes = divmod(minutes_of(job), 60)
    directives = [
        "#BSUB -J mpiserve",
        f"#BSUB -nnodes {job.nodes}",
        f"#BSUB -W {hours:02}:{minutes:02}",
        "#BSUB -o mpiserve-%J.log",
        *whose(job, "#BSUB -P ", "#BSUB -q "),
    ]
    folder = 'cd "${LS_SUBCWD:?this is a job script: submit it with bsub}"'
    text = head(job, "LSF, jsrun", "bsub SCRIPT", directives, folder)
    cores = job.plan.per_node * job.threads
    if job.spmd:
        flags = f"--nrs {job.nodes} --rs_per_host 1 --tasks_per_rs {job.plan.per_node}"
        flags += f" --cpu_per_rs {cores} --gpu_per_rs {job.gpus_per_node}"
        return f"{text}\njsrun {flags} \\\n  {job.run()}\n"
    lines = [f"app 0: {multi_prog(job.simulation())}", f"app 1: {multi_prog(SERVE)}"]
    lines += ["cpu_index_using: logical", *map(erf_line(job), range(job.ranks)), "END"]
    return "\n".join([text, *RANKS_FILE, *lines, 'jsrun --erf_input "$ranks"', ""])


def erf_line(job: Job) -> Callable[[int], str]:
    """Place a rank on its node and cores, as jsrun's explicit resource file does."""

    def line(rank: int) -> str:
        node, infers = job.plan.nodes[rank], job.plan.roles[rank] == INFERENCE
        first = (rank - job.plan.nodes.index(node)) * job.threads
        gpu = f" gpu: {{{gpu_of(job, rank)}}};" if infers and job.gpus_per_node else ""
        cores = ranges(range(first, first + job.threads))
        return f"rank: {rank}: {{ host: {node + 1}; cpu: {{{cores}}};{gpu} }} : app {int(infers)}"

    return line


def gpu_of(job: Job, rank: int) -> int:
    """Choose the GPU of an inference rank, round robin over those of its node."""
    node = job.plan.nodes[rank]
    before = [r for r in job.plan.ranks(INFERENCE) if r < rank and job.plan.nodes[r] == node]
    return len(before) % job.gpus_per_node


def flux(job: Job) -> str:
    """Write a job script for Flux; two programs share one shell command, as it has no MPMD."""
    directives = [
        "#flux: --job-name=mpiserve",
        f"#flux: --nodes={job.nodes}",
        "#flux: --exclusive",
        f"#flux: --time-limit={minutes_of(job)}m",
        "#flux: --output=mpiserve-{{id}}.log",
        *whose(job, "#flux: --bank=", "#flux: --queue="),
    ]
    text = head(job, "Flux", "flux batch SCRIPT", directives, 'cd "${FLUX_SUBMIT_DIR:-$PWD}"')
    flags = f"--nodes={job.nodes} --ntasks={job.ranks} --cores-per-task={job.threads}"
    if job.gpus_per_node:
        flags += f" --setopt=gpu-affinity=off --gpus-per-node={job.gpus_per_node}"
    if job.spmd:
        return f"{text}\nflux run {flags} \\\n  {job.run()}\n"
    cases = "|".join(map(str, job.plan.ranks(INFERENCE)))
    choose = [
        "export python config",
        "# shellcheck disable=SC2016  # each task expands this itself",
        f"flux run {flags} bash -c '",
        "  case $FLUX_TASK_RANK in",
        f"    {cases}) exec {SERVE} ;;",
        f"    *) exec {job.simulation()} ;;",
        "  esac",
        '\' bash "$@"',
    ]
    return "\n".join([text, *choose, ""])


def minutes_of(job: Job) -> int:
    """Return the minutes of the time limit, rounded up."""
    return -(-job.seconds // 60)


def mpirun(job: Job) -> str:
    """Write a script for mpiexec alone, with a hostfile."""
    if job.account or job.partition or job.time:
        text = "mpirun has no --account, no --partition and no --time: remove them"
        raise ArgumentError(Code.EARG, f"{text}; the shell's timeout can limit the time")
    flag = "-f" if job.mpi == "mpich" else "--map-by slot --hostfile"
    line = f"HOST:{job.plan.per_node}" if job.mpi == "mpich" else f"HOST slots={job.plan.per_node}"
    hint = f"# HOSTFILE names {job.nodes} hosts, a line for each: {line}"
    folder = "hostfile=${HOSTFILE:?set it to the path of a host file}"
    text = head(job, "mpiexec and a hostfile", "HOSTFILE=hosts bash SCRIPT", [hint], folder)
    return f'{text}\n{job.mpiexec()} {flag} "$hostfile" {job.parts()}\n'


SURVIVABLE = ("slurm", "pbs", "mpirun")
IN_FILES = ("slurm", "lsf", "flux")  # sites where two programs are lines of a file or a text
SITES = {"slurm": slurm, "pbs": pbs, "lsf": lsf, "flux": flux, "mpirun": mpirun}
