import pytest

from mpiserve.errors import Code, Error
from mpiserve.mpi import check

OPEN_MPI = "Open MPI v5.0.11, package: Open MPI someone@somewhere Distribution, ident: 5.0.11"
MPICH = "MPICH Version:      5.0.2\nMPICH Release date: unknown\nMPICH ABI: 17:2:5"


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        (OPEN_MPI, ("Open MPI", "5")),
        ("Open MPI 4.1.4", ("Open MPI", "4")),
        (MPICH, ("MPICH", "5")),
        ("MPICH 4.0.2", ("MPICH", "4")),
        ("MPI VERSION    : CRAY MPICH version 8.1.28.2", ("Cray MPICH", "8")),
        ("Intel(R) MPI Library 2021.11 for Linux* OS", ("Intel MPI", "2021")),
    ],
)
def test_vendor_and_major_version_are_read(text, vendor):
    assert check.vendor(text) == vendor


def test_the_mpi_that_it_was_built_with_is_fine():
    assert check.mpi_mismatch("Open MPI 5.0.9", OPEN_MPI) is None


def test_a_build_for_the_abi_of_mpi_5_goes_with_each_mpi_that_has_it():
    assert check.mpi_mismatch("MPI ABI 1.0", "MPICH 5.0.2 (MPI ABI)") is None
    assert check.mpi_mismatch("MPI ABI 1.0", "Open MPI 6.0.0 (MPI ABI)") is None
    assert check.mpi_mismatch("MPI ABI 1.0", MPICH) is not None
    assert check.mpi_mismatch("MPICH 5.0.2", "MPICH 5.0.2 (MPI ABI)") is not None
    # Of two libraries in one process it is not enough.
    two = ("MPICH 5.0.2 (MPI ABI)", "Open MPI 6.0.0 (MPI ABI)")
    assert check.mpi_mismatch(*two, by_family=False) is not None
    assert check.mpi_mismatch(two[0], two[0], by_family=False) is None


class Mpi4py:
    """As much of mpi4py.MPI as is asked for a description."""

    def __init__(self, version):
        self.version = version

    def Get_library_version(self):
        return MPICH

    def Get_abi_version(self):
        return self.version


def test_the_library_of_mpi4py_is_named_with_its_interface():
    assert check.library(Mpi4py((1, 0))) == "MPICH Version: 5.0.2 (MPI ABI)"
    assert check.library(Mpi4py((-1, -1))) == MPICH


@pytest.mark.parametrize(("build", "runtime"), [("Open MPI 4.1.4", OPEN_MPI), (MPICH, OPEN_MPI)])
def test_another_mpi_is_named_with_the_one_of_the_build(build, runtime):
    text = check.mpi_mismatch(build, runtime)
    assert check.short(build) in text
    assert "Open MPI v5.0.11" in text
    assert "\n" not in text
    assert "--no-cache-dir --no-build-isolation" in text


@pytest.mark.parametrize(
    "environ",
    [
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"PMI_SIZE": "4", "PMI_RANK": "2"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0"},
    ],
)
def test_a_world_of_one_that_was_launched_as_more_is_reported(environ):
    text = check.world_mismatch(1, MPICH, environ)
    assert f"{next(iter(environ))}=4" in text
    assert "MPICH Version: 5.0.2" in text


@pytest.mark.parametrize(
    ("size", "environ"),
    [
        (1, {}),
        (4, {"PMI_SIZE": "4"}),
        (1, {"PMI_SIZE": "1"}),
        (1, {"SLURM_NTASKS": "4"}),  # a batch script: the ranks are yet to be started
    ],
)
def test_an_honest_world_is_fine(size, environ):
    assert check.world_mismatch(size, MPICH, environ) is None


def test_the_rank_of_the_launcher_is_known():
    assert check.launched({"PMI_SIZE": "4", "PMI_RANK": "2"}) == ("PMI_SIZE", 4, 2)


def test_what_a_check_finds_is_raised():
    check.require(None)
    with pytest.raises(Error, match="the text") as caught:
        check.require("the text")
    assert caught.value.code == Code.EVERSION
