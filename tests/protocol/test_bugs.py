"""Bugs of the protocol that are planted in the C sources: the C tests must fail."""

import os
import shutil
import sys
from pathlib import Path

import mpijob
import pytest
from cprograms import ASAN, FLAGS, ROOMS, TSAN
from jobs import ROOT, Target
from protocol.bugs import BUGS, MEMORY, THREADS, Bug

MPICC = Target("", Path(sys.prefix)).mpicc
SANITIZER = {THREADS: TSAN, MEMORY: ASAN}
PROGRAMS = sorted({(bug.program, bug.build) for bug in BUGS})
SEEDS = ["41", "60", "30"]  # of the hostile client: from, how many, seconds
TIMEOUT = 150


def run(command, env=None):
    return mpijob.run([*map(str, command)], timeout=TIMEOUT, env=env or dict(os.environ), cwd=ROOT)


def must_run(command):
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr


def flags(build, sources):
    return [*FLAGS, "-I", sources, *SANITIZER[build]]


def compile_room(build, sources, files, objects):
    """Compile files of one room of the library, whose names differ."""
    objects.mkdir(parents=True, exist_ok=True)
    command = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", objects, MPICC, "-c"]
    must_run([*command, *flags(build, sources), f"-I{ROOT}/csrc/include", *sorted(files)])


def link(build, sources, objects, program, output):
    source = ROOT / f"tests/c/{program}.c"
    library = sorted(objects.glob("*/*.o"))
    must_run([MPICC, *flags(build, sources), source, *library, "-lm", "-o", output])


def start(program, build, binary):
    own = {"MPISERVE_TEST_DIR": str(binary.parent)}  # for reports: in the other one are this test's
    if build == THREADS:
        return run([binary], os.environ | own | {"UCX_MEM_EVENTS": "no"})
    env = mpijob.settings() | own | {"MPISERVE_TRANSPORT": "shared", "FUZZ_LIMIT": "20"}
    return run([env["MPIEXEC"], "-n", 4, binary, *SEEDS], env)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """The library's objects without a bug, for each build."""
    folder = tmp_path_factory.mktemp("objects")
    for build in {build for _, build in PROGRAMS}:
        for room in ROOMS:
            files = (ROOT / "csrc" / room).glob("*.c")
            compile_room(build, ROOT / "csrc", files, folder / build / room)
    return folder


def plant(bug, sources):
    path = sources / bug.file
    text = path.read_text()
    for old, new in bug.lines.items():
        assert text.count(old) == 1, f"{bug.file} has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "_"))
def test_each_bug_can_be_planted(bug, tmp_path):
    (tmp_path / bug.file).parent.mkdir()
    shutil.copy(ROOT / "csrc" / bug.file, tmp_path / bug.file)
    plant(bug, tmp_path)


@pytest.mark.takes_long
@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize(("program", "build"), PROGRAMS)
def test_a_program_passes_without_a_bug(program, build, libraries, tmp_path):
    link(build, ROOT / "csrc", libraries / build, program, tmp_path / program)
    done = start(program, build, tmp_path / program)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(2 * TIMEOUT)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "_"))
@pytest.mark.takes_long
def test_a_planted_bug_fails_its_program(bug: Bug, libraries, tmp_path):
    sources, objects = tmp_path / "csrc", tmp_path / "objects"
    shutil.copytree(ROOT / "csrc", sources, ignore=shutil.ignore_patterns("*.f90"))
    plant(bug, sources)
    shutil.copytree(libraries / bug.build, objects, copy_function=os.link)
    file = sources / bug.file
    room = Path(bug.file).parent
    files = [file] if file.suffix == ".c" else [*file.parent.glob("*.c")]  # who includes a header
    for old in files:
        (objects / room / old.name).with_suffix(".o").unlink()
    compile_room(bug.build, sources, files, objects / room)
    link(bug.build, sources, objects, bug.program, tmp_path / bug.program)
    done = start(bug.program, bug.build, tmp_path / bug.program)
    assert done.returncode not in (0, 77), done.stdout + done.stderr
