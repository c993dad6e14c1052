"""Descriptions of jobs as tasks of RADICAL-Pilot, which is not needed for them."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace

import pytest

from mpiserve import radical
from mpiserve.errors import ArgumentError, ConfigError, PeerError, RequestTimeout
from mpiserve.gateway import rank
from mpiserve.launch import guard
from mpiserve.radical import tasks

SERVICE = """
[service.twice]
backend = "python"
model = "model:twice"
threads = 3
replicas = 2
inputs = [{ name = "x", dtype = "float32", shape = [-1, 3] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 3] }]
"""
GATEWAY = "[gateway]\n"


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A folder with a job: c.toml, sim.py, and a program that is no script."""
    (tmp_path / "c.toml").write_text(GATEWAY + SERVICE)
    (tmp_path / "sim.py").write_text("")
    for name in ("simulate", "mpiexec", "python"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def after(task, word):
    arguments = task["arguments"]
    return arguments[arguments.index(word) + 1 :]


def test_a_script_is_one_program_of_all_ranks(job):
    task = radical.coupled_task("c.toml", ["sim.py", "7"], 6, python=job / "python", seconds=60)
    run = [f"{job}/python", "-m", "mpiserve", "run", f"{job}/c.toml", f"{job}/sim.py", "7"]
    assert task == {
        "executable": f"{job}/python",
        "arguments": ["-m", "mpiserve.launch.guard", "--", f"{job}/mpiexec", "-n", "6", *run],
        "ranks": 1,
        "cores_per_rank": 3 + 2 * 3 + 1,
        "environment": {},
        "timeout": 60.0,
    }


@pytest.mark.parametrize("name", ["./python", "python"])
def test_a_python_of_this_folder_runs_in_that_of_the_task_too(job, monkeypatch, name):
    monkeypatch.setenv("PATH", str(job))
    for program in (["sim.py"], ["simulate"]):
        task = radical.coupled_task("c.toml", program, 5, python=name)
        words = [task["executable"], *task["arguments"]]
        pythons = [word for word in words if word.endswith("python")]
        assert len(pythons) >= 2 and set(pythons) == {f"{job}/python"}
        assert after(task, "--")[0] == f"{job}/mpiexec"


def test_another_program_has_those_of_mpiserve_beside_it(job):
    task = radical.coupled_task(
        "c.toml", ["simulate"], 5, uid="wave.1", flags=["--bind-to", "none"]
    )
    words = after(task, "--")[1:]
    run = [sys.executable, "-m", "mpiserve"]
    serve, gate = [[*run, role, f"{job}/c.toml"] for role in ("serve", "gateway")]
    simulate = ["-n", "2", f"{job}/simulate"]
    assert words == ["--bind-to", "none", *simulate, ":", "-n", "2", *serve, ":", "-n", "1", *gate]
    assert task["uid"] == "wave.1" and "timeout" not in task


def test_a_service_is_told_by_the_line_of_its_gateway(job):
    task = radical.service_task("c.toml", 4, uid="models", ready_s=90, cores=2)
    assert task["arguments"][2:5] == ["--ready-within", "90", "--"]
    assert task["arguments"][-1] == str(tasks.IDLE) and tasks.IDLE.is_file()
    assert (task["mode"], task["named_env"]) == ("task.service", "rp")
    assert task["info_pattern"] == "stdout:mpiserve endpoint file: (.*)"
    assert guard.ENDPOINT in inspect.getsource(rank)
    assert task["cores_per_rank"] == 2
    assert "startup_timeout" not in task  # it ends what is ready


@pytest.mark.parametrize("word", ["a b", "$HOME", "a;b", "`id`", "it's", 'a"b', "^ucx"])
def test_a_word_that_a_shell_changes_is_refused(job, word):
    with pytest.raises(ArgumentError, match="shell would change"):
        radical.coupled_task("c.toml", ["sim.py", word], 5)
    with pytest.raises(ArgumentError, match="shell would change"):
        radical.service_task("c.toml", 5, uid="a", flags=[word])


@pytest.mark.parametrize("value", ["a$b", 'a"b', "a`b", "a\\b", "a\nb"])
def test_a_variable_that_a_shell_changes_is_refused(job, value):
    with pytest.raises(ArgumentError, match="environment X="):
        radical.coupled_task("c.toml", ["sim.py"], 5, environment={"X": value})


def test_variables_of_mpis_pass(job):
    environment = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "A": "^ucx b"}
    task = radical.coupled_task("c.toml", ["sim.py"], 5, environment=environment)
    assert task["environment"] == environment


@pytest.mark.parametrize("uid", ["", "a-b", "a b", "1a", "a.", "ä"])
def test_a_service_needs_a_name_that_a_variable_can_have(job, uid):
    with pytest.raises(ArgumentError, match="uid"):
        radical.service_task("c.toml", 4, uid=uid)


def test_a_service_needs_a_gateway_that_is_ready_some_time(job):
    with pytest.raises(ArgumentError, match="ready_s"):
        radical.service_task("c.toml", 4, uid="a", ready_s=0)
    (job / "c.toml").write_text(SERVICE)
    with pytest.raises(ConfigError, match="gateway: missing"):
        radical.service_task("c.toml", 4, uid="a")
    (job / "c.toml").write_text(f'{GATEWAY}endpoint_file = "x\u00e9.json"\n{SERVICE}')
    with pytest.raises(ConfigError, match="gateway.endpoint_file: RADICAL-Pilot reads no"):
        radical.service_task("c.toml", 4, uid="a")


def test_what_cannot_run_is_refused_before_there_is_a_pilot(job, monkeypatch):
    with pytest.raises(ConfigError, match=r"service\.twice"):
        radical.coupled_task("c.toml", ["sim.py"], 2)
    with pytest.raises(ArgumentError, match=r"program 'other\.py': no such file"):
        radical.coupled_task("c.toml", ["other.py"], 5)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ArgumentError, match="no mpiexec beside /nowhere/python"):
        radical.coupled_task("c.toml", ["sim.py"], 5, python="/nowhere/python")


# ---- services, as others see them


def test_a_task_finds_the_endpoint_of_a_service_that_it_names(monkeypatch):
    monkeypatch.setenv("RP_INFO_MY_MODELS", "/run/file.json")
    assert radical.endpoint("my.models") == "/run/file.json"


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (None, "RP_INFO_MODELS is not set: name 'models' in `services`"),
        ("", "RP_INFO_MODELS is empty"),
        ("failed: no model", "service task 'models' failed: no model"),
        ("service is up", "service task 'models' has no endpoint file, but 'service is up'"),
    ],
)
def test_a_task_that_finds_none_is_told_why(monkeypatch, info, text):
    monkeypatch.delenv("RP_INFO_MODELS", raising=False)
    if info is not None:
        monkeypatch.setenv("RP_INFO_MODELS", info)
    with pytest.raises(PeerError) as error:
        radical.endpoint("models")
    assert text in str(error.value)


class Task(SimpleNamespace):
    """A task, which becomes something else after some looks."""

    uid, state, stderr = "models", "AGENT_EXECUTING", ""

    @property
    def info(self):
        self.looks -= 1
        if self.looks == 0:
            self.__dict__.update(self.then)
        return self.__dict__.get("found")


def test_the_wait_for_a_service_ends_when_it_is_ready():
    assert radical.wait_ready(Task(looks=2, then={"found": "/f"})) == "/f"


def test_the_wait_for_a_service_ends_when_the_task_has_ended():
    task = Task(looks=2, then={"state": "FAILED", "stderr": "first\nno room\n"})
    with pytest.raises(PeerError, match="service task 'models' is FAILED: no room"):
        radical.wait_ready(task)
    with pytest.raises(PeerError, match="failed: status 1"):
        radical.wait_ready(Task(looks=1, then={"found": "failed: status 1"}))


def test_the_wait_for_a_service_has_an_end():
    with pytest.raises(RequestTimeout, match=r"not ready after 0\.2 s"):
        radical.wait_ready(Task(looks=99, then={}), 0.2)
