"""Each rank runs simulations and embeds their descriptions; rank 0 then searches these."""

import json
from pathlib import Path

import numpy as np
from runs import QUESTIONS, RUNS, simulate

import mpiserve

OUT = Path(__file__).resolve().parent / "out"
WIDTH = 256  # bytes of a line, as in coupling.toml
SHOWN = 3


def reference(lines):
    """Embed lines with transformers in this process, one at a time."""
    import torch
    import transformers

    words = transformers.AutoTokenizer.from_pretrained(OUT / "model", local_files_only=True)
    model = transformers.AutoModel.from_pretrained(OUT / "model", local_files_only=True).eval()
    vectors = []
    for line in lines:
        with torch.inference_mode():
            states = model(**words(line, return_tensors="pt")).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(states.mean(0), dim=0).numpy())
    return np.array(vectors)


def rank_lines(lines, vectors, question, vector):
    """Return the lines that answer a question best, with the cosine of the angle."""
    scores = vectors @ vector
    best = np.argsort(-scores)[:SHOWN]
    return {
        "question": question,
        "kind": QUESTIONS[question],
        "answers": [
            {"run": int(i), "kind": RUNS[i].kind, "score": float(scores[i]), "line": lines[i]}
            for i in best
        ],
    }


def show(ranking):
    """Print a table: under each question, the best answers."""
    for one in ranking:
        print(f"\n{one['question']}")
        for answer in one["answers"]:
            print(f"  {answer['score']:5.2f}  run {answer['run']}: {answer['line']}")


def ask(session):
    """Return this rank's lines, rank 0's questions among them, and the vectors of each service."""
    mine = range(session.comm.rank, len(RUNS), session.comm.size)
    lines = {i: simulate(RUNS[i]) for i in mine}
    if session.comm.rank == 0:
        lines |= {question: question for question in QUESTIONS}
    rows = mpiserve.encode_text(lines.values(), WIDTH)
    # There is one service, unless you compare several.
    return lines, {one.name: session.service(one.name)(rows) for one in session.services}


def assemble(everything, name):
    """Return all lines in the order of the runs, then the questions, with a service's vectors."""
    found = {}
    for lines, vectors in everything:
        for (key, line), vector in zip(lines.items(), vectors[name], strict=True):
            found[key] = line, vector
    ordered = [found[key] for key in [*range(len(RUNS)), *QUESTIONS]]
    return [line for line, _ in ordered], np.array([vector for _, vector in ordered])


with mpiserve.open() as session:
    rank = session.comm.rank
    engines = {service.name: service.engine for service in session.services}
    everything = session.comm.gather(ask(session))

if rank == 0:
    answers = {name: assemble(everything, name) for name in engines}
    texts, vectors = next(iter(answers.values()))
    right = reference(texts)
    differences = {name: float(abs(mine - right).max()) for name, (_, mine) in answers.items()}
    n = len(RUNS)
    ranking = [
        rank_lines(texts[:n], vectors[:n], question, vectors[n + i])
        for i, question in enumerate(QUESTIONS)
    ]
    show(ranking)
    found = sum(one["answers"][0]["kind"] == one["kind"] for one in ranking)
    result = {
        "services": engines,
        "max_abs_diff": differences,
        "questions": len(ranking),
        "right_first": found,
        "ranking": ranking,
    }
    (OUT / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{found} of {len(ranking)} questions have the right run first")
