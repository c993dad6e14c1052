"""Models for tests of other backends and of language models, with random weights."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

ENSEMBLE = Path(__file__).resolve().parents[1] / "examples/06_ensemble"
VOCABULARY = 96


def llama(path: Path, *, seed: int = 0, width: int = 64, layers: int = 2, **settings: Any) -> Any:
    """Write a small Llama into a directory, as Hugging Face lays it out, and return it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        # Else the logits of random weights lie so close that rounding decides between them.
        initializer_range=0.3,
        **(shape | heads | {"eos_token_id": None, "pad_token_id": 0} | settings),
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(path)
    return model


def bert(path: Path, *, seed: int = 0) -> Any:
    """Write a small BERT into a directory, and return it."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(path)
    return model


def tokenizer(path: Path, chat_template: str | None = None) -> None:
    """Write a tokenizer beside a model: a token for each character, the last one for é."""
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    letters = [*map(chr, range(32, 31 + VOCABULARY)), "é"]
    words = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, "?"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    words.decoder = decoders.Fuse()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="?", clean_up_tokenization_spaces=False
    )
    made.chat_template = chat_template
    made.save_pretrained(path)


def greedy(model: Any, prompt: Any, room: int) -> list[int]:
    """Continue one prompt as transformers does: the reference."""
    import torch

    ids = torch.as_tensor(prompt, dtype=torch.long)[None]
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
        )
    return out[0, ids.shape[1] :].tolist()


def logprobs(model: Any, prompt: Any, new: Any) -> Any:
    """Return the logarithms of all tokens' probabilities at each place of a continuation.

    The reference: from the logits of the whole sequence at once, without a cache.
    """
    import torch

    ids = torch.tensor([[*prompt, *new]])
    with torch.inference_mode():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1).numpy()


def onnx_file(path: Path, network: Any) -> None:
    """Write a Sequential of Linear and Tanh as an ONNX model from x to y, as the example does."""
    sys.path.insert(0, str(ENSEMBLE))
    runpy.run_path(str(ENSEMBLE / "make_models.py"))["to_onnx"](network, path)
    sys.path.remove(str(ENSEMBLE))
    sys.modules.pop("networks")
