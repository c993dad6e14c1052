"""Real engines on several ranks, and many clients of one language model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from coupling import PYTHON, RUN, SERVE
from language_models import VOCABULARY, greedy, llama
from safetensors.torch import save_file

WIDTH = 8

BLOCKS = """\
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(8, 32)
        self.fc2 = torch.nn.Linear(32, 8)

    def forward(self, x):
        return x + self.fc2(torch.tanh(self.fc1(x)))


def blocks(seed=5):
    torch.manual_seed(seed)
    return torch.nn.Sequential(Block(), Block())
"""

LLAMA = """\
[service.llama]
model = "llama"
task = "generate"
inputs = [{{ name = "tokens", dtype = "int64", shape = [-1, 8] }},
          {{ name = "lengths", dtype = "int64", shape = [-1] }}]
outputs = [{{ name = "tokens", dtype = "int64", shape = [-1, {room}] }}]
max_batch_rows = 16
max_delay_us = {delay}
"""

SHARDED = """
[service.blocks]
model = "some_blocks:blocks"
version = "blocks"
inputs = [{ name = "x", dtype = "float32", shape = [-1, 8] }]
outputs = [{ name = "y", dtype = "float32", shape = [-1, 8] }]
tensor_parallel = 2
max_batch_rows = 64

[service.blocks.options]
weights = "{version}.safetensors"
injection_policy = { "some_blocks:Block" = [".fc2"] }

"""

ASK_BOTH = """\
import json
import mpiserve
import numpy as np

with mpiserve.open() as session:
    blocks, llama = session.service("blocks"), session.service("llama")
    x = np.random.default_rng(4).standard_normal((5, 8), dtype=np.float32)
    prompts = np.load("prompts.npz")
    new = llama(prompts["tokens"], prompts["lengths"])
    answer = {"y": blocks(x).tolist(), "engine": blocks.engine, "new": new.tolist()}
    print(json.dumps(answer), flush=True)
    for version in ("absent", "others"):
        try:
            session.reload("blocks", version, timeout=100)
        except mpiserve.ModelError as error:
            print(json.dumps({"error": str(error)}), flush=True)
        print(json.dumps({"y": blocks(x).tolist()}), flush=True)
"""


def prompts(folder, rows):
    lengths = np.random.default_rng(1).integers(1, WIDTH + 1, rows)
    tokens = np.random.default_rng(2).integers(1, VOCABULARY, (rows, WIDTH))
    np.savez(folder / "prompts.npz", tokens=tokens, lengths=lengths)
    return [tokens[i, : lengths[i]] for i in range(rows)]


def said(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.takes_long
def test_sharded_models_answer_as_whole_ones_and_one_rank_reads_the_weights(mpiexec, tmp_path):
    # Each rank of serve has a folder of its own, and only those of the heads have weights.
    scope: dict = {}
    exec(BLOCKS, scope)
    blocks = scope["blocks"]()
    given, room = prompts(tmp_path, 3), 8
    for name in ("head", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "some_blocks.py").write_text(
            BLOCKS.replace("manual_seed(seed)", "seed()")
        )
        config = SHARDED + LLAMA.format(room=room, delay=200) + "tensor_parallel = 2\n"
        (tmp_path / name / "c.toml").write_text(config)
    others = scope["blocks"](6)
    for version, made in (("blocks", blocks), ("others", others)):
        save_file(made.state_dict(), tmp_path / f"head/{version}.safetensors")
    model = llama(tmp_path / "head/llama", tie_word_embeddings=True)
    (tmp_path / "sim.py").write_text(ASK_BOTH)

    head, other = ([":", "-n", 1, *SERVE, f"{name}/c.toml"] for name in ("head", "other"))
    done = mpiexec(["-n", 1, PYTHON, "sim.py", *head, *other, *head, *other], timeout=170)

    assert done.returncode == 0
    answer, error, after_error, reloaded = said(done)
    assert "absent.safetensors" in error["error"]
    x = np.random.default_rng(4).standard_normal((5, 8), dtype=np.float32)
    with torch.inference_mode():
        for made, got in ((blocks, answer), (blocks, after_error), (others, reloaded)):
            np.testing.assert_allclose(got["y"], made(torch.from_numpy(x)), atol=1e-5)
    assert answer["engine"] == "deepspeed.inference.engine.InferenceEngine"
    assert answer["new"] == [greedy(model, prompt, room) for prompt in given]


# Each rank asks for one prompt: one after the other, then all at once, in turns.
ASK_AT_ONCE = """\
import json
import time
import mpiserve
import numpy as np

ROUNDS = 2


def wait_for_all(comm):
    # Not in MPI, which spins: those that ask, and the model, are to have the cores.
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(0.01)


with mpiserve.open() as session:
    comm = session.comm
    llama = session.service("llama")
    prompts = np.load("prompts.npz")
    mine = prompts["tokens"][comm.rank :][:1], prompts["lengths"][comm.rank :][:1]
    alone, together = float("inf"), []
    for _ in range(ROUNDS):
        wait_for_all(comm)
        if comm.rank == 0:
            begin = time.perf_counter()
            for i in range(comm.size):
                llama(prompts["tokens"][i : i + 1], prompts["lengths"][i : i + 1])
            alone = min(alone, time.perf_counter() - begin)
        wait_for_all(comm)
        begin = time.perf_counter()
        new = llama(*mine)
        together.append((begin, time.perf_counter()))  # of a clock that the ranks share
    said = {"rank": comm.rank, "new": new.tolist(), "alone": alone, "together": together}
    print(json.dumps(said), flush=True)
"""


@pytest.mark.takes_long
def test_sixteen_clients_are_served_together(mpiexec, tmp_path):
    clients, room = 16, 24
    model = llama(tmp_path / "llama", width=256, layers=4)
    given = prompts(tmp_path, clients)
    # The first rank asks alone while the others count in the census: the delay is what it waits.
    (tmp_path / "c.toml").write_text(LLAMA.format(room=room, delay=5000))
    (tmp_path / "sim.py").write_text(ASK_AT_ONCE)

    done = mpiexec(["-n", clients + 1, *RUN, "c.toml", "sim.py"], timeout=170)

    assert done.returncode == 0
    answers = sorted(said(done), key=lambda one: one["rank"])
    for one, prompt in zip(answers, given, strict=True):
        assert one["new"] == [greedy(model, prompt, room)]
    spans = [
        zip(*times, strict=True)
        for times in zip(*(one["together"] for one in answers), strict=True)
    ]
    alone, together = answers[0]["alone"], min(max(ends) - min(begins) for begins, ends in spans)
    print(f"one at a time {alone:.2f} s, together {together:.2f} s")
    assert together <= 0.35 * alone


# Short prompts are asked for while a long one is under way; then one is read as it is written.
ASK_MEANWHILE = """\
import json
import mpiserve
import numpy as np

with mpiserve.open() as session:
    llama = session.service("llama")
    prompts = np.load("prompts.npz")

    def inputs(i, limit):
        return prompts["tokens"][i : i + 1], prompts["lengths"][i : i + 1], np.array([limit])

    def plain(i, limit):
        return llama.submit(*inputs(i, limit), np.zeros((1, 2), np.int64))

    meanwhile = 0
    for _ in range(3):  # somebody else may have the core just now
        long, count = plain(0, 0), 0
        while not long.done():
            short = plain(1, 1).result()
            count += 1
        meanwhile = max(meanwhile, count)
    pieces = [piece.tolist() for piece in llama.stream(*inputs(2, 0))]
    half = llama.stream(*inputs(3, 0), timeout=60)
    first = next(half).tolist()
    half.close()
    after = llama.stream(*inputs(0, 5))
    said = {"meanwhile": meanwhile, "long": long.result().tokens[0].tolist(), "pieces": pieces}
    said |= {"short": short.tokens[0, :1].tolist(), "first": first}
    said["after"] = np.concatenate(list(after)).tolist()
    print(json.dumps(said), flush=True)
"""


def test_short_prompts_pass_long_ones_and_tokens_come_as_a_stream(mpiexec, tmp_path):
    room = 32
    model = llama(tmp_path / "llama", layers=4)
    given = prompts(tmp_path, 4)
    config = LLAMA.format(room=room, delay=200).replace(
        '{ name = "lengths", dtype = "int64", shape = [-1] }]',
        '{ name = "lengths", dtype = "int64", shape = [-1] },'
        '{ name = "max_new_tokens", dtype = "int64", shape = [-1] },'
        '{ name = "stream", dtype = "int64", shape = [-1, 2] }]',
    )
    wanted = f"shape = [-1, {room}] }}"
    config = config.replace(
        wanted, wanted + ', { name = "lengths", dtype = "int64", shape = [-1] }'
    )
    (tmp_path / "c.toml").write_text(config)
    (tmp_path / "sim.py").write_text(ASK_MEANWHILE)

    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], timeout=100)

    assert done.returncode == 0
    (answer,) = said(done)
    assert answer["meanwhile"] >= 3
    assert answer["long"] == greedy(model, given[0], room)
    assert answer["short"] == greedy(model, given[1], 1)
    assert sum(answer["pieces"], []) == greedy(model, given[2], room)
    assert len(answer["pieces"]) > 3
    assert answer["first"] == greedy(model, given[3], room)[: len(answer["first"])]
    assert answer["after"] == greedy(model, given[0], 5)


# One rank reads a stream, and reloads in the middle of it; the other has always two prompts there.
ASK_OVER_A_RELOAD = """\
import json
import mpiserve
import numpy as np

with mpiserve.open() as session:
    comm, llama = session.comm, session.service("llama")
    prompts = np.load("prompts.npz")

    def inputs(i):
        return prompts["tokens"][i : i + 1], prompts["lengths"][i : i + 1]

    def ask(i):
        return i, llama.submit(*inputs(i), np.zeros((1, 2), np.int64))

    def end(i, request):
        tokens = request.result(timeout=100).tokens[0].tolist()
        return {"version": request.stats["generation"], "prompt": i, "tokens": tokens}

    if comm.rank == 0:
        stream = llama.stream(*inputs(2))
        pieces = [next(stream).tolist()]
        comm.Barrier()
        session.reload("llama", "2", timeout=100)
        pieces += [piece.tolist() for piece in stream]
        print(json.dumps({"answers": [end(*ask(0))], "pieces": pieces}), flush=True)
    else:
        flying, answers = [ask(0), ask(1)], []
        comm.Barrier()
        while not answers or answers[-1]["version"] == 1:
            answers.append(end(*flying.pop(0)))
            flying.append(ask(len(answers) % 2))
        answers += [end(*one) for one in flying]
        print(json.dumps({"answers": answers}), flush=True)
"""


@pytest.mark.takes_long
def test_tokens_are_those_of_the_version_that_took_the_prompt(mpiexec, tmp_path):
    room = 48
    models = {seed: llama(tmp_path / f"llama-{seed}", seed=seed) for seed in (1, 2)}
    given = prompts(tmp_path, 3)
    config = LLAMA.format(room=room, delay=200).replace(
        '"llama"\n', '"llama-{version}"\nversion = "1"\n', 1
    )
    config = config.replace(
        "}]\noutputs", '},{ name = "stream", dtype = "int64", shape = [-1, 2] }]\noutputs'
    )
    lengths = ', { name = "lengths", dtype = "int64", shape = [-1] }]\nmax'
    (tmp_path / "c.toml").write_text(config.replace("]\nmax", lengths))
    (tmp_path / "sim.py").write_text(ASK_OVER_A_RELOAD)

    done = mpiexec(["-n", 3, *RUN, "c.toml", "sim.py"], timeout=100)

    assert done.returncode == 0
    reader, other = sorted(said(done), key=lambda one: "pieces" not in one)
    assert reader["answers"][0]["version"] == 2, "reload() had returned"
    versions = [one["version"] for one in other["answers"]]
    assert versions == sorted(versions)
    assert versions[:2] == [1, 1], "they were there before"
    for one in reader["answers"] + other["answers"]:
        assert one["tokens"] == greedy(models[one["version"]], given[one["prompt"]], room)
    assert sum(reader["pieces"], []) == greedy(models[1], given[2], room)
