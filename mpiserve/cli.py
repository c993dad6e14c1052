"""`mpiserve`: run, serve, init, convert, describe, check, compile, plan, jobscript, config, ..."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mpiserve import __version__, terminal
from mpiserve.errors import Error
from mpiserve.tools import capture_commands, start_commands, trace_commands

if TYPE_CHECKING:
    from mpiserve.config import Config
    from mpiserve.launch.static_check import Finding

# The console script's name. A shell completes the words behind a program, so only behind this.
SCRIPT = "mpiserve"
CALLED = Path(sys.argv[0]).name

app = typer.Typer(
    name="python -m mpiserve",
    help="Couple a simulation and the models that it queries, in one MPI world.",
    no_args_is_help=True,
    add_completion=CALLED == SCRIPT,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if terminal.live() else None,
)

app.add_typer(trace_commands.app, name="trace")
app.add_typer(capture_commands.app, name="capture")
app.command()(capture_commands.replay)
app.command()(start_commands.init)
app.command()(start_commands.convert)
app.command()(start_commands.schema)


def _files(suffix: str) -> Callable[[str], list[str]]:
    """Complete the names of such files, and of the folders on the way to them."""

    def complete(incomplete: str) -> list[str]:
        found = sorted(glob(f"{escape(incomplete)}*"))
        folders = [f"{name}/" for name in found if Path(name).is_dir()]
        return folders + [name for name in found if name.endswith(suffix)]

    return complete


ConfigFile = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="The TOML file of the services.", autocompletion=_files(".toml")
    ),
]
Ranks = Annotated[int, typer.Option("-n", help="Ranks of the world.")]
AnyRanks = Annotated[int | None, typer.Option("-n", help="Ranks of the world (default: fewest).")]
RanksPerNode = Annotated[
    int | None, typer.Option("--ranks-per-node", help="Ranks of each node (default: one node).")
]


def main() -> None:
    """Run a command and exit with its status: 0, 1 for a failure, 2 for wrong usage."""
    app(prog_name=SCRIPT if CALLED == SCRIPT else "python -m mpiserve")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mpiserve {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def run(
    config: ConfigFile,
    script: Annotated[
        str,
        typer.Argument(metavar="SCRIPT", help="The simulation.", autocompletion=_files(".py")),
    ],
    args: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...")] = None,
    replace_world: Annotated[
        bool,
        typer.Option("--replace-world", help="SCRIPT's COMM_WORLD holds the simulation ranks."),
    ] = False,
) -> None:
    """Run SCRIPT on the simulation ranks; the ranks that CONFIG chooses serve."""
    _exit("run", config, script, args or [], replace_world=replace_world)


@app.command()
def serve(config: ConfigFile) -> None:
    """Serve beside another program of the same world; all ranks of this program serve."""
    from mpiserve.serving.isolation.server_link import the_server

    the_server.start()  # before MPI, which does not like forks
    _exit("serve", config)


@app.command()
def train(config: ConfigFile) -> None:
    """Train models while the job runs, beside `serve` and another program of the same world."""
    _exit("train", config)


@app.command()
def gateway(config: ConfigFile) -> None:
    """Answer clients outside of the job, beside `serve` and another program of the same world."""
    _exit("gateway", config)


@app.command()
def describe(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A model file, or a Hugging Face directory.")
    ],
    name: Annotated[str, typer.Option(help="Of the service. Default: from FILE.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of TOML.")] = False,
) -> None:
    """Print the table of a service that runs the model in FILE, without MPI."""
    from json import dumps

    from mpiserve.tools import describe as program

    with _usage():
        table = program.table_of(file)
        name = name or program.name_of(file)
        text = program.text_of(name, table)
    print(dumps({"service": {name: table}}, indent=2) if json else text)


@app.command()
def check(
    config: ConfigFile,
    load: Annotated[
        bool, typer.Option("--load", help="Load and warm up every model on this machine.")
    ] = False,
    ranks: AnyRanks = None,
    ranks_per_node: RanksPerNode = None,
) -> None:
    """Check CONFIG, list its services and draw the partition of a world, without MPI."""
    from mpiserve.launch import drawing

    checked = _checked(config)
    _look(checked)
    _show_origins(checked)
    if load:
        from mpiserve.tools import check_load

        raise typer.Exit(check_load.try_all(checked))
    with _usage():
        drawing.show(checked, ranks, ranks_per_node)


def _show_origins(config: Config) -> None:
    """Say which inputs and outputs were read from model files."""
    from mpiserve.config.completion import origin

    for service in config.services:
        if text := origin(service):
            print(text)


@app.command("compile")
def compile_models(config: ConfigFile) -> None:
    """Compile the models of CONFIG for this machine, so that jobs find them in the cache."""
    from mpiserve.tools import check_load

    raise typer.Exit(check_load.compile_all(_checked(config)))


def _look(config: Config) -> None:
    """Print an error or warnings about files and objects that CONFIG names and are missing."""
    from mpiserve.launch.static_check import findings

    found = findings(config)
    wrong = [finding for finding in found if finding.sure]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        with _usage():
            raise config.error(wrong[0].key, wrong[0].text + more)
    _warn(config, found)


def _warn(config: Config, found: Sequence[Finding]) -> None:
    for finding in found:
        print(f"mpiserve: warning: {config.error(finding.key, finding.text)}", file=sys.stderr)


@app.command()
def plan(
    config: ConfigFile,
    ranks: Ranks,
    ranks_per_node: RanksPerNode = None,
    cores_per_node: Annotated[int | None, typer.Option(help="Default: of this machine.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(help="Default: of this machine.")] = None,
    memory_per_node: Annotated[
        int | None, typer.Option(help="In bytes. Default: of this machine.")
    ] = None,
) -> None:
    """Show the role of each rank of a world, and the clients of each model, without MPI."""
    from mpiserve.launch import plan as program
    from mpiserve.launch.resources import this_machine
    from mpiserve.launch.static_check import unspared

    given = {"cores": cores_per_node, "gpus": gpus_per_node, "memory_bytes": memory_per_node}
    stated = {key: value for key, value in given.items() if value is not None}
    node = replace(this_machine(), **stated)
    checked = _checked(config)
    with _usage():
        program.show(program.plan(checked, ranks, ranks_per_node, node))
    _warn(checked, unspared(checked))
    _show_origins(checked)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def jobscript(
    config: ConfigFile,
    program: Annotated[list[str], typer.Argument(metavar="PROGRAM [ARGS]...")],
    ranks: Ranks,
    site: Annotated[str, typer.Option(help="slurm, pbs, lsf, flux or mpirun.")],
    ranks_per_node: RanksPerNode = None,
    mpi: Annotated[str, typer.Option(help="openmpi or mpich.")] = "openmpi",
    time: Annotated[
        str, typer.Option(help="Limit: HH:MM:SS, D-HH:MM:SS, minutes, 90m, 2h, 1d12h. Default 15m.")
    ] = "",
    gpus_per_node: Annotated[int, typer.Option(help="For the inference ranks.")] = 0,
    het: Annotated[bool, typer.Option(help="Slurm: a heterogeneous job.")] = False,
    fault_tolerant: Annotated[
        bool, typer.Option("--fault-tolerant", help="Let other ranks live when one has died.")
    ] = False,
    account: Annotated[str, typer.Option(help="Account, project or bank.")] = "",
    partition: Annotated[str, typer.Option("--partition", "--queue", help="Where it runs.")] = "",
    module: Annotated[list[str] | None, typer.Option(help="To load; may be repeated.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="To set; may be repeated.")
    ] = None,
) -> None:
    """Print a job script for a batch system. Options come before CONFIG."""
    from mpiserve.launch import jobscript as writer
    from mpiserve.launch.plan import plan as make

    with _usage():
        made = make(_checked(config), ranks, ranks_per_node)
        command = shlex.join(["python", "-m", "mpiserve", *sys.argv[1:]])
        job = writer.Job(
            *(config, program, made, mpi, time, gpus_per_node, het, command),
            *(account, partition, module or (), env or (), fault_tolerant),
        )
        print(writer.jobscript(site, job), end="")


@contextmanager
def _usage() -> Iterator[None]:
    """Print an error in one line, and exit with status 2."""
    try:
        yield
    except Error as error:
        print(f"mpiserve: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _checked(config: str) -> Config:
    from mpiserve.config import Config

    with _usage():
        return Config.load(config)


@app.command()
def config(
    cflags: Annotated[bool, typer.Option("--cflags", help="To compile C and C++.")] = False,
    libs: Annotated[bool, typer.Option("--libs", help="To link C and C++.")] = False,
    fflags: Annotated[bool, typer.Option("--fflags", help="To compile Fortran.")] = False,
    flibs: Annotated[bool, typer.Option("--flibs", help="To link Fortran.")] = False,
    cmake_dir: Annotated[bool, typer.Option("--cmake-dir", help="For mpiserve_DIR.")] = False,
    pkg_config_dir: Annotated[
        bool, typer.Option("--pkg-config-dir", help="For PKG_CONFIG_PATH.")
    ] = False,
    world: Annotated[
        bool, typer.Option("--world", help="The library to preload: docs/guide/mpi-comm-world.md.")
    ] = False,
) -> None:
    """Print the flags to compile and link a program in C, C++ or Fortran, on one line."""
    from mpiserve.tools import build_flags

    wanted = {name for name, asked in locals().items() if asked is True}
    order = ("cflags", "fflags", "libs", "flibs", "cmake_dir", "pkg_config_dir", "world")
    if not wanted:
        print("mpiserve: config needs an option, such as --cflags: see --help", file=sys.stderr)
        raise typer.Exit(2)
    try:
        print(*(getattr(build_flags, name)() for name in order if name in wanted))
    except Error as error:
        print(f"mpiserve: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few sizes and rounds.")] = False,
    json: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write all rows to FILE.")
    ] = None,
    hosts: Annotated[
        bool, typer.Option("--hosts", help="2 ranks of two nodes: measure the wire between them.")
    ] = False,
    plots: Annotated[
        str | None, typer.Option("--plots", metavar="DIR", help="Draw pictures into DIR.")
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="NAME",
            help="latency, overlap, engines, derivatives, starts, isolation, restart, loadgen, "
            "scale, scrape, capture, lockstep, reproducible, strong_scaling, paper; repeatable.",
        ),
    ] = None,
) -> None:
    """Measure mpiserve, lower bounds and alternatives, on 2 ranks of one node or of two."""
    with _mpi():
        from mpiserve.bench import main as program
    raise typer.Exit(program.bench(quick, json, plots, hosts, case or ()))


@app.command()
def report(
    name: Annotated[
        str,
        typer.Argument(metavar="FILE|FOLDER", help="mpiserve-profile.json, or a folder of parts."),
    ],
    picture: Annotated[
        str | None, typer.Option(metavar="FILE.png", help="Draw it too, with matplotlib.")
    ] = None,
) -> None:
    """Print the report of a job with MPISERVE_PROFILE=summary, however the job ended."""
    from mpiserve.tools import report as program

    raise typer.Exit(program.report(name, picture))


@app.command()
def top(
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print an object a line.")] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time between two looks.")
    ] = 1.0,
) -> None:
    """Show what the services of your running jobs on this node do, until Ctrl-C."""
    from mpiserve.tools import top as program

    raise typer.Exit(program.top(once=once, as_json=json, every=every))


@app.command()
def metrics(
    textfile: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write a file for each job there.")
    ] = None,
    socket: Annotated[
        str | None, typer.Option(metavar="PATH", help="Answer scrapes at a unix socket.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Answer scrapes at a port of this host; 0: any."),
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The token that a port asks for.")
    ] = None,
    job: Annotated[
        int | None, typer.Option(metavar="RUN", help="Of one job, until it has ended.", hidden=True)
    ] = None,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time between two files.")
    ] = 5.0,
) -> None:
    """Print the metrics of your running jobs on this node, as Prometheus reads them."""
    from mpiserve.tools import metrics as program

    if sum(option is not None for option in (textfile, socket, port)) > 1:
        raise typer.BadParameter("one of --textfile, --socket and --port")
    if textfile is not None:
        raise typer.Exit(program.textfile(textfile, job, every))
    if socket is not None or port is not None:
        raise typer.Exit(program.listen(path=socket, port=port, token_file=token_file, run=job))
    raise typer.Exit(program.once(job))


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="To check the size of its windows.")
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what your dead jobs left on the nodes.")
    ] = False,
) -> None:
    """Check the set-up of the ranks that it runs on, and suggest remedies."""
    checked = _checked(config) if config else None
    with _mpi():
        from mpiserve.tools import doctor as program
    raise typer.Exit(program.doctor(checked, clean=clean))


@app.command()
def info() -> None:
    """Print versions, the MPI library, transports and the thread level."""
    from mpiserve.tools import info as program

    with _mpi():
        program.info()


@contextmanager
def _mpi() -> Iterator[None]:
    """Print why there is no MPI, or not the one that mpiserve is for, and exit with status 1."""
    from mpiserve.mpi import families

    try:
        families.require()
        yield
    except (Error, ImportError) as error:
        print(f"mpiserve: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _exit(program: str, *args: object, **options: object) -> None:
    with _mpi():
        from mpiserve.launch import run
    raise typer.Exit(getattr(run, program)(*args, **options))
