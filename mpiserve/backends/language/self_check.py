"""Whether a model continues sequences step by step as it does without a cache."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpiserve.backends.language.decoding import Alone, Joined, Line, Sequences
from mpiserve.backends.language.model_limits import distance, vocabulary
from mpiserve.config import ServiceConfig
from mpiserve.errors import ArgumentError, Code, ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("mpiserve")

PROMPTS = (6, 2, 3)  # tokens; two begin together, the third joins them
TOKENS = (5, 2, 3)  # that continue each
LONGEST = 12


class Watch:
    """Takes the likeliest token, and keeps the logits."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose one."""
        self.logits.append(logits.float().cpu())
        return logits.argmax()


def trusted(
    service: ServiceConfig,
    model: Any,
    engine: Any,
    stops: frozenset[int],
    ranks: int,
    positions: int,
) -> Sequences:
    """Find out how a model continues sequences rightly: together, or else one by one.

    Args:
        service: Of the model; its option `self_check = false` spares all this.
        model: As it was read.
        engine: What to call.
        stops: Tokens that end a sequence.
        ranks: That run the model together.
        positions: That the model has.

    Raises:
        ModelError: If it does not in any way, with its class and what was seen.
    """
    wanted = service.options.get("self_check", True)
    if not isinstance(wanted, bool):
        key = f"service.{service.name}.options.self_check"
        raise ArgumentError(Code.EARG, f"{key}: must be true or false")
    if not wanted:
        logger.warning("service %s: nothing checks what its model continues", service.name)
        return Joined(model, engine, stops, ranks)
    faults: list[str] = []
    for kind, how in ((Joined, "together"), (Alone, "one by one")):
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
    """Say what is wrong with a way to continue sequences, or ""."""
    if kind is Joined and (why := _changing(model.config)):
        return why
    try:
        lines = _lines(model, positions)
        _continue(kind(model, engine, frozenset(), ranks), lines)
        return _difference(model, engine, lines)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _changing(config: Any) -> str:
    """Say what in a model depends on the longest sequence of a batch, or "".

    It could not be seen: the check's prompts are short.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    if any(one.get("rope_type") == "longrope" for one in kinds):
        return "its positions (longrope) depend on the longest sequence of a batch"
    return ""


def _lines(model: Any, positions: int) -> list[Line]:
    """Make prompts of plain tokens, as long as the model has room for."""
    import torch

    size = vocabulary(model)
    random = torch.Generator().manual_seed(size)
    less = max(0, LONGEST - positions)
    lines = []
    for length, tokens in zip(PROMPTS, TOKENS, strict=True):
        prompt = torch.randint(min(3, size - 1), size, (max(1, length - less),), generator=random)
        lines.append(Line(prompt.tolist(), max(1, tokens - max(0, less - 5)), Watch()))  # type: ignore[arg-type]
    return lines


def _continue(sequences: Sequences, lines: Sequence[Line]) -> None:
    """Let some begin, one join and one leave: all that happens to caches."""
    sequences.read(lines[:2])
    sequences.sweep()
    if sequences.lines:
        sequences.advance()
    sequences.read(lines[2:])
    while sequences.lines:
        sequences.sweep()
        if sequences.lines:
            sequences.advance()
    for line in lines:
        if line.error:
            raise line.error


def _difference(model: Any, engine: Any, lines: Sequence[Line]) -> str:
    """Compare with the model on each whole sequence, without a cache."""
    import torch

    for line in lines:
        seen = torch.stack(line.sampler.logits)  # type: ignore[union-attr]
        wanted = _whole(model, engine, line)[-len(seen) :].float().cpu()
        if far := distance(seen, wanted, next(model.parameters()).dtype):
            return f"logits are {far}"
    return ""


def _whole(model: Any, engine: Any, line: Line) -> torch.Tensor:
    import torch

    device = next(model.parameters()).device
    ids = torch.tensor([line.context[:-1]], device=device)
    columns = torch.arange(ids.shape[1], device=device)[None]  # as generate() counts positions
    mask = torch.ones_like(ids)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False, "position_ids": columns}
    known = inspect.signature(model.forward).parameters
    inputs = {name: value for name, value in inputs.items() if name in known}
    logits: torch.Tensor = engine(**inputs).logits[0]
    return logits
