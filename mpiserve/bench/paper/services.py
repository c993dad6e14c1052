"""The services of the experiments, and how a client asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpiserve.bench.coupled import SERVICE, doubles
from mpiserve.bench.paper.loop import Call
from mpiserve.config import Config

CLIENTS = 16  # at most
NOOP, PYTHON, LLAMA = "noop", "python", "llama"
TOKENS = 16  # of a prompt, and of an answer
VOCABULARY = 512


def write_llama(path: Path) -> None:
    """Write a small Llama of random weights, as Hugging Face lays it out."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=None,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(path)


def served(model: str, services: int, tensor_parallel: int, path: str) -> Config:
    """Make the configuration of a service with so many replicas."""
    if model == NOOP:
        return doubles("echo", CLIENTS, replicas=services)
    if model == PYTHON:
        function = {"model": "mpiserve.bench.models:Nothing", "rows": "independent"}
        return doubles("python", CLIENTS, replicas=services, **function)
    return llama(services, tensor_parallel, path)


def llama(services: int, tensor_parallel: int, path: str) -> Config:
    """Make the configuration of the Llama."""
    tokens = {"name": "tokens", "dtype": "int64", "shape": [-1, TOKENS]}
    lengths = {"name": "lengths", "dtype": "int64", "shape": [-1]}
    service = {
        "model": path,
        "task": "generate",
        "tensor_parallel": tensor_parallel,
        "replicas": services,
        "threads": 1,
        "inputs": [tokens],
        "outputs": [tokens, lengths],
        "max_batch_rows": CLIENTS,
    }
    return Config.from_dict({"service": {SERVICE: service}}, source="mpiserve bench")


def caller(service: Any, model: str, rank: int) -> Call:
    """Return what sends a request of one row, and waits for the answer."""
    if model == LLAMA:
        prompt = np.random.default_rng(rank).integers(1, VOCABULARY, (1, TOKENS))
        return lambda: _generate(service, prompt)
    x, y = np.ones(1), np.zeros(1)

    def call() -> None:
        service(x, out=y)

    return call


def _generate(service: Any, prompt: np.ndarray) -> None:
    _, lengths = service(prompt)
    if lengths[0] != TOKENS:
        raise RuntimeError(f"{lengths[0]} new tokens, not {TOKENS}")
