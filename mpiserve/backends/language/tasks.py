"""The tasks of language models: their inputs and options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mpiserve.config.values import shown, suggest

INPUTS = {
    "generate": (
        "text",
        "tokens",
        "lengths",
        "max_new_tokens",
        "temperature",
        "top_k",
        "top_p",
        "seed",
        "stream",
    ),
    "embed": ("text", "tokens", "lengths"),
}
OPTIONS = {
    "generate": ("stop_tokens", "pad_token", "stream_timeout_s", "generation", "self_check"),
    "embed": ("pooling", "normalize"),
}


def input_problems(task: str, names: Sequence[str]) -> Iterator[str]:
    """Yield what is wrong with the names of a task's inputs."""
    for name in names:
        if name not in INPUTS[task]:
            yield f"task '{task}' has no input {shown(name)} {suggest(name, INPUTS[task])}"
    if ("tokens" in names) == ("text" in names):
        yield f"task '{task}' needs an input 'tokens' or an input 'text', and not both"
    if "text" in names and "lengths" in names:
        yield "an input 'text' has no 'lengths': remove 'lengths'; a zero byte ends each text"
