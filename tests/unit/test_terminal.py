import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpiserve import terminal

TERMINAL = io.StringIO()
TERMINAL.isatty = lambda: True
NO_TERMINAL = io.StringIO()


@pytest.mark.parametrize(
    ("environ", "there", "somewhere_else"),
    [
        ({}, True, False),
        ({"TERM": "xterm-256color"}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"CI": "true"}, False, False),
        ({"CI": "false"}, True, False),
        ({"SLURM_JOB_ID": "7"}, False, False),
        ({"PBS_JOBID": "7.host"}, False, False),
        ({"LSB_JOBID": "7"}, False, False),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, False, False),
        ({"PMI_RANK": "0"}, False, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"FORCE_COLOR": "1", "OMPI_COMM_WORLD_SIZE": "4", "CI": "1"}, True, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
    ],
)
def test_colours_and_bars_are_for_people_at_a_terminal(environ, there, somewhere_else):
    assert terminal.live(environ, stream=TERMINAL) is there
    assert terminal.live(environ, stream=NO_TERMINAL) is somewhere_else


def test_a_stream_that_is_closed_is_no_terminal():
    closed = io.StringIO()
    closed.close()
    assert not terminal.live({}, stream=closed)
    assert not terminal.live({}, stream=object())


def test_what_users_name_is_printed_as_it_is(capsys):
    terminal.console().print("[/red] [bold]x :fire:")
    assert capsys.readouterr().out == "[/red] [bold]x :fire:\n"


def test_a_rank_with_a_terminal_of_the_launcher_prints_plain_lines(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    with terminal.Progress() as progress:
        progress.begin("[work]", 200)
        for _ in range(200):
            progress.step()
        progress.console.print("the end")
    lines = stream.getvalue().splitlines()
    assert lines[-2:] == ["[work]: step 200 of 200", "the end"]
    assert len(lines) < 12
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_progress_of_ranks_that_do_not_show_it_is_nothing(capsys):
    with terminal.Progress(shown=False) as progress:
        progress.begin("work", 1)
        progress.step()
    assert capsys.readouterr().out == ""


def test_a_line_is_due_each_tenth_or_each_ten_seconds():
    now = 0.0
    pace = terminal.Pace(1000, clock=lambda: now)
    due = []
    for step in range(1, 1001):  # a second each, then 0.01 s each
        now += 1.0 if step <= 500 else 0.01
        if pace.due(step):
            due.append(step)
    assert due[:4] == [10, 20, 30, 40]
    assert due[-1] == 1000
    assert len([step for step in due if step > 500]) <= 6


def test_everything_is_printed_by_one_console():
    root = Path(__file__).parents[2]
    files = [*(root / "mpiserve").rglob("*.py"), *(root / "examples").rglob("*.py")]
    own = root / "mpiserve/terminal.py"
    for path in files:
        text = path.read_text()
        if path != own:
            assert "rich.console" not in text and "tqdm import" not in text, path
            assert "rich.progress import track" not in text, path
        assert "\\x1b[" not in text and "\\033[" not in text, path


@pytest.mark.parametrize(("columns", "width"), [("", 120), ("150", 150), ("x", 120), ("0", 120)])
def test_a_log_is_as_wide_as_its_tables(monkeypatch, columns, width):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal.console().width == width
    assert terminal.console(width=90).width == 90


C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE], ids=["ascii", "C"])
def test_a_name_that_the_locale_cannot_write_is_spelled_out(tmp_path, setting):
    text = '[service."é"]\nbackend = "echo"\n'
    text += 'inputs = [{ name = "x", dtype = "float32", shape = [-1] }]\n'
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mpiserve", "check", "c.toml"]
    env = os.environ | setting
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\xe9" in done.stdout
