"""Language models of Hugging Face directories: tasks over padded token tensors."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import check_options
from mpiserve.config import ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

NOT_THERE = "task '{task}' needs transformers: pip install 'mpiserve[language]'"
INPUTS = {
    "generate": (
        "tokens",
        "lengths",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "seed",
    ),
    "embed": ("tokens", "lengths"),
}
OPTIONS = {"generate": ("stop_tokens", "pad_token"), "embed": ("pooling", "normalize")}
POOLINGS = ("mean", "first", "last")


def read_directory(service: ServiceConfig, path: Path) -> torch.nn.Module:
    """Read the model of a directory, in the service's own arithmetic; nothing is fetched.

    Raises:
        ModelError: If the service has no task, transformers is missing, or weights are.
    """
    import torch

    if service.task is None:
        text = f"{path.name} is a directory: say what it is for, task = 'generate' or 'embed'"
        raise ModelError(Code.EMODEL, text)
    if not (path / "config.json").is_file():
        raise ModelError(Code.EMODEL, f"{path}: no config.json, as a Hugging Face directory has")
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModelError(Code.EMODEL, NOT_THERE.format(task=service.task)) from None
    transformers.utils.logging.disable_progress_bar()
    generates = service.task == "generate"
    kind: Any = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    dtype = getattr(torch, service.dtype)
    model, loaded = kind.from_pretrained(
        path, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    # transformers warns, and makes up what is missing. Nobody asks for the pooler's results.
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))
    if missing:
        text = f"{path}: the files lack {len(missing)} weights of the model, such as {missing[0]}"
        raise ModelError(Code.EMODEL, text)
    return model


def empty(service: ServiceConfig, config: Any) -> torch.nn.Module:
    """Make the model that a directory's configuration describes, without values."""
    import torch
    import transformers

    generates = service.task == "generate"
    kind: Any = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    with torch.device("meta"):
        model = kind.from_config(config, dtype=getattr(torch, service.dtype))
    model = model.to_empty(device="cpu")
    model.tie_weights()  # which to_empty takes apart
    return model


def create(service: ServiceConfig, model: torch.nn.Module, engine: Any, ranks: int) -> Task:
    """Make what turns requests into calls of an engine around a model."""
    kind = Generator if service.task == "generate" else Embedder
    return kind(service, model, engine, ranks)


class Task(ABC):
    """What a service does with the model; called with the tensors of its inputs.

    Args:
        service: The service's table.
        model: As it was read, for what it knows of itself.
        engine: What to call.
        ranks: That run it together.
    """

    def __init__(self, service: ServiceConfig, model: Any, engine: Any, ranks: int) -> None:
        self.service = service
        self.model = model
        self.engine = engine
        self.ranks = ranks
        self._names = [tensor.name for tensor in service.inputs]
        self._check()

    @abstractmethod
    def warm(self) -> None:
        """Run the model once: a batch of zeros, whose prompts have no tokens, does not."""

    @abstractmethod
    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run the task on the tensors of a batch, in the order of the signature."""

    def _check(self) -> None:
        task = self.service.task or ""
        for tensor in self.service.inputs:
            if tensor.name not in INPUTS[task]:
                names = ", ".join(INPUTS[task])
                text = f"task '{task}' has no input '{tensor.name}' (one of: {names})"
                raise ModelError(Code.EMODEL, text)
        if "tokens" not in self._names:
            raise ModelError(Code.EMODEL, f"task '{task}' needs an input 'tokens'")

    def _named(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        named = dict(zip(self._names, tensors, strict=True))
        tokens = named["tokens"] = named["tokens"].long()
        full = tokens.new_full((len(tokens),), tokens.shape[1])
        lengths = named["lengths"] = named["lengths"].long() if "lengths" in named else full
        used = _columns(tokens) < lengths[:, None]
        size = self.model.config.vocab_size
        if bool((lengths < 0).any()) or bool((lengths > tokens.shape[1]).any()):
            raise ModelError(Code.EMODEL, f"lengths are 0 to {tokens.shape[1]}")
        if bool(((tokens < 0) | (tokens >= size))[used].any()):
            raise ModelError(Code.EMODEL, f"tokens are 0 to {size - 1}")
        return named


class Embedder(Task):
    """One vector per row: the model's last hidden states, pooled over the row's tokens."""

    def _check(self) -> None:
        super()._check()
        self._pooling = self.service.options.get("pooling", "mean")
        self._normalize = self.service.options.get("normalize", True)
        if self._pooling not in POOLINGS:
            key = f"service.{self.service.name}.options.pooling"
            raise ArgumentError(Code.EARG, f"{key}: must be one of: {', '.join(POOLINGS)}")

    def warm(self) -> None:
        """Embed one token."""
        import torch

        self._embed(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long))

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Embed the rows of a batch."""
        named = self._named(tensors)
        return self._embed(named["tokens"], named["lengths"])

    def _embed(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        width = max(1, int(lengths.max()))
        mask = _columns(tokens[:, :width]) < lengths[:, None]
        # What lies behind a row's tokens is arbitrary, and need not be one that the model knows.
        ids = torch.where(mask, tokens[:, :width], 0)
        states = self.engine(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = self._pool(states, mask, lengths)
        return torch.nn.functional.normalize(pooled, dim=1) if self._normalize else pooled

    def _pool(
        self, states: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        if self._pooling == "first":
            return states[:, 0]
        if self._pooling == "last":
            return states[_rows(states), (lengths - 1).clamp(min=0)]
        weights = mask[:, :, None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class Generator(Task):
    """Continues each row's prompt; all rows of a batch together, until each has ended."""

    def _check(self) -> None:
        super()._check()
        outputs = {tensor.name: tensor for tensor in self.service.outputs}
        if "tokens" not in outputs or not set(outputs) <= {"tokens", "lengths"}:
            text = "task 'generate' has the outputs 'tokens' and, if wanted, 'lengths'"
            raise ModelError(Code.EMODEL, text)
        self._outputs = outputs
        self._room = outputs["tokens"].shape[1]
        config, options = self.model.config, self.service.options
        stops = options.get("stop_tokens", config.eos_token_id)
        stops = [] if stops is None else stops if isinstance(stops, list) else [stops]
        self._stops = stops
        self._pad = options.get("pad_token", config.pad_token_id or 0)
        known = inspect.signature(self.model.forward).parameters
        # Else the logits of a whole prompt are computed, of which the last are used.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def warm(self) -> None:
        """Generate two tokens."""
        import torch

        one = torch.ones(1, dtype=torch.long)
        self._generate({"tokens": torch.zeros(1, 1, dtype=torch.long), "lengths": one})

    def __call__(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Generate for the rows of a batch."""
        return self._generate(self._named(tensors))

    def _generate(self, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        run = Continuation(self, named)
        while len(run.rows):
            run.step()
        results = {"tokens": run.tokens, "lengths": run.counts}
        return {
            name: results[name].to(getattr(torch, tensor.dtype))
            for name, tensor in self._outputs.items()
        }


class Continuation:
    """A batch in generation: rows that have ended leave it, so the others get faster."""

    def __init__(self, task: Generator, named: dict[str, torch.Tensor]) -> None:
        import torch

        self._task = task
        self._cache: Any = None
        tokens, lengths = named["tokens"], named["lengths"]
        n = len(tokens)
        self.tokens = tokens.new_full((n, task._room), task._pad)
        self.counts = tokens.new_zeros(n)
        limits = named.get("max_new_tokens", self.counts).long()
        self._limits = torch.where(limits > 0, limits, task._room).clamp(max=task._room)
        self._samplers = samplers(named, n)
        self._stops = tokens.new_tensor(task._stops)
        self.rows = torch.nonzero(lengths > 0).flatten()
        self._begin(tokens[self.rows], lengths[self.rows])

    def _begin(self, tokens: torch.Tensor, lengths: torch.Tensor) -> None:
        """Push prompts to the right, so that all rows go on in the same column."""
        import torch

        width = int(lengths.max()) if len(lengths) else 0
        source = _columns(tokens[:, :width]) - (width - lengths)[:, None]
        self._mask = (source >= 0).long()
        self._ids = torch.where(source >= 0, tokens.gather(1, source.clamp(min=0)), 0)
        self._positions = source.clamp(min=0)

    def step(self) -> None:
        """Add a token to each row that has not ended."""
        output = self._task.engine(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._task._last_only,
        )
        self._cache = output.past_key_values
        chosen = self._choose(output.logits[:, -1].float())
        self.tokens[self.rows, self.counts[self.rows]] = chosen
        self.counts[self.rows] += 1
        self._advance(chosen)

    def _advance(self, chosen: torch.Tensor) -> None:
        import torch

        full = self.counts[self.rows] >= self._limits[self.rows]
        ended = torch.isin(chosen, self._stops) | full
        self._ids = chosen[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], 1)
        if bool(ended.any()):
            self._keep(torch.nonzero(~ended).flatten())

    def _keep(self, stay: torch.Tensor) -> None:
        self.rows = self.rows[stay]
        self._ids, self._mask = self._ids[stay], self._mask[stay]
        self._positions = self._positions[stay]
        if len(stay):
            self._cache.batch_select_indices(stay)

    def _choose(self, logits: torch.Tensor) -> torch.Tensor:
        chosen = logits.argmax(1)
        for i, row in enumerate(self.rows.tolist()):
            if row in self._samplers:
                chosen[i] = self._samplers[row](logits[i])
        if self._task.ranks > 1:
            import torch.distributed as dist

            # Ranks that went different ways would wait for each other for ever.
            dist.broadcast(chosen, 0)
        return chosen


class Sampler:
    """Draws the tokens of one row, from a stream of numbers of its own."""

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        import torch

        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p if top_p > 0 else 1.0
        self._stream = torch.Generator().manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw one."""
        import torch

        k = self._top_k if 0 < self._top_k < len(logits) else len(logits)
        best, where = (logits.cpu() / self._temperature).topk(k)
        weights = torch.softmax(best, 0)
        # The fewest that make up top_p together, the likeliest always.
        weights[(weights.cumsum(0) - weights) >= self._top_p] = 0
        return where[torch.multinomial(weights, 1, generator=self._stream)[0]]


def samplers(named: dict[str, torch.Tensor], rows: int) -> dict[int, Sampler]:
    """Make a sampler for each row with a temperature; the others take the likeliest token."""

    def at(name: str, row: int) -> Any:
        return named[name][row].item() if name in named else 0

    return {
        row: Sampler(at("temperature", row), at("top_k", row), at("top_p", row), at("seed", row))
        for row in range(rows)
        if at("temperature", row) > 0
    }


def check(service: ServiceConfig, others: tuple[str, ...]) -> None:
    """Refuse options that neither the task nor the backend knows."""
    check_options(service, (*OPTIONS[service.task or ""], *others))


def _columns(tokens: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(tokens.shape[1], device=tokens.device)[None, :]


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(len(tensor), device=tensor.device)
