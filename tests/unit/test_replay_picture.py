"""The picture of a replay: differences by share of the rows and by time step."""

import matplotlib.figure
import numpy as np
import pytest

from mpiserve.tools.replay import replay
from mpiserve.tools.replay_picture import Replayed, draw


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw, and return the axes."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *args, **keys: figures.append(self) or save(self, *args, **keys),
    )

    def call(*found):
        draw(found, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        return figures[-1].axes

    return call


def test_differences_are_shown_by_share_and_by_step(drawn):
    largest = {"y": np.array([0, 0.5, 0.1, np.inf]), "z": np.zeros(4)}
    shares, steps = drawn(Replayed("net", largest, np.array([3, 3, 1, 2])))
    y, z = shares.lines
    np.testing.assert_array_equal(y.get_xdata(), [25, 50, 75, 100])
    np.testing.assert_array_equal(y.get_ydata(), [np.nan, 0.1, 0.5, np.inf])
    assert y.get_label() == "y, infinite in 1 rows" and np.isnan(z.get_ydata()).all()
    y, _ = steps.lines
    np.testing.assert_array_equal(y.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(y.get_ydata(), [0.1, np.inf, 0.5])


def test_each_service_with_rows_has_its_own_and_equal_bits_are_said(drawn):
    none = Replayed("none", {}, np.array([]))
    same = Replayed("same", {"y": np.zeros(5)}, np.arange(5))
    axes = drawn(none, same, same)
    assert len(axes) == 4
    assert {text.get_text() for each in axes for text in each.texts} == {"no row differs"}


def test_without_matplotlib_it_is_said_before_anything_runs(capsys, monkeypatch):
    monkeypatch.setattr("mpiserve.tools.replay.find_spec", lambda name: None)
    assert replay("nothing", None, "", 5, "a.png") == 1
    assert "--picture needs matplotlib" in capsys.readouterr().err
