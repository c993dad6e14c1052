"""Check that a model continues sequences with a cache as it does without one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.backends.language.decoding import BatchDecoder, Decoder, SingleDecoder, TokenSequence
from mpiserve.backends.language.model_limits import distance, vocabulary
from mpiserve.config import ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("mpiserve")

PROMPTS = (6, 2, 3)  # lengths; two begin together, the third joins them
TOKENS = (5, 2, 3)  # new tokens of each prompt
LONGEST = 12


class GreedySampler:
    """Takes the likeliest token, and records the logits."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose a token."""
        self.logits.append(logits.float().cpu())
        return logits.argmax()


def trusted(
    service: ServiceConfig,
    model: Any,
    engine: Any,
    stops: frozenset[int],
    ranks: int,
    positions: int,
) -> Decoder:
    """Choose a decoder that continues sequences correctly: in batches, else one by one.

    Args:
        service: The model's service; its option `self_check = false` skips the check.
        model: The model as it was read.
        engine: The callable that runs the model.
        stops: The tokens that end a sequence.
        ranks: The number of ranks that run the model together.
        positions: The number of positions that the model has.

    Raises:
        ModelError: If neither decoder is correct, with the model's class and the difference.
    """
    wanted = service.options.get("self_check", True)
    if not isinstance(wanted, bool):
        key = f"service.{service.name}.options.self_check"
        raise ArgumentError(Code.EARG, f"{key}: must be true or false")
    if not wanted:
        logger.warning(
            "service %s: self_check = false: its model's output is not checked", service.name
        )
        return BatchDecoder(model, engine, stops, ranks)
    faults: list[str] = []
    for kind, how in ((BatchDecoder, "together"), (SingleDecoder, "one by one")):
        fault = _fault(kind, model, engine, ranks, positions)
        if not fault:
            if faults:
                logger.warning(
                    "service %s: sequences of %s run one by one, not in batches: %s",
                    service.name,
                    type(model).__name__,
                    faults[0],
                )
            return kind(model, engine, stops, ranks)
        faults.append(f"{how}, {fault}")
    text = (
        f"task 'generate' cannot serve {type(model).__name__}: step by step it does not continue "
        f"prompts as it does without a cache ({'; '.join(faults)})"
    )
    raise ModelError(Code.EMODEL, text)


def _fault(kind: Any, model: Any, engine: Any, ranks: int, positions: int) -> str:
    """Say what is wrong with a decoder, or return ""."""
    if kind is BatchDecoder and (why := _changing(model.config)):
        return why
    try:
        sequences = _sequences(model, positions)
        _continue(kind(model, engine, frozenset(), ranks), sequences)
        return _difference(model, engine, sequences)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _changing(config: Any) -> str:
    """Say what in a model depends on the longest sequence of a batch, or return "".

    The check itself cannot find this, because its prompts are short.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    if any(one.get("rope_type") == "longrope" for one in kinds):
        return "its positions (longrope) depend on the longest sequence of a batch"
    return ""


def _sequences(model: Any, positions: int) -> list[TokenSequence]:
    """Make random prompts that fit into the model's positions."""
    import torch

    size = vocabulary(model)
    random = torch.Generator().manual_seed(size)
    less = max(0, LONGEST - positions)
    sequences = []
    for length, tokens in zip(PROMPTS, TOKENS, strict=True):
        prompt = torch.randint(min(3, size - 1), size, (max(1, length - less),), generator=random)
        limit = max(1, tokens - max(0, less - 5))
        sequences.append(TokenSequence(prompt.tolist(), limit, GreedySampler()))  # type: ignore[arg-type]
    return sequences


def _continue(decoder: Decoder, sequences: Sequence[TokenSequence]) -> None:
    """Let sequences begin, join and leave: everything that changes caches."""
    decoder.read(sequences[:2])
    decoder.remove_ended()
    if decoder.sequences:
        decoder.advance()
    decoder.read(sequences[2:])
    while decoder.sequences:
        decoder.remove_ended()
        if decoder.sequences:
            decoder.advance()
    for sequence in sequences:
        if sequence.error:
            raise sequence.error


def _difference(model: Any, engine: Any, sequences: Sequence[TokenSequence]) -> str:
    """Compare the logits with those of the model on each whole sequence, without a cache."""
    import torch

    for sequence in sequences:
        seen = torch.stack(sequence.sampler.logits)  # type: ignore[union-attr]
        wanted = _whole(model, engine, sequence)[-len(seen) :].float().cpu()
        if far := distance(seen, wanted, next(model.parameters()).dtype):
            return f"logits are {far}"
    return ""


def _whole(model: Any, engine: Any, sequence: TokenSequence) -> torch.Tensor:
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([sequence.context[:-1]], device=device)
    columns = torch.arange(ids.shape[1], device=device)[None]  # as generate() counts positions
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "position_ids": columns}
    known = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in inputs.items() if name in known}
    logits: torch.Tensor = engine(**inputs).logits[0]
    return logits
