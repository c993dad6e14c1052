"""The table of faults: what each one is, and what must be seen under which launcher."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

# How a job is launched: as usual; so that MPI tells survivors of a death (Open MPI 5); so that the
# launcher kills no survivors and sees no signal (MPICH).
PLAIN, ULFM, KEPT = "plain", "ulfm", "no cleanup"
MODES = {PLAIN: ("openmpi", "mpich"), ULFM: ("openmpi",), KEPT: ("mpich",)}
EVERY = tuple(MODES)

MPICH_FILE = "mpich_shm_.*"
ALIVE, ENDS, EITHER = "alive", "ends", "either"


@dataclass(frozen=True)
class Expect:
    """What must be seen.

    Attributes:
        job: ALIVE: all clients but one that dies itself ask all they want, close and end.
            ENDS: the launcher ends the job, with a status that is not 0.
        guilty: What the request that holds the trigger must get: an error, or the right answer.
        text: A pattern of what somebody must have been told: the error, else a line of the log.
        errors: Requests that may end with an error though they hold no trigger; None: any.
        status: The exit status of the launcher, or None for any.
        closes: Whether every client must close without an error.
        session: Whether no file may remain in the folder for temporary files, where launchers keep
            some. None may remain in /dev/shm,
        stays: but those whose names fit this pattern.
    """

    job: str = ALIVE
    guilty: str = "error"
    text: str = ""
    errors: int | None = 0
    status: int | None = 0
    closes: bool = True
    session: bool = True
    stays: str = "-"


@dataclass(frozen=True)
class Fault:
    """A row.

    Attributes:
        number: As in the list of faults, see docs/guide/survival.md.
        name: What happens.
        expect: What must be seen, by mode; its keys are the modes under which it is run.
        plan: What differs in the plan of job/simulate.py.
        service: Keys of the service "twice".
        broken: The model of a second service, which cannot be loaded.
        inference: The number of inference ranks.
        outside: What the test does to the job, see test_ranks.py.
        quick: Whether `make test` runs it.
        seconds: The most that the job may take; generous, since the machine may be busy.
        shm: The size of /dev/shm.
        transports: Those with which it is run.
        hosts: Whether the last inference rank, to which it is done, is on a host of its own.
        batch_rows: The most rows of a batch, or ragged requests, if not enough for every request.
        gateway: Keys of the table `[gateway]`, whose rank comes last; None for no gateway.
        capture: Whether the job is captured. Then all files must open, with right answers.
    """

    number: int
    name: str
    expect: dict[str, Expect]
    plan: dict[str, Any] = field(default_factory=dict)
    service: dict[str, Any] = field(default_factory=dict)
    broken: str = ""
    inference: int = 1
    outside: str = ""
    quick: bool = False
    seconds: float = 60
    shm: str = "1g"
    transports: tuple[str, ...] = ("shared", "rma")
    hosts: bool = False
    batch_rows: int = 0
    gateway: dict[str, Any] | None = None
    capture: bool = False

    @property
    def key(self) -> str:
        return f"{self.number} {self.name}"


def told(text: str, **changes: Any) -> dict[str, Expect]:
    """The guilty request gets an error with this text, and nothing else happens."""
    return {PLAIN: Expect(text=text, **changes)}


UNHARMED = {PLAIN: Expect(guilty="right")}


def of_model(number: int, act: str, expect: dict[str, Expect], **rest: Any) -> Fault:
    """A fault of the model, twice: in a small request, then in a large one."""
    name = rest.pop("name", act.replace("_", " ").strip())
    plan = {"triggers": [act], "at": [4, 7], "steps": 12, "lockstep": True}
    plan |= rest.pop("plan", {})
    return Fault(number, name, expect, plan=plan, **rest)


SOON = {"timeout_s": 1.0}
LATE = {"timeout_s": 30.0}

# Large requests have more rows than a batch, and are sent in pieces.
PIECES = {"batch_rows": 16}
# Each request has its own number of rows, and indices into them.
RAGGED = {"plan": {"ragged": True}, "batch_rows": 8}

MODEL = [
    of_model(1, "null_read", told("SIGSEGV")),
    of_model(1, "null_read", told("SIGSEGV"), name="null read, request in pieces", **PIECES),
    of_model(1, "null_read", told("SIGSEGV"), name="null read, ragged requests", **RAGGED),
    of_model(2, "exit_7", told("status 7")),
    of_model(3, "kill_itself", told("SIGKILL")),
    of_model(4, "abort", told("SIGABRT")),
    of_model(5, "hang", told("timeout_s"), service=SOON),
    of_model(5, "hang", told("timeout_s"), name="hang, request in pieces", service=SOON, **PIECES),
    of_model(6, "nap", UNHARMED, service=LATE),
    of_model(7, "stop", told("timeout_s"), service=SOON),
    of_model(8, "use_memory", told("[Mm]emory"), service={"memory_bytes": 3 << 30}),
    of_model(9, "raise_", told("ValueError: the model says no")),
    of_model(9, "sys_exit", told("SystemExit: the model leaves")),
    of_model(9, "interrupt", told("KeyboardInterrupt: of the model")),
    of_model(9, "unprintable", told("Unprintable: .its text cannot be read")),
    of_model(10, "wrong_shape", told(r"expected float32 \[\d+, 3\], got float32 \[1, 7\]")),
    of_model(10, "wrong_dtype", told("expected float32 .*got str")),
    of_model(10, "nothing", told("expected float32 .*got object")),
    of_model(10, "nan", told("finite|nan"), service={"check": "finite"}, quick=True),
    of_model(
        10,
        "nan",
        told("finite|nan"),
        name="nan, ragged requests",
        service={"check": "finite"},
        **RAGGED,
    ),
    of_model(11, "fork", UNHARMED),
    of_model(11, "start_program", UNHARMED),
]


def of_load(model: str, expect: dict[str, Expect], **rest: Any) -> Fault:
    """A model that cannot be loaded, beside one that answers from another rank."""
    plan = {"broken": True, "steps": 6, "lockstep": True}
    return Fault(12, rest.pop("name"), expect, plan=plan, broken=model, inference=2, **rest)


# Inference ranks end with status 1 if their model could not be loaded.
UNLOADED = {"status": None}
LOAD = [
    of_load("LoadSegfault", told("SIGSEGV", **UNLOADED), name="load: segfault"),
    of_load("LoadExit", told("status 7", **UNLOADED), name="load: exit"),
    of_load("LoadRaise", told("ValueError: the model says no", **UNLOADED), name="load: raise"),
    of_load(
        "LoadHang",
        told("load_timeout_s", **UNLOADED),
        name="load: hang",
        service={"load_timeout_s": 3.0},
    ),
]

# Launchers kill what remains, and say which rank has died of what. Ranks of MPICH that are killed
# leave their file in /dev/shm.
KILLED = Expect(ENDS, guilty="any", text=r"[Ss]ignal:? 9", errors=None, stays=MPICH_FILE)
GOES_ON = Expect(guilty="any", errors=0)
# MPICH's launcher returns the status of the dead rank, and survivors that leave without
# MPI_Finalize, which would wait for it, leave MPICH's file in /dev/shm.
KEPT_ON = replace(GOES_ON, status=None, stays=MPICH_FILE)
WORK = {"steps": 60, "pause": 0.03, "at": [10]}


def of_rank(number: int, name: str, outside: str, expect: dict[str, Expect], **rest: Any) -> Fault:
    """A fault that the test does to an inference rank while two clients ask."""
    plan = WORK | rest.pop("plan", {})
    return Fault(number, name, expect, plan=plan, outside=outside, **rest)


def of_client(number: int, name: str, act: str, expect: dict[str, Expect], **rest: Any) -> Fault:
    """A fault of simulation rank 1, while the others ask."""
    plan = WORK | {"act": act} | rest.pop("plan", {})
    return Fault(number, name, expect, plan=plan, **rest)


# What the others are told when nobody can answer: rank, host and cause, each time.
GONE = Expect(guilty="any", text=r"rank 2\b.*(died|gone|killed|ended|dead)", errors=None)
DEATH = {PLAIN: KILLED, ULFM: GOES_ON, KEPT: KEPT_ON}
# An exit with status 0: no launcher kills for that, so what happens is up to MPI.
LEFT = {PLAIN: replace(KILLED, job=EITHER, text="", status=None)}
MISSING = Expect(guilty="any", text=r"simulation rank 1\b", errors=0, status=None, closes=False)

RANKS = [
    of_rank(6, "rank stopped for 3 s", "nap", dict.fromkeys(EVERY, GOES_ON)),
    of_rank(
        7,
        "rank stopped for ever",
        "stop",
        {
            mode: replace(GONE, text=r"rank 2\b.*stopped", status=None, closes=False)
            for mode in EVERY
        },
        plan={"timeout": 3.0, "steps": 14},
    ),
    of_rank(13, "one of 2 replicas killed", "kill", DEATH, inference=2),
    of_rank(
        13, "one of 2 replicas killed, requests in pieces", "kill", DEATH, inference=2, **PIECES
    ),
    of_rank(13, "one of 2 replicas killed, ragged requests", "kill", DEATH, inference=2, **RAGGED),
    of_rank(
        14,
        "last replica killed",
        "kill",
        {PLAIN: KILLED, ULFM: GONE, KEPT: replace(GONE, status=None, stays=MPICH_FILE)},
    ),
    of_rank(
        14,
        "last replica killed, fallback",
        "kill",
        DEATH,
        plan={"fallback": True},
    ),
    of_rank(
        14,
        "last replica killed, fallback, requests in pieces",
        "kill",
        DEATH,
        plan={"fallback": True},
        **PIECES,
    ),
    of_rank(14, "last replica killed, local model", "kill", DEATH, service={"fallback": "local"}),
    of_rank(
        14,
        "last replica killed, local model, requests in pieces",
        "kill",
        DEATH,
        service={"fallback": "local"},
        **PIECES,
    ),
    of_rank(
        7,
        "rank stopped for ever, local model",
        "stop",
        dict.fromkeys(EVERY, replace(GOES_ON, status=None, closes=False)),
        service={"fallback": "local"},
        plan={"steps": 20},
    ),
    of_client(15, "simulation rank: SIGKILL", "kill", DEATH),
    of_client(
        15,
        "simulation rank: segfault",
        "segfault",
        DEATH | {PLAIN: replace(KILLED, text="[Ss]ignal:? 11")},
    ),
    of_client(15, "simulation rank: exit", "exit", LEFT | {ULFM: GOES_ON, KEPT: KEPT_ON}),
    of_client(16, "simulation rank: silent", "silent", dict.fromkeys(EVERY, MISSING)),
    of_client(
        16,
        "simulation rank: finalize",
        "finalize",
        # MPI_Finalize closes the session, and nobody is missing.
        dict.fromkeys(EVERY, replace(MISSING, text="")),
    ),
    of_client(
        17,
        "simulation rank raises",
        "raise",
        {mode: replace(KILLED, text="the simulation says no") for mode in EVERY},
        quick=True,
    ),
]

# Here MPI's puts and gets are messages, and no kernel tells of the rank.
SILENT = replace(GOES_ON, status=None, closes=False)


def on_hosts(fault: Fault) -> Fault:
    """The same on two hosts, with the launcher that lets ranks live there."""
    return replace(fault, name=f"two hosts: {fault.name}", hosts=True, transports=("rma",))


HOSTS = [
    on_hosts(fault)
    for fault in (
        of_rank(6, "rank stopped for 3 s", "nap", {ULFM: GOES_ON}),
        of_rank(7, "one of 2 replicas stopped for ever", "stop", {ULFM: SILENT}, inference=2),
        of_rank(13, "one of 2 replicas killed", "kill", {ULFM: GOES_ON}, inference=2),
        of_rank(14, "last replica killed", "kill", {ULFM: GONE}),
        of_rank(
            14,
            "last replica killed, local model",
            "kill",
            {ULFM: GOES_ON},
            service={"fallback": "local"},
        ),
        of_client(15, "simulation rank: SIGKILL", "kill", {ULFM: GOES_ON}),
    )
]

# MPI itself keeps files in /dev/shm, of which some builds need more than others: with 24 MiB, UCX
# of MPICH 5.0.2 crashed in 6 of 24 starts of 3 ranks without mpiserve (a segmentation fault in
# libuct.so), and with 28 MiB in none.
SMALL = "32m"
NODE = [
    Fault(
        18,
        "/dev/shm too small",
        {PLAIN: Expect(guilty="any")},
        outside="small",
        shm=SMALL,
        plan={"grow": 200_000, "at": [2], "steps": 6},
        transports=("shared",),
    ),
    Fault(
        18,
        "/dev/shm too small for MPI's window",
        {
            PLAIN: Expect(
                ENDS,
                guilty="any",
                text=r"\d+ bytes are needed and \d+ bytes are free",
                stays=MPICH_FILE,
            )
        },
        outside="small",
        shm=SMALL,
        plan={"grow": 200_000, "at": [2], "steps": 6},
        quick=True,
        transports=("rma",),
    ),
    Fault(
        18,
        "/dev/shm filled after open",
        {PLAIN: Expect(guilty="any")},
        outside="fill",
        plan={"grow": 200_000, "at": [4], "steps": 10},
        quick=True,
    ),
    Fault(
        19,
        "launcher killed",
        # The launcher cannot remove its own files any more. MPICH's kills the ranks at once.
        {
            mode: Expect(ENDS, guilty="any", errors=None, session=False, stays=MPICH_FILE)
            for mode in EVERY
        },
        outside="launcher",
        plan={"steps": 1_000_000, "pause": 0.01},
        quick=True,
    ),
    Fault(
        20,
        "stdout and log full",
        # MPICH's launcher ends where it cannot write, and with it the job.
        {PLAIN: Expect(EITHER, guilty="any", status=None, stays=MPICH_FILE)},
        outside="full",
        plan={"steps": 12},
    ),
    Fault(
        20,
        "stdout and log closed",
        {PLAIN: Expect(EITHER, guilty="any", status=None, stays=MPICH_FILE)},
        outside="closed",
        plan={"steps": 40, "pause": 0.03},
    ),
]

# The process is the one that speaks to clients, a child of the gateway's rank.
GATEWAY = [
    of_rank(21, "gateway rank killed", "kill", DEATH, gateway={}),
    of_rank(21, "gateway rank killed, its process hangs", "kill both", DEATH, gateway={}),
    of_rank(21, "gateway rank stopped for 3 s", "nap", dict.fromkeys(EVERY, GOES_ON), gateway={}),
    of_rank(
        21,
        "gateway rank stopped for ever",
        "stop",
        dict.fromkeys(EVERY, replace(GOES_ON, status=None)),
        gateway={},
    ),
    of_rank(
        22,
        "process of the gateway killed",
        "kill",
        {PLAIN: replace(GOES_ON, text=r"gateway's process has ended \(signal 9")},
        plan={"steps": 200},
        gateway={},
        quick=True,
    ),
    of_rank(
        22,
        "process of the gateway hangs",
        "stop",
        {PLAIN: replace(GOES_ON, text=r"it said nothing for process_timeout_s = 1 s")},
        plan={"steps": 400},
        gateway={"process_timeout_s": 1.0},
    ),
]

# What writes a capture is a process beside each inference rank, which outlives it.
NO_WRITER = r"the capture has stopped \(its writer has ended with status -9\)"
CAPTURES = [
    of_rank(
        23,
        "writer of a capture killed",
        "writer",
        {PLAIN: replace(GOES_ON, text=NO_WRITER)},
        quick=True,
        capture=True,
    ),
    of_rank(23, "captured: one of 2 replicas killed", "kill", DEATH, inference=2, capture=True),
    of_client(23, "captured: simulation rank: SIGKILL", "kill", DEATH, capture=True),
]

FAULTS = [*MODEL, *LOAD, *RANKS, *HOSTS, *NODE, *GATEWAY, *CAPTURES]
