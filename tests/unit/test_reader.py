import os

import pytest

from mpiserve.config import Config
from mpiserve.errors import ConfigError

TEXT = """\
[service.s]
backend = "echo"
inputs = [{ name = "x", dtype = "float32", shape = [-1] }]
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def of(data):
        (tmp_path / "c.toml").write_bytes(data)
        return Config.load("c.toml")

    return of


def line(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"\xef\xbb\xbf" + TEXT.encode(), TEXT.replace("\n", "\r\n").encode()],
    ids=["a mark of UTF-8", "line ends of Windows"],
)
def test_what_other_editors_write_is_read(load, data):
    assert load(data).services[0].name == "s"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le"])
def test_another_encoding_is_named(load, encoding):
    said = line(load, TEXT.encode(encoding))
    assert said.startswith("c.toml: ") and "UTF-8" in said and "UTF-" in said


def test_a_byte_that_is_no_text_has_its_line(load):
    said = line(load, TEXT.encode() + b"# Z\xfcrich\n")
    assert said == "c.toml: line 4: not UTF-8 text, as TOML must be"


def test_a_directory_is_no_configuration(tmp_path):
    assert line(Config.load, tmp_path) == f"{tmp_path}: is a directory; name the TOML file in it"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert line(Config.load, tmp_path / "pipe").endswith("is not a regular file")
    assert line(Config.load, "/dev/zero") == "/dev/zero: is not a regular file"


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(2**40)
    assert "has 1099511627776 bytes, more than" in line(Config.load, tmp_path / "huge.toml")


def test_a_name_of_a_file_moves_no_cursor():
    assert line(Config.load, "a\x1b[2J\n.toml") == "a\\x1b[2J\\n.toml: no such file or directory"
    assert line(Config.load, "a\0b") == "a\\x00b: embedded null byte"
    assert len(line(Config.load, "x" * 10**6)) < 1000


def test_an_integer_of_thousands_of_digits_has_its_line(load):
    said = line(load, TEXT.encode() + b"threads = " + b"9" * 5000)
    assert (
        said == "c.toml: line 4: an integer must fit into 64 bits, this one has thousands of digits"
    )


def test_tables_that_were_built_elsewhere_are_looked_at_too():
    deep = []
    for _ in range(2000):
        deep = [deep]
    for options in ({"a": deep}, {"a": 2**70}):
        service = {"backend": "python", "model": "m:f", "options": options}
        assert "service.s" in line(Config.from_dict, {"service": {"s": service}})
    circle = {}
    circle["a"] = circle
    assert "levels" in line(Config.from_dict, {"service": circle})
