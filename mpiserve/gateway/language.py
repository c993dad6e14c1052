"""A language service, as the gateway's child knows it: its tokenizer, its limits, its inputs."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.backends.language.model_limits import POSITIONS
from mpiserve.backends.language.tokenizer import read_tokenizer
from mpiserve.gateway.errors import Refusal
from mpiserve.gateway.logprobs import TokenTexts
from mpiserve.gateway.merging import Arrays
from mpiserve.gateway.services import Service
from mpiserve.text import encode_text
from mpiserve.wire.open_inference_server import DTYPES, Tensor
from mpiserve.wire.openai_server import FieldError, Generation

TOO_LONG = "context_length_exceeded"
LONGEST_TOKEN = 512  # bytes: a longer text than this for each token is too long, unread
EOS = "eos_token_id"
MOST_SEED = (1 << 62) - 1
FLOATS = ("FP16", "BF16", "FP32", "FP64")

Row = dict[str, np.ndarray]


class Language:
    """What is known of a language service.

    Args:
        service: The service.
        about: What the rank tells of it.

    Attributes:
        service: The service.
        task: "generate" or "embed".
        inputs: By name.
        stops: Tokens that end a text, as far as the files of the model say.
    """

    def __init__(self, service: Service, about: dict[str, Any]) -> None:
        self.service = service
        self.task: str = about["task"]
        self.inputs = {tensor.name: tensor for tensor in service.inputs}
        self._outputs = {tensor.name: tensor for tensor in service.outputs}
        self._folder = Path(about["folder"]) if about["folder"] else None
        files = [_file(self._folder, name) for name in ("generation_config.json", "config.json")]
        self._positions = _positions(files[1])
        self._vocabulary = files[1].get("text_config", files[1]).get("vocab_size")
        self.stops = frozenset(_stops(about["stop_tokens"], files))
        self._tokenizer: Any = None
        self._texts: TokenTexts | None = None
        self._thread = ThreadPoolExecutor(1)  # a tokenizer is for one thread at a time

    @property
    def generates(self) -> bool:
        """Whether the API can continue prompts with it."""
        has = {"tokens", "lengths"}
        return self.task == "generate" and has <= {*self.inputs} and has <= {*self._outputs}

    @property
    def embeds(self) -> bool:
        """Whether the API can have vectors from it."""
        if self.task == "generate" or len(self.service.outputs) != 1:
            return False
        (output,) = self.service.outputs
        fits = output.datatype in FLOATS and len(output.shape) == 2
        return fits and {*self.inputs} in ({"text"}, {"tokens", "lengths"}) and self._text_fits()

    @property
    def streams(self) -> bool:
        """Whether its tokens can be read as they come."""
        stream, lengths = self.inputs.get("stream"), self._outputs.get("lengths")
        if stream is None or lengths is None:
            return False
        return stream.datatype == "INT64" and lengths.datatype.startswith("INT")

    def _text_fits(self) -> bool:
        text = self.inputs.get("text")
        return text is None or (text.datatype == "UINT8" and len(text.shape) == 2)

    # ---- the tokenizer

    def load(self) -> None:
        """Begin to load the tokenizer, so that the first request finds it; it may fail then."""
        if self.generates:
            self._thread.submit(self._load).add_done_callback(Future.exception)

    async def decode(self) -> Any:
        """Return the function that makes the text of tokens."""
        tokenizer = await self._loaded()
        return lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)

    async def token_texts(self) -> TokenTexts:
        """Return the texts of single tokens."""
        tokenizer, loop = await self._loaded(), asyncio.get_running_loop()
        if self._texts is None:
            self._texts = await loop.run_in_executor(self._thread, TokenTexts, tokenizer)
        return self._texts

    async def tokens_of(self, prompt: Any, field: str) -> list[int]:
        """Make the tokens of a prompt: a text, tokens, or the messages of a chat.

        Raises:
            FieldError: If it is empty or too long, or the model has no chats.
        """
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            tokens: list[int] = prompt
            if self._vocabulary is not None and max(tokens) >= self._vocabulary:
                raise FieldError(field, f"has a token above {self._vocabulary - 1}")
        else:
            self._check_size(prompt, field)
            tokenizer = await self._loaded()
            work = _tokens if isinstance(prompt, str) else _chat_tokens
            loop = asyncio.get_running_loop()
            tokens = await loop.run_in_executor(self._thread, work, tokenizer, prompt)
        if not tokens:
            raise FieldError(field, "has no tokens")
        if len(tokens) > (most := self._most_tokens()):
            text = f"has {len(tokens)} tokens; the service takes {most}"
            raise FieldError(field, text, TOO_LONG)
        return tokens

    async def count(self, texts: list[str]) -> int:
        """Count the tokens of texts; 0 where the model has no tokenizer."""
        if self._folder is None:
            return 0
        tokenizer, loop = await self._loaded(), asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: sum(len(_tokens(tokenizer, text)) for text in texts)
        )

    def _check_size(self, prompt: Any, field: str) -> None:
        texts = [prompt] if isinstance(prompt, str) else [one["content"] for one in prompt]
        if sum(map(len, texts)) > (most := self._most_tokens()) * LONGEST_TOKEN:
            raise FieldError(field, f"is longer than {most} tokens can be", TOO_LONG)

    def _most_tokens(self) -> int:
        return self.inputs["tokens"].most[1]

    async def _loaded(self) -> Any:
        """Wait until the tokenizer is loaded.

        Raises:
            Refusal: If that fails.
        """
        if self._tokenizer is None:
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self._thread, self._load)
            except Exception as error:
                text = f"service '{self.service.name}' has no tokenizer: {str(error)[:200]}"
                raise Refusal(501, " ".join(text.split())) from None
        return self._tokenizer

    def _load(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = self._read()
        return self._tokenizer

    def _read(self) -> Any:
        if self._folder is None:
            raise ValueError("its model is not here")
        try:
            return read_tokenizer(self._folder)
        except ModuleNotFoundError:
            raise ValueError("the gateway needs pip install 'mpiserve[language]'") from None

    # ---- requests

    def limit(self, tokens: list[int], wanted: int | None, default: int | None) -> int:
        """Return how many new tokens a prompt may have.

        Args:
            tokens: The prompt.
            wanted: What the client says, if it does.
            default: What it is then; None for all that fit.

        Raises:
            FieldError: If they are too many.
        """
        room = self._outputs["tokens"].most[1]
        # The model does not read the last token, so it needs no position.
        fits = room if self._positions is None else self._positions + 1 - len(tokens)
        if fits < 1:
            text = f"{len(tokens)} tokens; the model has {self._positions} positions"
            raise FieldError("prompt", text, TOO_LONG)
        most = min(fits, room)
        if wanted is not None and wanted > most:
            why = f"the prompt has {len(tokens)} tokens, and {most} new ones fit"
            raise FieldError("max_tokens", f"is {wanted}: {why}", TOO_LONG)
        return wanted or min(most, default or most)

    def check_sampling(self, request: Generation) -> None:
        """Refuse what the service has no input for, unless its value asks for nothing.

        Raises:
            FieldError: With the name of the field.
        """
        nothing = {"temperature": 0, "top_p": 1, "top_k": 0}
        for name, value in request.sampling.items():
            known = name in self.inputs or value == nothing.get(name)
            if not known and not (name == "seed" and "temperature" not in self.inputs):
                text = f"the service has no input '{name}': it may be {nothing.get(name, 'absent')}"
                raise FieldError(name, text, "unsupported_parameter")

    def check_logprobs(self, wanted: int | None, field: str) -> None:
        """Refuse to tell how likely tokens are where the service has no outputs for that.

        Raises:
            FieldError: With the name of the field.
        """
        if wanted is None:
            return
        if "logprobs" not in self._outputs:
            text = "the service has no output 'logprobs': it does not tell how likely tokens are"
            raise FieldError("logprobs", text, "unsupported_parameter")
        top = self._outputs.get("top_tokens")
        if wanted > (most := top.shape[2] if top else 0):
            text = f"is {wanted}: the service's output 'top_tokens' has room for {most}"
            raise FieldError(field, text, "unsupported_parameter")

    def row(self, tokens: list[int], limit: int, sampling: dict[str, float]) -> Row:
        """Make the inputs of one choice, by name: a row of each, of no stream."""
        values = sampling | {"lengths": len(tokens), "max_new_tokens": limit}
        made = {name: self._scalar(tensor, values) for name, tensor in self.inputs.items()}
        made["tokens"] = padded(self.inputs["tokens"], [tokens])
        if "stream" in made:
            made["stream"] = np.zeros((1, 2), made["stream"].dtype)
        return made

    def _scalar(self, tensor: Tensor, values: dict[str, float]) -> np.ndarray:
        return np.array([values.get(tensor.name, 0)]).astype(DTYPES[tensor.datatype])

    def embedded(self, inputs: list[Any]) -> Arrays:
        """Make the inputs of rows to embed, of texts or tokens as the service takes them.

        Raises:
            WireError: If a text is too long.
        """
        if "text" in self.inputs:
            return [encode_text(inputs, self.inputs["text"].most[1])]
        made = {
            "tokens": padded(self.inputs["tokens"], inputs),
            "lengths": np.array([*map(len, inputs)], DTYPES[self.inputs["lengths"].datatype]),
        }
        return [made[name] for name in self.inputs]


def padded(tensor: Tensor, rows: list[list[int]]) -> np.ndarray:
    """Put tokens into rows of the width of an input."""
    width = tensor.shape[1] if tensor.shape[1] > 0 else max(map(len, rows))
    made = np.zeros((len(rows), width), DTYPES[tensor.datatype])
    for array, row in zip(made, rows, strict=True):
        array[: len(row)] = row
    return made


def drawn(request: Generation, index: int, seed: int) -> dict[str, float]:
    """Return the sampling of one choice: each of a request draws with a seed of its own."""
    made = {"temperature": 1.0, "seed": seed, **request.sampling}
    return made | {"seed": (int(made["seed"]) + index) & MOST_SEED}


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, verbose=False)["input_ids"]
    return found


def _chat_tokens(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        text = "the model has no chat template: ask /v1/completions"
        raise FieldError("messages", text, "unsupported_parameter")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # the template is a program, and may refuse a role
        said = " ".join(str(error).split())[:200]
        raise FieldError("messages", f"the model's chat template refuses them: {said}") from None
    # The template has the special tokens.
    found: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _file(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None:
        return {}
    try:
        table = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _positions(config: dict[str, Any]) -> int | None:
    text = config.get("text_config", config)
    said = [text.get(name) for name in POSITIONS]
    return min((one for one in said if type(one) is int and one > 0), default=None)


def _stops(option: Any, files: list[dict[str, Any]]) -> list[int]:
    """The end tokens, as `generation_settings` finds them."""
    generation, config = files
    text = config.get("text_config", config)
    said = option if option is not None else generation.get(EOS) or text.get(EOS)
    return [] if said is None else said if isinstance(said, list) else [said]
