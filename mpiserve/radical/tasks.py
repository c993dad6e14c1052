"""Describe jobs as tasks of RADICAL-Pilot. What cannot work is refused before there is a pilot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiserve.config import Config
from mpiserve.config.partition import GATEWAY, INFERENCE, SIMULATION, TRAINER
from mpiserve.errors import ArgumentError, Code
from mpiserve.launch.guard import ENDPOINT
from mpiserve.launch.plan import Plan, plan

SERVICE_MODE = "task.service"  # radical.pilot.TASK_SERVICE
NAMED_ENV = "rp"  # where RADICAL-Pilot finds the program that watches a service
GUARD = ("-m", "mpiserve.launch.guard")
IDLE = Path(__file__).with_name("idle.py")
READY_S = 600.0
UID = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)  # part of the name of a variable


def coupled_task(
    config: str | Path,
    program: Sequence[str | Path],
    ranks: int,
    *,
    uid: str = "",
    python: str | Path = sys.executable,
    mpiexec: str | Path = "",
    flags: Sequence[str] = (),
    cores: int = 0,
    environment: Mapping[str, str] | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Describe a coupled job, on one node of the pilot.

    RADICAL-Pilot starts one process, which starts mpiexec, and ends all ranks when the task ends,
    however it ends. Whatever RADICAL-Pilot has to know beside may be added to the result.

    Args:
        config: The configuration of the job.
        program: The simulation: a Python script and its arguments, or any other command.
        ranks: The ranks of the world.
        uid: The name of the task; by default RADICAL-Pilot chooses one.
        python: That of the environment with mpiserve.
        mpiexec: The launcher of its MPI; by default that beside `python`, else that on PATH.
        flags: For mpiexec, before the programs.
        cores: For all ranks together; by default one for each simulation rank and the gateway,
            and as many as the models have threads. No more than a node of the pilot has.
        environment: Variables of the task, as those that the MPI needs.
        seconds: After which RADICAL-Pilot cancels the task; 0: never.

    Returns:
        The fields of a `radical.pilot.TaskDescription`.

    Raises:
        ConfigError: If the configuration is wrong, or does not fit the ranks.
        ArgumentError: If a file is missing, or a word cannot pass through RADICAL-Pilot's shell.
    """
    made = plan(Config.load(config), ranks)
    python = _whole(python)
    job = _job(Path(config), program, made, python)
    launcher = [_mpiexec(str(mpiexec), python), *flags]
    task = _task(uid, python, [], [*launcher, *job], cores or _cores(made), environment)
    return task | ({"timeout": float(seconds)} if seconds else {})


def service_task(
    config: str | Path,
    ranks: int,
    *,
    uid: str,
    program: Sequence[str | Path] = (IDLE,),
    ready_s: float = READY_S,
    python: str | Path = sys.executable,
    mpiexec: str | Path = "",
    flags: Sequence[str] = (),
    cores: int = 0,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Describe a job with a gateway as a service of the pilot, on one node.

    Tasks that name it in `services` find it: `mpiserve.connect(mpiserve.radical.endpoint(uid))`.
    By default its only simulation rank does nothing, and the service lasts until it is cancelled;
    with a `program` it lasts as long as that.

    Args:
        config: The configuration, with a table `[gateway]`.
        ranks: The ranks of the world: one or more simulate, those of the services infer, and one
            is the gateway.
        uid: The name of the task: letters, digits, `_` and dots.
        program: The simulation, as for `coupled_task`.
        ready_s: Seconds in which clients must be able to come; else the job is ended. It replaces
            RADICAL-Pilot's `startup_timeout`, which ends services that are ready, too.
        python: As for `coupled_task`.
        mpiexec: As for `coupled_task`.
        flags: As for `coupled_task`.
        cores: As for `coupled_task`.
        environment: As for `coupled_task`.

    Returns:
        The fields of a `radical.pilot.TaskDescription`.

    Raises:
        ConfigError, ArgumentError: As for `coupled_task`, and if there is no gateway, or client
            tasks could not find its token.
    """
    if not UID.fullmatch(uid):
        text = f"uid {uid!r}: a service needs a name of letters, digits, '_' and dots"
        raise ArgumentError(Code.EARG, text)
    if not ready_s > 0:
        raise ArgumentError(Code.EARG, f"ready_s = {ready_s!r}: must be more than 0")
    read = Config.load(config)
    if read.gateway is None:
        raise read.error("gateway", "missing; clients of a service task come to a gateway")
    if not read.gateway.endpoint_file.isascii():
        raise read.error("gateway.endpoint_file", "RADICAL-Pilot reads no characters beyond ASCII")
    made = plan(read, ranks)
    python = _whole(python)
    job = _job(Path(config), program, made, python)
    launcher = [_mpiexec(str(mpiexec), python), *flags]
    options = ["--ready-within", f"{ready_s:g}"]
    task = _task(uid, python, options, [*launcher, *job], cores or _cores(made), environment)
    info = {"info_pattern": f"stdout:{ENDPOINT}(.*)"}
    return task | {"mode": SERVICE_MODE, "named_env": NAMED_ENV} | info


def _whole(python: str | Path) -> str:
    """Return the whole path, which is not resolved: the Python of an environment is a link."""
    return os.path.abspath(shutil.which(python) or python)


def _job(config: Path, program: Sequence[str | Path], made: Plan, python: str) -> list[str]:
    """Return the programs as arguments of mpiexec."""
    words = [str(word) for word in program]
    path, run = str(config.resolve()), [python, "-m", "mpiserve"]
    words[0] = _program(words[0])
    if words[0].endswith(".py"):
        return ["-n", str(len(made.roles)), *run, "run", path, *words]
    parts = {SIMULATION: words, INFERENCE: [*run, "serve", path]}
    parts |= {GATEWAY: [*run, "gateway", path], TRAINER: [*run, "train", path]}
    found: list[str] = []
    for role, count in made.segments():
        found += [":"] * bool(found) + ["-n", str(count), *parts[role]]
    return found


def _program(name: str) -> str:
    """Return the whole path of a script or program: a task begins in a folder of its own."""
    found = str(Path(name).resolve()) if Path(name).is_file() else shutil.which(name)
    if not found:
        raise ArgumentError(Code.EARG, f"program {name!r}: no such file, and no program on PATH")
    return found


def _mpiexec(given: str, python: str) -> str:
    beside = Path(python).parent / "mpiexec"
    found = shutil.which(given or (str(beside) if beside.is_file() else "mpiexec"))
    if not found:
        text = f"no {given or 'mpiexec'} beside {python} or on PATH: set mpiexec"
        raise ArgumentError(Code.EARG, text)
    return os.path.abspath(found)


def _cores(made: Plan) -> int:
    others = len(made.roles) - len(made.serving)
    return others + sum(assigned.service.threads for assigned in made.serving.values())


def _task(
    uid: str,
    python: str,
    options: list[str],
    command: list[str],
    cores: int,
    environment: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Describe the task that runs a command under the guard."""
    arguments = [*GUARD, *options, "--", *command]
    for word in (python, *arguments):
        if shlex.quote(word) != word:
            text = f"{word!r}: RADICAL-Pilot's shell would change a word with such characters"
            raise ArgumentError(Code.EARG, f"{text}: put the command into a script of yours")
    for name, value in (environment or {}).items():
        if not value.isprintable() or set(value) & set('"$`\\'):
            text = f"environment {name}={value!r}: RADICAL-Pilot's shell would change it"
            raise ArgumentError(Code.EARG, f"{text}: leave out quotes, $, ` and \\")
    task = {
        "executable": python,
        "arguments": arguments,
        "ranks": 1,
        "cores_per_rank": cores,
        "environment": dict(environment or {}),
    }
    return task | ({"uid": uid} if uid else {})
