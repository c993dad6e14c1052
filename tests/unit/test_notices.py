"""Notices that the log contains once, and when."""

import logging
import math

import pytest

from mpiserve.observe import notices
from mpiserve.observe.notices import Alarm, Crowded, Silence


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3), ("0", math.inf), ("soon", 10), ("-1", math.inf), ("nan", 10)]
)
def test_the_limit_is_of_the_environment(monkeypatch, text, seconds):
    monkeypatch.setenv("MPISERVE_WAIT_NOTICE", text)
    assert notices.limit() == seconds


class Lib:
    """Says what a test wants."""

    state = 0, ""

    def waiting(self):
        return self.state


class Bereft:
    count = 0

    def lost(self):
        return self.count, f"{self.count} ranks"


def test_each_death_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(notices, "LOOK", 0.0)
    lib = Bereft()
    losses = notices.Losses(lib)
    for lib.count in (0, 1, 1, 2):
        losses.look()
    texts = [record.getMessage().partition(" has")[0] for record in caplog.records]
    assert texts == ["1 ranks", "2 ranks"]


def test_each_kind_of_silence_is_logged_once(monkeypatch, caplog):
    monkeypatch.setattr(notices, "LOOK", 0)
    lib = Lib()
    silence = Silence(lib)
    for state in [(0, ""), (1, "none yet"), (1, "none yet"), (0, ""), (2, "none"), (1, "none yet")]:
        lib.state = state
        silence.look()
    assert caplog.messages == ["none yet", "none"]


def test_only_long_work_is_logged_again(monkeypatch):
    monkeypatch.setenv("MPISERVE_WAIT_NOTICE", "0.01")
    said, once = [], []
    with Alarm(said.append, again=True), Alarm(once.append):
        while len(said) < 3:
            pass
    assert said == sorted(said) and len(once) == 1
    monkeypatch.setenv("MPISERVE_WAIT_NOTICE", "0")
    with Alarm(said.append), pytest.raises(StopIteration):
        raise StopIteration


class Small:
    batches = 0

    def crowded(self, service):
        return self.batches, 128


def test_batches_of_one_request_are_logged_once_if_others_wait(monkeypatch, caplog):
    monkeypatch.setattr(notices, "LOOK", 0.0)
    lib = Small()
    crowded = Crowded(lib, 0, "s", 64)
    for lib.batches in (0, notices.ALONE - 1):
        crowded.look()
    assert not caplog.messages
    for lib.batches in (notices.ALONE, 1000):
        crowded.look()
    assert caplog.messages == [
        "service s: batches hold one request each: max_batch_rows = 64 is below the 128 rows of "
        "requests that waited together; raise it"
    ]


def test_loading_is_logged_before_it_begins(caplog):
    caplog.set_level(logging.INFO, "mpiserve")
    with notices.loading("service s"):
        assert caplog.messages == ["loading service s"]
