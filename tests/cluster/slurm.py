"""A real Slurm on the hosts: a controller on the first, a slurmd on each."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.hosts import Hosts, Runs

NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
RESOURCES = "CPUs=4 RealMemory=1000 Gres=gpu:1"  # of each host, as far as Slurm knows
CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
TmpFS={folder}/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1
SlurmdTimeout=10
KillWait=2
UnkillableStepTimeout=10
ReturnToService=2
GresTypes=gpu
MailProg=/bin/true
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Say which of Slurm's programs are not here, if any."""
    lacking = [name for name in NEEDED if not find(name)]
    return f"no {', '.join(lacking)}: apt-get install slurm-wlm munge" if lacking else None


def find(name: str) -> str | None:
    """Find a program, also where only root looks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Slurm(Runs):
    """A Slurm whose nodes are hosts. A context manager; it ends with its hosts too."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._running: list[subprocess.Popen[bytes]] = []

    def close(self) -> None:
        """End the daemons, the last started first."""
        for process in reversed(self._running):
            process.terminate()
        for process in self._running:
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()

    def ask(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands on the first host and return what it prints."""
        done = subprocess.run(
            self.hosts.on(self.hosts.names[0], command, cwd or self.folder),
            env=(env or dict(os.environ)) | self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def submit(
        self,
        script: str,
        *args: str,
        env: dict[str, str],
        cwd: Path,
        flags: Sequence[str] = (),
    ) -> str:
        """Submit a job script and return the job's number; its output goes to cwd/job.log."""
        command = ["sbatch", "--parsable", "--output=job.log", *flags, script, *args]
        return self.ask(*command, env=env, cwd=cwd).strip().split(";")[0]

    def state(self, job: str) -> str:
        """Return the state of a job, such as RUNNING; of a job of several parts, the worst."""
        shown = self.ask("scontrol", "show", "job", job)
        states = [word.split("=")[1] for word in shown.split() if word.startswith("JobState=")]
        return next((state for state in states if state != "COMPLETED"), "COMPLETED")

    def wait(self, job: str, timeout: float) -> str:
        """Wait until a job has ended, and return its state."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING"):
            if time.monotonic() > deadline:
                self.ask("scancel", job)
                return f"{state} for {timeout:g} s"
            time.sleep(0.1)
        return state

    def _start(self) -> None:
        for name in (
            "state",
            *(f"{kind}.{n}" for kind in ("spool", "tmp") for n in self.hosts.names),
        ):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        nodes = [
            f"NodeName={name} NodeAddr={self.hosts.address(name)} {RESOURCES}"
            for name in self.hosts.names
        ]
        first = self.hosts.names[0]
        text = CONFIGURATION.format(controller=first, folder=self.folder, nodes="\n".join(nodes))
        Path(self.environment["SLURM_CONF"]).write_text(text)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/zero\n")  # a device will do
        self._munge(first)
        self._spawn(first, "slurmctld", "-D")
        for name in self.hosts.names:
            self._spawn(name, "slurmd", "-D", "-N", name)
        self._await_nodes()

    def _munge(self, host: str) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        socket = self.folder / "munge.socket"
        files = [
            f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")
        ]
        self._spawn(host, "munged", "--foreground", "--force", f"--socket={socket}", *files)
        self._until(socket.exists, "munged")

    def _await_nodes(self) -> None:
        def idle() -> bool:
            try:
                return self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(
                    self.hosts.names
                )
            except RuntimeError:
                return False  # the controller is not there yet

        self._until(idle, "Slurm")

    def _until(self, there: object, what: str) -> None:
        deadline = time.monotonic() + 20
        while not there():  # type: ignore[operator]
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))
                raise RuntimeError(f"{what} did not come up\n{logs}")
            time.sleep(0.05)

    def _spawn(self, host: str, name: str, *args: str) -> None:
        with (self.folder / f"{name}.{host}.log").open("wb") as log:
            self._running.append(
                subprocess.Popen(
                    self.hosts.on(host, [find(name) or name, *args]),
                    env=dict(os.environ) | self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
