"""Members of an ensemble: each queries three services at once in every step."""

import json
import time
from pathlib import Path

import numpy as np

import mpiserve

OUT = Path(__file__).resolve().parent / "out"
STEPS, ROWS, PROMPT = 5, 512, 8


def words(state):
    """Encode the mean state as tokens for the language model."""
    tokens = 1 + np.clip(20 * (state.mean(axis=0) + 2), 0, 90).astype(np.int64)
    return tokens[None, :], np.array([len(tokens)])


class Timed:
    """A request, and the time from its submission to its reply."""

    def __init__(self, service, *arrays):
        self.begin = time.perf_counter()
        self.request = service.submit(*arrays)

    def result(self):
        result = self.request.result(timeout=60)
        self.end = self.begin + self.request.stats["total_ns"] * 1e-9
        return result


def run(session):
    """Return the queries and answers of each step, and how often requests overlapped."""
    writer, surrogate, risk = map(session.service, ("writer", "surrogate", "risk"))
    random = np.random.default_rng(session.comm.rank)
    state = random.standard_normal((ROWS, 8), dtype=np.float32)
    answered, at_once = [], 0
    for _ in range(STEPS):
        prompt = words(state)
        requests = [Timed(writer, *prompt), Timed(surrogate, state), Timed(risk, state)]
        (tokens, _), change, level = (request.result() for request in requests)
        at_once += max(r.begin for r in requests) < min(r.end for r in requests)
        answered.append((state.copy(), change, level, prompt[0][0], tokens[0]))
        state += 0.1 * change
    return answered, at_once


def compare(answered):
    """Compare all answers with those of the same models in this process."""
    import networks
    import torch
    import transformers

    networks_here = networks.surrogate().eval(), networks.risk().eval()
    llama = transformers.AutoModelForCausalLM.from_pretrained(OUT / "models/llama").eval()
    differences, identical = [0.0, 0.0], True
    for state, change, level, prompt, tokens in answered:
        with torch.inference_mode():
            for i, (network, answer) in enumerate(zip(networks_here, (change, level), strict=True)):
                here = network(torch.from_numpy(state)).numpy()
                differences[i] = max(differences[i], float(abs(here - answer).max()))
            ids = torch.from_numpy(prompt)[None]
            settings = {"max_new_tokens": len(tokens), "do_sample": False}
            here = llama.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        identical = identical and here[0, len(prompt) :].tolist() == tokens.tolist()
    return differences, identical


with mpiserve.open() as session:
    rank = session.comm.rank
    services = {service.name: service.engine for service in session.services}
    answered, at_once = run(session)
    everything = session.comm.gather((answered, at_once))

if rank == 0:
    (mlp, onnx), identical = compare([one for answered, _ in everything for one in answered])
    result = {
        "services": services,
        "members": len(everything),
        "concurrent": all(at_once > 0 for _, at_once in everything),
        "mlp_max_abs_diff": mlp,
        "onnx_max_abs_diff": onnx,
        "llama_tokens_identical": identical,
    }
    (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
