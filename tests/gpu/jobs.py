"""What the simulation ranks of the check's jobs do; each prints one line of JSON at its end.

python -m mpiserve run CONFIG jobs.py NAME
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import mpiserve

SHAPES = {"mlp": (8,), "mlp_ds": (8,), "conv": (3, 16, 16), "fno": (4, 32), "onnx": (8,)}


def on_gpu(session: mpiserve.session.Session) -> bool:
    return bool(session.service("where")(np.zeros((1, 1), np.float32))[0, 0])


def results(session: mpiserve.session.Session) -> dict[str, Any]:
    """Every kind of model, against the same module on this rank's CPU."""
    import models
    import torch

    found: dict[str, Any] = {"gpu": on_gpu(session)}
    generator = np.random.default_rng(1)
    for name, shape in SHAPES.items():
        x = generator.standard_normal((33, *shape)).astype(np.float32)
        module = getattr(models, {"mlp_ds": "mlp", "onnx": "mlp"}.get(name, name))()
        with torch.inference_mode():
            expected = module(torch.from_numpy(x)).numpy()
        served = session.service(name)(x)
        found[name] = float(np.abs(served - expected).max() / np.abs(expected).max())
    return found


def language(session: mpiserve.session.Session) -> dict[str, Any]:
    """Greedy tokens of a small Llama, against those of `generate` on the CPU."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        f"{sys.argv[2]}/llama", dtype=torch.float32
    )
    prompt = np.arange(3, 11, dtype=np.int64)[None, :]
    tokens = model.generate(torch.from_numpy(prompt), max_new_tokens=12, do_sample=False)
    expected = tokens[0, prompt.shape[1] :].tolist()
    served = session.service("llama")(prompt)
    return {"gpu": on_gpu(session), "equal": served[0, : len(expected)].tolist() == expected}


def one_row(session: mpiserve.session.Session) -> dict[str, Any]:
    """Microseconds of a request of one row."""
    service, x = session.service("mlp"), np.ones((1, 8), np.float32)
    out = np.empty_like(x)
    times = []
    for _ in range(3000):
        begin = time.perf_counter()
        service(x, out=out)
        times.append(time.perf_counter() - begin)
    return {"gpu": on_gpu(session)} | quantiles(times[1000:])


def rows(session: mpiserve.session.Session) -> dict[str, Any]:
    """Rows per second of 65,536 rows from all ranks, in lock-step."""
    comm, service = session.comm, session.service("wide")
    mine = 65536 // comm.size
    x, y = service.empty_input(mine), service.empty_output(mine)
    x[:] = 1
    steps = 30
    for step in range(steps + 5):
        if step == 5:
            comm.Barrier()
            begin = time.perf_counter()
        service(x, out=y)
    comm.Barrier()
    return {"gpu": on_gpu(session), "rows_per_s": steps * 65536 / (time.perf_counter() - begin)}


def large(session: mpiserve.session.Session) -> dict[str, Any]:
    """Bytes per second in both directions together, 16 MiB in and out."""
    service = session.service("identity")
    x, y = service.empty_input(4096), service.empty_output(4096)
    x[:] = 1
    times = []
    for _ in range(40):
        begin = time.perf_counter()
        service(x, out=y)
        times.append(time.perf_counter() - begin)
    return {"gpu": on_gpu(session), "bytes_per_s": 2 * x.nbytes / float(np.median(times[10:]))}


def out_of_memory(session: mpiserve.session.Session) -> dict[str, Any]:
    """A request that the GPU has no memory for costs itself alone."""
    service, x = session.service("hungry"), np.ones((2, 4), np.float32)
    found: dict[str, Any] = {"gpu": on_gpu(session), "text": ""}
    try:
        service(-x)
    except mpiserve.errors.ModelError as error:
        found["text"] = error.text
    found["right_after"] = bool((service(x) == 2 * x).all())
    return found


def quantiles(times: list[float]) -> dict[str, float]:
    """In microseconds."""
    p50, p99, most = np.quantile(np.array(times) * 1e6, (0.5, 0.99, 1.0))
    return {"p50_us": float(p50), "p99_us": float(p99), "max_us": float(most)}


def main() -> None:
    job: Callable[[Any], dict[str, Any]] = globals()[sys.argv[1]]
    with mpiserve.open() as session:
        found = job(session)
        if session.comm.rank == 0:
            print("FOUND", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
