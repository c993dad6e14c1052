"""The routes of the OpenAI API: models, completions, chats and embeddings."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractContextManager, aclosing, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mpiserve.errors import Code, DeadlineError, Error, NotFoundError
from mpiserve.gateway.errors import Refusal, refusal_of
from mpiserve.gateway.hub import Hub
from mpiserve.gateway.infer import announced, find, read_body
from mpiserve.gateway.language import MOST_SEED, Language, Row, drawn
from mpiserve.gateway.logprobs import Logprobs, NewTokens, TokenTexts
from mpiserve.gateway.merging import Queue
from mpiserve.gateway.routes import who
from mpiserve.gateway.statistics import Statistics
from mpiserve.gateway.text_parts import TextParts
from mpiserve.gateway.tokens import Holder
from mpiserve.wire import openai
from mpiserve.wire import openai_server as wire
from mpiserve.wire.openai_server import Choice, FieldError

ROOT = "/v1/"
MOST_BYTES = 8 << 20  # of the body of a request
DEFAULT_TOKENS = {"completions": 16, "chat": None}  # new ones, as the API says; None for all
LOGPROBS = {"completions": "logprobs", "chat": "top_logprobs"}  # the field with the number
MOST_TOLD = 1 << 18  # likelihoods of tokens, of one answer
TOLD_BYTES = 450  # that one of them takes, until its answer is sent
UNKNOWN = {"queue_ns": 0, "compute_ns": 0}  # a stream has many requests

T = TypeVar("T")

logger = logging.getLogger("mpiserve")


class _Work(NamedTuple):
    """One request to continue prompts.

    Attributes:
        language: Of its model.
        request: What the client wants.
        answers: Makes the answer.
        rows: The inputs of each choice.
        limits: The most new tokens of each choice.
        prompt_tokens: Of all prompts.
        until: When it must have ended, of the loop's clock.
        decode: Makes the text of tokens.
        texts: Those of single tokens; None if the client does not ask how likely they are.
    """

    language: Language
    request: wire.Generation
    answers: wire.Answers
    rows: list[Row]
    limits: list[int]
    prompt_tokens: int
    until: float
    decode: Any
    texts: TokenTexts | None

    @property
    def told(self) -> int:
        """How many likelihoods the answer may have."""
        wanted = self.request.logprobs
        return 0 if wanted is None else sum(self.limits) * (1 + wanted)

    def check_told(self, field: str) -> None:
        """Refuse an answer that would take much of the memory.

        Raises:
            FieldError: With the name of the field.
        """
        if self.told > MOST_TOLD:
            text = f"asks for {self.told} likelihoods; {MOST_TOLD} at most"
            raise FieldError(field, f"{text}: lower it, n or max_tokens")

    def logprobs(self) -> Logprobs | None:
        """Return what collects how likely the tokens of a choice are; None for nothing."""
        if self.texts is None or self.request.logprobs is None:
            return None
        return Logprobs(self.texts, self.request.logprobs)


class OpenAIRoutes:
    """The handlers.

    Args:
        hub: The link to the rank.
        statistics: What was answered.
        limit_s: Seconds that a request may take.
    """

    def __init__(self, hub: Hub, statistics: Statistics, limit_s: float) -> None:
        self._hub = hub
        self._statistics = statistics
        self._limit_s = limit_s
        self._since = int(time.time())

    def routes(self) -> list[Route]:
        """Return the routes."""
        get = {openai.MODELS: self.models, f"{openai.MODELS}/{{name}}": self.model}
        post = {
            openai.EMBEDDINGS: self.embeddings,
            openai.COMPLETIONS["completions"]: self.completions,
            openai.COMPLETIONS["chat"]: self.chat,
        }
        made = [Route(path, handler, methods=["GET"]) for path, handler in get.items()]
        return made + [Route(path, handler, methods=["POST"]) for path, handler in post.items()]

    async def models(self, request: Request) -> Response:
        """List the language services."""
        known, me = self._hub.languages.values(), who(request)
        mine = [each for each in known if me.may_use(each.service.name)]
        entries = [self._entry(each) for each in mine if each.generates or each.embeds]
        return _reply(wire.dump({"object": "list", "data": entries}))

    async def model(self, request: Request) -> Response:
        """Describe a language service."""
        return _reply(wire.dump(self._entry(self._find(who(request), request.path_params["name"]))))

    async def completions(self, request: Request) -> Response:
        """Continue prompts."""
        return await self._generate("completions", request)

    async def chat(self, request: Request) -> Response:
        """Continue a chat."""
        return await self._generate("chat", request)

    async def embeddings(self, request: Request) -> Response:
        """Make vectors of texts."""
        with self._held(request):
            wanted = wire.read_embeddings(await _body(request))
            language = self._find(who(request), wanted.model)
            if not language.embeds:
                raise FieldError("model", f"service '{wanted.model}' makes no embeddings")
            return _reply(await _while_there(request, self._embed(language, wanted)))

    # ---- services

    def _find(self, holder: Holder, name: str) -> Language:
        """Find a language service.

        Raises:
            Refusal: If the token of the client is not for it.
            Error: If there is none of this name, or it could not load.
        """
        service = find(self._hub, holder, name, None)
        language = self._hub.languages.get(service.name)
        if language is None or not (language.generates or language.embeds):
            text = f"service '{name}' is for no text; /v1/models lists those that are"
            raise NotFoundError(Code.ENOTFOUND, text)
        return language

    def _entry(self, language: Language) -> dict[str, Any]:
        return wire.model_entry(language.service.name, self._since)

    # ---- embeddings

    async def _embed(self, language: Language, wanted: wire.Embeddings) -> bytes:
        inputs, tokens = await self._embedded_inputs(language, wanted)
        arrays, service = language.embedded(inputs), language.service
        most = service.max_batch_rows
        parts = [[array[at : at + most] for array in arrays] for at in range(0, len(inputs), most)]
        queue = self._hub.queues[service.name]
        with self._statistics.request(service.name) as measured:
            asked = (queue.ask(part, 0, self._limit_s) for part in parts)
            found = await asyncio.gather(*asked)
            measured.answered(len(inputs), found[0][1])
        vectors = np.concatenate([outputs[0].astype(np.float32) for outputs, _ in found])
        if wanted.dimensions not in (None, vectors.shape[1]):
            text = f"the service has vectors of {vectors.shape[1]} numbers"
            raise FieldError("dimensions", text, "unsupported_parameter")
        return wire.embeddings(service.name, vectors, wanted.in_base64, tokens)

    async def _embedded_inputs(
        self, language: Language, wanted: wire.Embeddings
    ) -> tuple[list[Any], int]:
        """Make what the service takes of what the client gives, and count the tokens."""
        inputs = list(wanted.inputs)
        if "tokens" in language.inputs:
            tokens = [await language.tokens_of(each, "input") for each in inputs]
            return tokens, sum(map(len, tokens))
        if not all(isinstance(each, str) for each in inputs):
            raise FieldError("input", "the service takes texts, no tokens")
        return inputs, await language.count(inputs)

    # ---- completions and chats

    async def _generate(self, kind: str, request: Request) -> Response:
        with self._held(request):
            wanted = wire.read_generation(kind, await _body(request))
            language = self._find(who(request), wanted.model)
            work = await self._prepare(kind, language, wanted)
        work.check_told(LOGPROBS[kind])
        if not wanted.stream:
            with self._hub.memory.hold(work.told * TOLD_BYTES):
                return _reply(await _while_there(request, self._answer(work)))
        events = self._events(work)
        # An error before the first event has a status of its own.
        first = await _while_there(request, anext(events))
        return _Events(request, first, events)

    def _held(self, request: Request) -> AbstractContextManager[None]:
        size = announced(dict(request.scope["headers"]), MOST_BYTES)
        return self._hub.memory.hold(size)

    async def _prepare(self, kind: str, language: Language, wanted: wire.Generation) -> _Work:
        if not language.generates:
            raise FieldError("model", f"service '{wanted.model}' generates no text from tokens")
        language.check_sampling(wanted)
        language.check_logprobs(wanted.logprobs, LOGPROBS[kind])
        field = "messages" if kind == "chat" else "prompt"
        prompts = [await language.tokens_of(prompt, field) for prompt in wanted.prompts]
        seed = secrets.randbelow(MOST_SEED)
        rows: list[Row] = []
        limits: list[int] = []
        for tokens in prompts:
            limit = language.limit(tokens, wanted.max_tokens, DEFAULT_TOKENS[kind])
            for _ in range(wanted.n):
                rows.append(language.row(tokens, limit, drawn(wanted, len(rows), seed)))
                limits.append(limit)
        name, now = language.service.name, int(time.time())
        answers = wire.Answers(kind, name, secrets.token_hex(12), now, wanted.stream)
        count, until = sum(map(len, prompts)), asyncio.get_running_loop().time() + self._limit_s
        decode = await language.decode()
        texts = None if wanted.logprobs is None else await language.token_texts()
        return _Work(language, wanted, answers, rows, limits, count, until, decode, texts)

    async def _answer(self, work: _Work) -> bytes:
        """Make the whole answer."""
        choices = [Choice(i, "", None) for i in range(len(work.rows))]
        count = 0
        async with aclosing(self._choices(work)) as parts:
            async for part, tokens in parts:
                choices[part.number] = _joined(choices[part.number], part)
                count += tokens
        if not work.told:
            return work.answers.answer(choices, work.prompt_tokens, count)
        # In a thread: other clients do not wait for a long list.
        made = asyncio.to_thread(work.answers.answer, choices, work.prompt_tokens, count)
        return await made

    async def _choices(self, work: _Work) -> AsyncGenerator[tuple[Choice, int], None]:
        """Yield the parts of all choices as they come, and how many tokens each is.

        Closing the iterator ends them all.
        """
        found: asyncio.Queue[Any] = asyncio.Queue()
        tasks = [asyncio.ensure_future(self._run(work, i, found)) for i in range(len(work.rows))]
        left = len(tasks)
        try:
            with self._statistics.request(work.language.service.name) as measured:
                while left:
                    part = await _next(found, work.until, self._limit_s)
                    if isinstance(part, Exception):
                        raise part
                    left -= part[0].finish is not None
                    yield part
                measured.answered(len(tasks), UNKNOWN)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, work: _Work, index: int, found: asyncio.Queue[Any]) -> None:
        """Put the parts of one choice into a queue, or why there is none."""
        try:
            async with aclosing(self._parts(work, index)) as parts:
                async for part in parts:
                    found.put_nowait(part)
        except Exception as error:
            found.put_nowait(error)

    async def _parts(self, work: _Work, index: int) -> AsyncGenerator[tuple[Choice, int], None]:
        text, logprobs = TextParts(work.decode, work.request.stop), work.logprobs()
        count, finish = 0, ""
        stops, limit = work.language.stops, work.limits[index]
        async with aclosing(self._tokens(work, index)) as some:
            async for new in some:
                before, shown = count, ""
                for at, token in enumerate(new["tokens"][: limit - count].tolist()):
                    if logprobs and token not in stops:
                        logprobs.add(new, at, text.length)
                    shown += text.add(token)
                    count += 1
                    finish = "stop" if text.stopped or token in stops else finish
                    if finish:
                        break
                if finish or count == limit:
                    break
                told = logprobs.take(shown) if logprobs else None
                yield Choice(index, shown, None, before == 0, told), count - before
            else:  # the model has ended it, by a rule of its own
                before, shown, finish = count, "", "stop"
        shown += text.end()
        finish = finish or ("stop" if text.stopped else "")
        told = logprobs.take(shown, all_of_them=not finish) if logprobs else None
        yield Choice(index, shown, finish or "length", before == 0, told), count - before

    def _tokens(self, work: _Work, index: int) -> AsyncGenerator[NewTokens, None]:
        name, row = work.language.service.name, work.rows[index]
        if name in self._hub.streams:
            return self._hub.streams[name].tokens(row)
        return _all_tokens(self._hub.queues[name], row, self._limit_s)

    async def _events(self, work: _Work) -> AsyncGenerator[bytes, None]:
        """Yield the events of an answer; an error behind the first one is an event too."""
        count, begun = 0, False
        try:
            async with aclosing(self._choices(work)) as parts:
                async for part, tokens in parts:
                    count += tokens
                    if part.text or part.finish or part.first:
                        begun = True
                        yield work.answers.event(part)
            if work.request.include_usage:
                yield work.answers.usage_event(work.prompt_tokens, count)
            yield wire.DONE
        except Exception as error:
            if not begun:
                raise
            yield _error_event(error)


def _joined(choice: Choice, part: Choice) -> Choice:
    logprobs = part.logprobs if choice.logprobs is None else choice.logprobs
    if logprobs and part.logprobs and logprobs is not part.logprobs:
        logprobs.extend(part.logprobs)
    return Choice(choice.number, choice.text + part.text, part.finish, logprobs=logprobs)


async def _all_tokens(queue: Queue, row: Row, seconds: float) -> AsyncGenerator[NewTokens, None]:
    """Yield the tokens of a service that has no streams: all of them at its end."""
    service = queue.service
    outputs, _ = await queue.ask([row[tensor.name] for tensor in service.inputs], 0, seconds)
    named = {t.name: array for t, array in zip(service.outputs, outputs, strict=True)}
    count = int(named.pop("lengths")[0])
    yield {name: array[0, :count] for name, array in named.items()}


async def _next(found: asyncio.Queue[Any], until: float, limit_s: float) -> Any:
    try:
        async with asyncio.timeout_at(until):
            return await found.get()
    except TimeoutError:
        raise DeadlineError(Code.EDEADLINE, f"no answer within {limit_s:g} s") from None


class _Events(Response):
    """An answer that goes to the client as it is made; a client that goes away ends it."""

    def __init__(self, request: Request, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(media_type="text/event-stream", headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._request, self._first, self._events = request, first, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        with suppress(Refusal):  # the client has gone
            async with aclosing(self._events):
                await send(head)
                await _while_there(self._request, self._send(send))

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _while_there(request: Request, work: Awaitable[T]) -> T:
    """Work until the client goes away.

    Raises:
        Refusal: If it does; then the work has been cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Refusal(499, "the client has gone")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    headers = dict(request.scope["headers"])
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise Refusal(415, "the body is encoded: send it as it is")
    return await read_body(headers, request.receive, MOST_BYTES)


def _reply(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _error_event(error: Exception) -> bytes:
    refusal = refusal_of(error, "a stream")
    known = isinstance(error, Error)
    return wire.event(wire.error_table(refusal.status, error if known else refusal.text))
