"""The README's smallest program prints what the README says."""

import re
import sys
from pathlib import Path

import mpijob
import tutorial

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


def test_an_own_model_answers_as_the_readme_shows(mpiexec, tmp_path):
    """Without the installation, which tests/wheels/test_newcomer.py tests."""
    steps = list(tutorial.section("README.md", "From pip install to your own model"))
    texts = [text for _, _, text in steps]
    installed = texts.index("pip install ./mpiserve-*.whl mpich")
    left = [step for step in steps[:installed] if step[0] == "file"] + steps[installed + 1 :]

    assert tutorial.follow(left, mpiexec, tmp_path) == 1


def test_errors_that_the_documents_name_exist():
    import mpiserve

    table = README.parent / "docs/guide/troubleshooting.md"
    for document in (README, table):
        named = set(re.findall(r"`(\w+(?:Error|Timeout))", document.read_text()))
        assert named
        assert all(issubclass(getattr(mpiserve, name), mpiserve.Error) for name in named)


def test_commands_without_mpi_jobs(tmp_path):
    (tmp_path / "coupling.toml").write_text(blocks("toml")[0])
    commands = re.findall(r"`python -m mpiserve ([^`]+)`", README.read_text())
    assert {command.split()[0] for command in commands} == {"check", "plan", "info"}
    for command in commands:
        words = [sys.executable, "-m", "mpiserve", *command.split()]
        done = mpijob.run(words, timeout=60, env=mpijob.settings(), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "mpiserve" in done.stdout or "rectifier" in done.stdout


def guide(name, language, word):
    """Return the block of a guide in this language that holds this word."""
    text = (README.parent / f"docs/guide/{name}.md").read_text()
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return next(block for block in found if word in block)


def test_c_program_of_the_guide(mpiexec, tmp_path):
    (tmp_path / "coupling.toml").write_text(blocks("toml")[0])
    (tmp_path / "simulation.c").write_text(guide("c", "c", "mpiserve_open"))
    env = mpijob.settings()
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    compiler = env.get("MPICC", "mpicc")
    build = guide("c", "sh", "mpicc simulation.c").replace("mpicc", compiler)
    done = mpijob.run(["sh", "-e", "-c", build], timeout=60, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    command = [sys.executable, "-m", "mpiserve", "serve", "coupling.toml"]
    result = mpiexec(["-n", "2", "./simulation", ":", "-n", "1", *command], timeout=150)

    assert result.returncode == 0
    assert result.stdout.split("\n")[:2] == ["0 0 0 1"] * 2


def test_backend_class_of_the_guide(mpiexec, tmp_path):
    backend = guide("models", "python", "Backend")
    (tmp_path / "module.py").write_text(backend)
    named = 'backend = "module:Scale"\noptions = { factor = 2.0 }'
    table = blocks("toml")[0].splitlines()
    table[1] = named
    (tmp_path / "coupling.toml").write_text("\n".join(table))
    check = "    assert np.array_equal(y, 2 * x)\n"
    (tmp_path / "simulate.py").write_text(blocks("python")[0] + check)

    command = [sys.executable, "-m", "mpiserve", "serve", "coupling.toml"]
    result = mpiexec(["-n", "1", *command, ":", "-n", "2", sys.executable, "simulate.py"])

    assert result.returncode == 0
    assert "module.Scale" in result.stdout
