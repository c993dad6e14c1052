"""The README's smallest program prints what the README says."""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def section():
    text = README.read_text()
    start = text.index("\n## The smallest coupled program")
    return text[start : text.index("\n## ", start + 1)]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", section(), re.DOTALL | re.MULTILINE)


def test_smallest_program_prints_what_the_readme_shows(mpiexec, tmp_path):
    (tmp_path / "coupling.toml").write_text(blocks("toml")[0])
    (tmp_path / "simulate.py").write_text(blocks("python")[0])
    program, *arguments = blocks("sh")[0].split()
    assert program == "mpiexec"
    arguments[arguments.index("python")] = sys.executable

    result = mpiexec(arguments, timeout=150)

    assert result.returncode == 0
    assert set(result.stdout.splitlines()) == set(blocks("text")[0].splitlines())


def test_submit_snippet_works_in_the_smallest_program(mpiexec, tmp_path):
    program, snippet = blocks("python")
    lines = "".join(f"    {line}\n" for line in snippet.splitlines())
    check = "    assert np.array_equal(y, np.maximum(x, 0))\n"
    (tmp_path / "coupling.toml").write_text(blocks("toml")[0])
    (tmp_path / "simulate.py").write_text(program + lines.replace("=1.0", "=60.0") + check)

    command = [sys.executable, "-m", "mpiserve", "run", "coupling.toml", "simulate.py"]
    result = mpiexec(["-n", "3", *command], timeout=150)

    assert result.returncode == 0


def test_codes_of_the_error_table_exist():
    import mpiserve

    named = set(re.findall(r"`(\w+(?:Error|Timeout))", README.read_text()))
    assert named
    assert all(issubclass(getattr(mpiserve, name), mpiserve.Error) for name in named)
