import pickle
import re
from pathlib import Path

import pytest

from mpiserve import config, errors

HEADER = (Path(__file__).parents[2] / "csrc/include/mpiserve.h").read_text()


def enum(name):
    """Return the constants of one enum of mpiserve.h, without their prefix."""
    body = re.search(rf"typedef enum {name} \{{(.*?)\}} {name};", HEADER, re.DOTALL).group(1)
    return {key: int(value) for key, value in re.findall(r"MPISERVE_(\w+) = (-?\d+)", body)}


def macro(name):
    return int(re.search(rf"#define MPISERVE_{name} (\d+)", HEADER).group(1))


def test_codes_are_those_of_the_header():
    assert {code.name: code.value for code in errors.Code} == enum("mpiserve_code")


def test_dtypes_are_those_of_the_header():
    names = {name.upper(): number for number, name in enumerate(config.DTYPES)}
    assert names == enum("mpiserve_dtype")


def test_limits_are_those_of_the_header():
    limits = (config.MAX_DIMS, config.MAX_TENSORS, config.NAME_SIZE)
    assert limits == (macro("MAX_DIMS"), macro("MAX_TENSORS"), macro("NAME_SIZE"))


def test_version_is_that_of_the_header():
    import mpiserve

    parts = [macro(f"VERSION_{part}") for part in ("MAJOR", "MINOR", "PATCH")]
    assert mpiserve.__version__ == ".".join(map(str, parts))


@pytest.mark.parametrize("code", [code for code in errors.Code if code])
def test_every_code_makes_an_error_that_knows_it(code):
    error = errors.from_code(code, "the details")
    assert isinstance(error, errors.Error)
    assert (error.code, error.text, str(error)) == (code, "the details", "the details")


@pytest.mark.parametrize("code", [code for code in errors.Code if code])
def test_errors_travel_between_ranks(code):
    error = pickle.loads(pickle.dumps(errors.from_code(code, "the details")))
    assert type(error) is type(errors.from_code(code))
    assert (error.code, error.text) == (code, "the details")


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        ("EARG", ValueError),
        ("ENAME", ValueError),
        ("ESHAPE", ValueError),
        ("EROWS", ValueError),
        ("EDTYPE", TypeError),
        ("ENOTFOUND", LookupError),
        ("ETIMEOUT", TimeoutError),
    ],
)
def test_errors_are_caught_as_python_expects(code, builtin):
    with pytest.raises(builtin):
        raise errors.from_code(errors.Code[code], "text")


def test_an_unknown_code_is_an_error_too():
    error = errors.from_code(-999, "from a newer library")
    assert type(error) is errors.Error
    assert error.code == -999


def test_an_error_without_a_text_says_its_code():
    assert str(errors.from_code(errors.Code.EMPI)) == "EMPI"
