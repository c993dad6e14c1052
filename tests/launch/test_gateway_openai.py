"""A job with a language model, asked through its gateway by the client of the OpenAI API."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

import language_models
import pytest
from coupling import RUN, write
from gateway_job import Job, make
from language_rank import CHAT, PROMPT, ROOM, greedy

for package in ("starlette", "uvicorn", "httptools", "uvloop", "orjson", "transformers"):
    pytest.importorskip(package)
openai = pytest.importorskip("openai")

TCP = """
[gateway]
address = "127.0.0.1:0"
endpoint_file = "endpoint.json"
"""
SERVICE = f"""
[service.assistant]
backend = "torch"
model = "llama"
task = "generate"
max_batch_rows = 8
inputs = [{{ name = "tokens", dtype = "int64", shape = [-1, {PROMPT}] }},
          {{ name = "lengths", dtype = "int64", shape = [-1] }},
          {{ name = "max_new_tokens", dtype = "int64", shape = [-1] }},
          {{ name = "temperature", dtype = "float32", shape = [-1] }},
          {{ name = "seed", dtype = "int64", shape = [-1] }},
          {{ name = "stream", dtype = "int64", shape = [-1, 2] }}]
outputs = [{{ name = "tokens", dtype = "int64", shape = [-1, {ROOM}] }},
           {{ name = "lengths", dtype = "int64", shape = [-1] }},
           {{ name = "logprobs", dtype = "float32", shape = [-1, {ROOM}] }},
           {{ name = "top_tokens", dtype = "int32", shape = [-1, {ROOM}, 2] }},
           {{ name = "top_logprobs", dtype = "float32", shape = [-1, {ROOM}, 2] }}]
"""
WAITS = """
from pathlib import Path
import time
import mpiserve
with mpiserve.open() as session:
    session.service("assistant")
    while not Path("stop").exists():
        time.sleep(0.02)
"""
PROMPTS = [f"number {i}" for i in range(16)]


@pytest.fixture
def job(mpiexec, tmp_path):
    """A job, and what its model says to a prompt."""
    folder = tmp_path / "first"
    folder.mkdir()
    model = language_models.llama(folder / "llama", max_position_embeddings=64)
    language_models.tokenizer(folder / "llama", CHAT)
    make(folder, TCP, SERVICE, WAITS)
    with Job(mpiexec, folder, ["-n", 3, *RUN, "c.toml", "sim.py"]) as made:
        made.wanted = lambda prompt: greedy(model, prompt, ROOM)
        yield made
    assert made.done.returncode == 0, made.done.stderr


@pytest.mark.takes_long  # unit/test_gateway_openai has the same client
def test_the_real_client_has_the_models_answers(job):
    with openai.OpenAI(base_url=f"{job.url}/v1", api_key=job.token, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["assistant"]
        made = client.completions.create(
            model="assistant", prompt=PROMPTS[0], temperature=0, max_tokens=ROOM
        )
        assert made.choices[0].text == job.wanted(PROMPTS[0])
        _check_logprobs(client, job)
        chat = client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": "Hi"}], temperature=0
        )
        assert chat.choices[0].message.content == job.wanted("user: Hi assistant:")
        with pytest.raises(openai.BadRequestError, match="takes 48") as error:
            client.completions.create(model="assistant", prompt="x" * 60)
        assert error.value.code == "context_length_exceeded"
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
    assert asyncio.run(_together(job)) == [job.wanted(prompt) for prompt in PROMPTS]


def _check_logprobs(client, job):
    for stream in (False, True):
        made = client.completions.create(
            model="assistant", prompt=PROMPTS[0], temperature=0, logprobs=2, stream=stream
        )
        choices = [event.choices[0] for event in made] if stream else made.choices
        told = [choice.logprobs for choice in choices]
        text = "".join(token for one in told for token in one.tokens if token != "?")
        assert text == "".join(choice.text for choice in choices)
        for one in told:
            for token, own, best in zip(
                one.tokens, one.token_logprobs, one.top_logprobs, strict=True
            ):
                assert len(best) == 2 and own == best[token] == max(best.values()) <= 0


async def _together(job):
    """Sixteen streams, of which every other prompt has a client beside it that goes away."""
    async with openai.AsyncOpenAI(
        base_url=f"{job.url}/v1", api_key=job.token, max_retries=0
    ) as client:

        async def one(prompt, goes=False):
            events = await client.completions.create(
                model="assistant", prompt=prompt, temperature=0, max_tokens=ROOM, stream=True
            )
            text = ""
            async for event in events:
                text += event.choices[0].text
                if goes:
                    await events.close()
                    break
            return text

        leaving = [one(prompt, goes=True) for prompt in PROMPTS[::2]]
        texts = await asyncio.gather(*map(one, PROMPTS), *leaving)
        return texts[: len(PROMPTS)]


REMOTE = """
[service.assistant]
backend = "remote"
model = "assistant"
task = "generate"
options = {{ api = "openai", url = "{url}", token_file = "token" }}
inputs = [{{ name = "text", dtype = "uint8", shape = [-1, 32] }},
          {{ name = "max_new_tokens", dtype = "int64", shape = [-1] }}]
outputs = [{{ name = "text", dtype = "uint8", shape = [-1, 64] }},
           {{ name = "lengths", dtype = "int64", shape = [-1] }}]
"""
ASKS = f"""
import mpiserve
import numpy as np
with mpiserve.open() as session:
    rows = mpiserve.encode_text({PROMPTS!r}, 32)
    out = session.service("assistant")(rows, np.full(len(rows), {ROOM}))
    assert (out.lengths == {ROOM}).all()
    print(*mpiserve.decode_text(out.text), sep="\\n")
"""


@pytest.mark.takes_long
def test_another_job_has_the_models_answers(job, mpiexec, tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    write(folder, ASKS, REMOTE.format(url=job.url))
    (folder / "token").write_text(job.token)
    (folder / "token").chmod(0o600)
    done = mpiexec(["-n", 2, *RUN, "c.toml", "sim.py"], timeout=40, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [job.wanted(prompt) for prompt in PROMPTS]


@pytest.mark.takes_long
def test_a_gateway_that_is_killed_in_mid_stream_leaves_nothing_at_the_model(job):
    """The next process has streams of its own, and the model has room for them at once."""
    with openai.OpenAI(base_url=f"{job.url}/v1", api_key=job.token, max_retries=0) as client:
        events = client.completions.create(
            model="assistant", prompt="Hi", temperature=0, max_tokens=ROOM, n=8, stream=True
        )
        next(iter(events))
        os.kill(job.child(), signal.SIGKILL)
        with suppress(openai.APIError, OSError):
            for _ in events:
                pass
    assert asyncio.run(_together(job)) == [job.wanted(prompt) for prompt in PROMPTS]
