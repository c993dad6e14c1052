"""Read language models from Hugging Face directories, and run the task `embed`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiserve.backends.base import check_options
from mpiserve.backends.language import tasks
from mpiserve.backends.language.model_limits import distance, positions, vocabulary
from mpiserve.backends.language.tokenizer import Texts
from mpiserve.config import ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("mpiserve")

NOT_THERE = "task '{task}' needs transformers: pip install 'mpiserve[language]'"
POOLINGS = ("mean", "first", "last")


def read_directory(service: ServiceConfig, path: Path) -> torch.nn.Module:
    """Read the model of a directory, in the service's dtype or its own, without downloads.

    Raises:
        ModelError: If the service has no task, or transformers or weights are missing.
    """
    import torch

    if service.task is None:
        text = f"{path.name} is a directory: set task = 'generate' or 'embed'"
        raise ModelError(Code.EMODEL, text)
    if not (path / "config.json").is_file():
        raise ModelError(
            Code.EMODEL, f"{path}: not a Hugging Face directory: it has no config.json"
        )
    try:
        import transformers
    except ModuleNotFoundError:
        raise ModelError(Code.EMODEL, NOT_THERE.format(task=service.task)) from None
    transformers.utils.logging.disable_progress_bar()
    generates = service.task == "generate"
    _refuse(service, path, transformers.AutoConfig.from_pretrained(path, local_files_only=True))
    kind: Any = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    dtype = getattr(torch, service.dtype or "", "auto")
    model, loaded = kind.from_pretrained(
        path, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    # transformers warns about missing weights, and makes random ones. The pooler is not used.
    missing = sorted(key for key in loaded["missing_keys"] if not key.startswith("pooler."))
    if missing:
        text = f"{path}: the files lack {len(missing)} weights of the model, such as {missing[0]}"
        raise ModelError(Code.EMODEL, text)
    return model


def _refuse(service: ServiceConfig, path: Path, config: Any) -> None:
    """Refuse kinds of models that the tasks do not support, by name."""
    import transformers

    name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    why, generates = "", service.task == "generate"
    if config.is_encoder_decoder:
        why = "has an encoder and a decoder; the tasks serve models that have only one of them"
    elif generates and type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        why = "is not a causal language model of transformers, so it cannot continue text"
    if why:
        raise ModelError(Code.EMODEL, f"{path.name}: {name} {why}")


def description(module: Any) -> tuple[Any, Any]:
    """Return the arguments with which `empty` makes the same model on another rank."""
    return module.config, getattr(module, "generation_config", None)


def empty(service: ServiceConfig, described: tuple[Any, Any]) -> torch.nn.Module:
    """Make the model of a directory's description, without values."""
    import torch
    import transformers

    config, generation_config = described
    generates = service.task == "generate"
    kind: Any = transformers.AutoModelForCausalLM if generates else transformers.AutoModel
    with torch.device("meta"):
        # The dtype is that of the head's configuration, since there are no values here.
        model = kind.from_config(config, dtype=getattr(torch, service.dtype or "", config.dtype))
    model = model.to_empty(device="cpu")
    model.tie_weights()  # to_empty has untied them
    if generation_config is not None:
        model.generation_config = generation_config
    return model


class Task(ABC):
    """Runs a language model on the tensors of a service's inputs.

    Args:
        service: The service's table.
        model: The model as it was read, with its configuration.
        engine: The callable that runs the model.
        ranks: The number of ranks that run it together.
    """

    def __init__(self, service: ServiceConfig, model: Any, engine: Any, ranks: int) -> None:
        self.service = service
        self.model = model
        self.engine = engine
        self.ranks = ranks
        self.positions = positions(model)
        self._names = [tensor.name for tensor in service.inputs]
        self._check()

    @abstractmethod
    def warm(self) -> None:
        """Run the model once, since warm-up batches of zeros have no tokens to run it on."""

    @abstractmethod
    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Run the task on the tensors of a batch, in the order of the signature."""

    def _check(self) -> None:
        for text in tasks.input_problems(self.service.task or "", self._names):
            raise ModelError(Code.EMODEL, text)
        self._texts = self._tokenizer()

    def _tokenizer(self) -> Texts | None:
        tensors = (*self.service.inputs, *self.service.outputs)
        texts = [tensor for tensor in tensors if tensor.name == "text"]
        if not texts:
            return None
        if any(tensor.dtype != "uint8" or len(tensor.shape) != 2 for tensor in texts):
            raise ModelError(Code.EMODEL, "'text' must be a tensor of uint8, [-1, bytes]")
        path = self.service.folder / str(self.service.model)
        return Texts(path, self.positions, cuts=self.service.task == "embed")

    def named(self, tensors: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
        """Return the inputs by name, always with tokens and lengths.

        Raises:
            ModelError: If lengths or tokens are out of range.
        """
        named = dict(zip(self._names, tensors, strict=True))
        if self._texts and "text" in named:
            named["tokens"], named["lengths"] = self._texts.read(named.pop("text"))
        tokens = named["tokens"] = named["tokens"].long()
        full = tokens.new_full((len(tokens),), tokens.shape[1])
        lengths = named["lengths"] = named["lengths"].long() if "lengths" in named else full
        used = columns(tokens) < lengths[:, None]
        size = vocabulary(self.model)
        if bool((lengths < 0).any()) or bool((lengths > tokens.shape[1]).any()):
            raise ModelError(Code.EMODEL, f"lengths must be 0 to {tokens.shape[1]}")
        if bool(((tokens < 0) | (tokens >= size))[used].any()):
            raise ModelError(Code.EMODEL, f"tokens must be 0 to {size - 1}")
        return named


class Embedder(Task):
    """Computes one vector per row: the last hidden states, pooled over the row's tokens."""

    def _check(self) -> None:
        super()._check()
        self._pooling = self.service.options.get("pooling", "mean")
        self._normalize = self.service.options.get("normalize", True)
        if self._pooling not in POOLINGS:
            key = f"service.{self.service.name}.options.pooling"
            raise ArgumentError(Code.EARG, f"{key}: must be one of: {', '.join(POOLINGS)}")

    def warm(self) -> None:
        """Check on test rows whether rows of different lengths can share a batch."""
        self._by_length = False
        if self._far():
            self._by_length = True
            far = self._far()
            name = type(self.model).__name__
            if far:
                text = f"{name}: a row's vector depends on the other rows of a batch: {far}"
                raise ModelError(Code.EMODEL, text)
            logger.warning(
                "service %s: %s needs rows of one length: rows run in groups of equal length",
                self.service.name,
                name,
            )

    def _far(self) -> str:
        """Embed rows together and alone; describe the difference, or return ""."""
        import torch

        longest, device = min(6, self.positions), next(self.model.parameters()).device
        size = vocabulary(self.model)
        random = torch.Generator().manual_seed(size)
        ids = torch.randint(min(3, size - 1), size, (3, longest), generator=random).to(device)
        lengths = torch.tensor([longest, min(2, longest), longest], device=device)
        together = self._embed(ids, lengths).float()
        alone = [self._embed(ids[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths)]
        wanted = torch.cat(alone).float()
        return distance(together, wanted, next(self.model.parameters()).dtype)

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Embed the rows of a batch."""
        named = self.named(tensors)
        longest = int(named["lengths"].max())
        if longest > self.positions:
            text = f"a row of {longest} tokens; the model has {self.positions} positions"
            raise ModelError(Code.EMODEL, text)
        return self._embed(named["tokens"], named["lengths"])

    def _embed(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        if not self._by_length:
            return self._vectors(tokens, lengths)
        parts = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
        vectors = torch.cat([self._vectors(tokens[rows], lengths[rows]) for rows in parts])
        return vectors[torch.cat(parts).argsort()]

    def _vectors(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        import torch

        width = max(1, int(lengths.max()))
        mask = columns(tokens[:, :width]) < lengths[:, None]
        # Values behind the tokens of a row are arbitrary, and may not be valid tokens.
        ids = torch.where(mask, tokens[:, :width], 0)
        states = self.engine(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = self._pool(states.float(), mask, lengths)
        # A row without tokens has no states: the result of the model is arbitrary.
        pooled = torch.where(lengths[:, None] > 0, pooled, 0)
        if self._normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        return pooled.to(states.dtype)

    def _pool(
        self, states: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        if self._pooling == "first":
            return states[:, 0]
        if self._pooling == "last":
            return states[_rows(states), (lengths - 1).clamp(min=0)]
        weights = mask[:, :, None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def check(service: ServiceConfig, others: tuple[str, ...]) -> None:
    """Refuse options that neither the task nor the backend knows."""
    check_options(service, (*tasks.OPTIONS[service.task or ""], *others))


def columns(tokens: torch.Tensor) -> torch.Tensor:
    """Return the indices of the columns, as one row."""
    import torch

    return torch.arange(tokens.shape[1], device=tokens.device)[None, :]


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.arange(len(tensor), device=tensor.device)
