import shlex
import subprocess
import tomllib

import pytest

from mpiserve.config import Config
from mpiserve.errors import ArgumentError
from mpiserve.launch.jobscript import SITES, Job, jobscript, seconds_of
from mpiserve.launch.plan import plan

TEXT = """
[service.a]
backend = "echo"
inputs = [{ name = "x", dtype = "float32", shape = [-1] }]
"""
CONFIG = Config.from_dict(tomllib.loads(TEXT))
QUEUES = [site for site in SITES if site != "mpirun"]


def make(site, program=("./sim",), **options):
    return jobscript(site, Job("c.toml", program, plan(CONFIG, 4, 2), **options))


def refused(site, **options):
    with pytest.raises(ArgumentError) as caught:
        make(site, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("00:15:00", 900),
        ("48:00:00", 48 * 3600),
        ("90", 90 * 60),
        ("90m", 90 * 60),
        ("2h", 2 * 3600),
        ("1h30m", 90 * 60),
        ("1d", 86400),
        ("1d12h", 36 * 3600),
        ("30s", 30),
        ("1-02:00:00", 26 * 3600),
        ("1d-02:00:00", 26 * 3600),
        ("1-02", 26 * 3600),
        ("1-02:30", 26 * 3600 + 1800),
    ],
)
def test_a_time_may_be_written_as_people_do(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    "time",
    ["2:00", "1.5h", "-1", " 2h", "2 h", "2h\n", "h", "two hours", "1:2:3", "2h30", "x" * 5000]
    + ["0", "0h", "400d", "9" * 5000, "٢h"],
)
@pytest.mark.parametrize("site", QUEUES)
def test_a_time_that_sites_read_differently_is_refused(site, time):
    assert refused(site, time=time).startswith("--time ")


@pytest.mark.parametrize(
    ("site", "line"),
    [
        ("slurm", "#SBATCH --time=26:00:30"),
        ("pbs", "#PBS -l walltime=26:00:30"),
        ("lsf", "#BSUB -W 26:01"),
        ("flux", "#flux: --time-limit=1561m"),
    ],
)
def test_each_site_gets_its_own_form(site, line):
    assert line in make(site, time="1d-02:00:30").splitlines()


ACCOUNTS = {
    "slurm": ("#SBATCH --account=abc-1", "#SBATCH --partition=gpu,cpu"),
    "pbs": ("#PBS -A abc-1", "#PBS -q gpu,cpu"),
    "lsf": ("#BSUB -P abc-1", "#BSUB -q gpu,cpu"),
    "flux": ("#flux: --bank=abc-1", "#flux: --queue=gpu,cpu"),
}


@pytest.mark.parametrize("site", QUEUES)
def test_account_and_partition_are_directives(site):
    lines = make(site, account="abc-1", partition="gpu,cpu").splitlines()
    first = next(at for at, line in enumerate(lines) if not line.startswith("#"))
    assert set(ACCOUNTS[site]) <= set(lines[:first])


def test_both_parts_of_a_heterogeneous_job_have_them():
    dedicated = tomllib.loads('[partition]\nplacement = "dedicated"\n' + TEXT + "replicas = 2\n")
    made = plan(Config.from_dict(dedicated), 4, 2)
    text = jobscript("slurm", Job("c.toml", ["./sim"], made, het=True, account="abc"))
    assert text.count("#SBATCH --account=abc") == 2


@pytest.mark.parametrize("site", SITES)
def test_modules_and_variables_are_set(site, tmp_path):
    text = make(site, ["sim.py"], modules=["gcc/12.2", "cuda"], env=["A=b c", "B=$(rm x)", "C="])
    body = text.partition("config=")[0]
    assert body.index("module load gcc/12.2 || exit 1") < body.index("module load cuda || exit 1")
    exports = [line for line in text.splitlines() if line.startswith("export ")]
    shell = "\n".join([*exports, 'printf "%s|" "$A" "$B" "$C"'])
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=10)
    assert done.stdout == "b c|$(rm x)||"
    assert subprocess.run(["bash", "-n"], input=text, text=True, timeout=10).returncode == 0


@pytest.mark.parametrize(
    "word", ["a\nrm -rf x", "a b", "a;b", "$(x)", "`x`", "-x", "a'b", "é", "\x1b"]
)
def test_words_that_would_be_more_than_words_are_refused(word):
    for site in QUEUES:
        assert repr(word) in refused(site, account=word)
        assert repr(word) in refused(site, partition=word)
    assert repr(word) in refused("slurm", modules=[word])


@pytest.mark.parametrize("setting", ["A", "=b", "A B=c", "1A=b", "A-B=c", "A=b\nrm x"])
def test_a_variable_has_a_name_and_a_value(setting):
    assert repr(setting) in refused("pbs", env=[setting])


def test_no_line_of_the_script_begins_in_an_argument():
    for options in ({"program": ["sim.py", "a\nrm x"]}, {"made_by": "x 'a\nrm x'"}):
        assert "a script cannot have unprintable characters" in refused("slurm", **options)


@pytest.mark.parametrize("site", ["slurm", "lsf", "flux"])
@pytest.mark.parametrize("word", ["a b", "$(rm x)", "it's", '"x"', "`x`"])
def test_two_programs_take_plain_words_where_they_stand_in_a_file(site, word):
    """One program, and programs of mpiexec, are quoted for the shell."""
    assert repr(word) in refused(site, program=["./sim", word])
    assert shlex.quote(word) in make(site, ["sim.py", word])
    assert shlex.quote(word) in make("pbs", ["./sim", word])


def test_what_a_site_has_no_place_for_is_refused():
    for option in ("account", "partition"):
        assert "mpirun" in refused("mpirun", **{option: "abc"})
    assert "mpirun" in refused("mpirun", time="2h")
    assert "--mpi" in refused("slurm", mpi="x\ny")
    assert "--gpus-per-node" in refused("pbs", gpus_per_node=-1)


@pytest.mark.parametrize("program", [("./sim",), ("sim.py",)])
@pytest.mark.parametrize(
    ("site", "mpi", "flags"),
    [
        ("slurm", "openmpi", '"${MPIEXEC:-mpiexec}" --with-ft ulfm -n '),
        ("slurm", "mpich", '"${MPISERVE_PMI:-pmi2}" --no-kill --kill-on-bad-exit=0 '),
        ("pbs", "openmpi", '"${MPIEXEC:-mpiexec}" --with-ft ulfm -n '),
        ("pbs", "mpich", '"${MPIEXEC:-mpiexec}" -disable-auto-cleanup -n '),
        ("mpirun", "openmpi", '"${MPIEXEC:-mpiexec}" --with-ft ulfm --map-by slot '),
        ("mpirun", "mpich", '"${MPIEXEC:-mpiexec}" -disable-auto-cleanup -f '),
    ],
)
def test_a_fault_tolerant_job_lets_the_others_live(site, mpi, flags, program):
    text = make(site, program, mpi=mpi, fault_tolerant=True)
    assert flags in text
    assert "kill-on-bad-exit=1" not in text and "all end" not in text
    assert ("#SBATCH --no-kill" in text.splitlines()) == (site == "slurm")
    usual = make(site, program, mpi=mpi)
    assert not any(flag in usual for flag in ("--with-ft", "-disable-auto-cleanup", "--no-kill"))
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize("site", ["lsf", "flux"])
def test_where_nobody_knows_how_ranks_survive_the_option_is_refused(site):
    assert "slurm, pbs, mpirun" in refused(site, fault_tolerant=True)


def test_open_mpi_has_no_fault_tolerant_heterogeneous_job():
    text = TEXT + "replicas = 2\n[partition]\nplacement = 'dedicated'\n"
    made = plan(Config.from_dict(tomllib.loads(text)), 4, 2)
    with pytest.raises(ArgumentError, match="--het"):
        jobscript("slurm", Job("c.toml", ("./sim",), made, het=True, fault_tolerant=True))
