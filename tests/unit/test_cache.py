"""Entries of the cache: made once, whole or not at all, and not too many."""

import os
import subprocess
import sys

import pytest

from mpiserve.backends.cache import SUMS, Cache, default_folder
from mpiserve.errors import ModelError


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", limit=1e6)


def writes(text, made=None):
    """Make an entry of one file, and count."""

    def make(folder):
        if made is not None:
            made.append(text)
        (folder / "file").write_text(text)

    return make


def test_an_entry_is_made_once(cache):
    made = []
    assert cache.find("a") is None
    for _ in range(3):
        entry = cache.get("a", writes("1", made))
    assert made == ["1"] and (entry / "file").read_text() == "1"
    assert cache.find("a") == entry


ASK = """\
import os, sys, time
from pathlib import Path
from mpiserve.backends.cache import Cache


def make_slowly(folder):
    time.sleep(2)  # the others come meanwhile
    (folder / "file").write_text(str(os.getpid()))


print((Cache(Path(sys.argv[1])).get("a", make_slowly) / "file").read_text())
"""


def test_processes_that_ask_at_once_get_one_entry(tmp_path):
    folder = tmp_path / "cache"
    command = [sys.executable, "-c", ASK, folder]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0, 0, 0]
    assert not list(folder.glob("new-*"))


def test_what_fails_leaves_nothing(cache):
    def fail(folder):
        (folder / "file").write_text("half")
        raise ValueError("no compiler")

    with pytest.raises(ValueError, match="no compiler"):
        cache.get("a", fail)
    assert cache.find("a") is None and not list(cache.folder.glob("new-*"))
    assert (cache.get("a", writes("1")) / "file").read_text() == "1"


@pytest.mark.parametrize("damage", ["file", "missing", "sums"])
def test_a_damaged_entry_is_made_again(cache, damage):
    entry = cache.get("a", writes("1"))
    if damage == "file":
        (entry / "file").write_text("2")
    elif damage == "missing":
        (entry / "file").unlink()
    else:
        (entry / SUMS).write_text("{")
    assert cache.find("a") is None
    assert (cache.get("a", writes("1")) / "file").read_text() == "1"


def test_the_entries_used_longest_ago_go_first(tmp_path):
    cache = Cache(tmp_path / "cache", limit=2500)
    for i, key in enumerate("ab"):
        entry = cache.get(key, writes(1000 * key))
        os.utime(entry, (i + 1, i + 1))
    cache.find("a")  # which makes it the newest
    cache.get("c", writes(1000 * "c"))
    assert sorted(path.name for path in cache.folder.iterdir() if path.is_dir()) == ["a", "c"]


def test_an_entry_beyond_the_limit_is_kept_while_it_is_the_newest(tmp_path):
    cache = Cache(tmp_path / "cache", limit=10)
    assert cache.get("a", writes("larger than that")).is_dir()
    cache.get("b", writes("larger than that too"))
    assert not (cache.folder / "a").exists()


def test_a_folder_that_others_write_to_is_refused(cache):
    cache.get("a", writes("1"))
    cache.folder.chmod(0o777)
    for call in (lambda: cache.find("a"), lambda: cache.get("b", writes("2"))):
        with pytest.raises(ModelError, match="others may write to it"):
            call()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="MPISERVE_CACHE names another folder"):
        Cache(tmp_path / "file/cache").get("a", writes("1"))


def test_the_environment_names_the_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("MPISERVE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "mpiserve"
    monkeypatch.setenv("MPISERVE_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
