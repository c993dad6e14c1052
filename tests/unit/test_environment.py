import pytest

from mpiserve.config import environment


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5.0), ("1e-3", 0.001), ("-1", 0.0), ("inf", float("inf")), (None, 7.0)],
)
def test_a_time_is_read(monkeypatch, caplog, text, value):
    monkeypatch.delenv("SOME_SECONDS", raising=False)
    if text is not None:
        monkeypatch.setenv("SOME_SECONDS", text)
    assert environment.seconds("SOME_SECONDS", 7.0) == value
    assert caplog.messages == []


@pytest.mark.parametrize("text", ["nan", "10s", "", "x" * 5000, "\x1b[2J"])
def test_a_value_that_is_not_a_time_is_logged_in_a_line(monkeypatch, caplog, text):
    monkeypatch.setenv("SOME_SECONDS", text)
    assert environment.seconds("SOME_SECONDS", 7.0) == 7.0
    (said,) = caplog.messages
    assert said.isprintable() and len(said) < 120
    assert said.startswith("SOME_SECONDS=") and said.endswith("using 7")
