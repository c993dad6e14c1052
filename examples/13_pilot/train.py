"""Train one member of the ensemble: python train.py NUMBER."""

import sys
from pathlib import Path

import torch
from data import WORDS, sentences
from models import LanguageModel
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent / "out"
STEPS, ROWS = 60, 32


def train(number):
    torch.manual_seed(number)
    torch.set_num_threads(1)
    model = LanguageModel()
    words = torch.from_numpy(sentences(100 + number, STEPS * ROWS))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for batch in words.split(ROWS):
        logits = model.logits(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, WORDS), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss.item()


if __name__ == "__main__":
    number = int(sys.argv[1])
    model, loss = train(number)
    OUT.mkdir(exist_ok=True)
    save_file(model.state_dict(), OUT / f"member{number}.safetensors")
    print(f"member {number}: loss {loss:.2f}")
