"""A client task: what an ensemble of language models knows, and how well it knows that it does."""

import json
from pathlib import Path

import numpy as np
from data import sentences, transitions

import mpiserve
import mpiserve.radical

OUT = Path(__file__).resolve().parent / "out"
MEMBERS, SENTENCES, BINS = 3, 400, 10


def quality(probabilities, truth):
    """Return accuracy, expected calibration error and negative log likelihood."""
    sure, right = probabilities.max(-1), probabilities.argmax(-1) == truth
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    inside = [bins == each for each in np.unique(bins)]
    gaps = [abs(sure[one].mean() - right[one].mean()) * one.mean() for one in inside]
    of_truth = np.take_along_axis(probabilities, truth[:, None], 1)
    return {
        "accuracy": float(right.mean()),
        "ece": float(sum(gaps)),
        "nll": float(-np.log(of_truth).mean()),
    }


if __name__ == "__main__":
    words = sentences(7, SENTENCES)
    tokens, truth = words[:, :-1], words[:, 1:].flatten()
    with mpiserve.connect(mpiserve.radical.endpoint("models")) as session:
        services = [session.service(f"member{i}") for i in range(MEMBERS)]
        requests = [service.submit(tokens) for service in services]
        answers = [request.result(timeout=60) for request in requests]
    flat = [answer.reshape(len(truth), -1).astype(float) for answer in answers]
    result = {
        "members": [quality(probabilities, truth) for probabilities in flat],
        "ensemble": quality(np.mean(flat, 0), truth),
        "language": quality(transitions()[tokens.flatten()], truth),
    }
    np.save(OUT / "probabilities.npy", np.stack(answers))
    (OUT / "uncertainty.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ensemble"]))
