"""Small random models of every architecture that transformers has for text that goes on."""

from __future__ import annotations

import contextlib
import inspect
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

VOCABULARY = 64
LARGEST = 5_000_000  # parameters
PROMPTS = (9, 3, 1, 12, 5)  # tokens; longer and shorter than a window
ROOM = 10  # new tokens
TIE = 1e-5  # of the largest logit
# What a configuration may have, and how large it is here.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "embed_dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "dim": 32,
    "emb_dim": 32,
    "intermediate_size": 64,
    "ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "n_inner": 64,
    "d_inner": 64,
    "d_ff": 64,
    "dff": 64,
    "ffn_hidden_size": 64,
    "shared_expert_intermediate_size": 64,
    "moe_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "intermediate_size_mlp": 64,
    "expert_ffn_hidden_size": 32,
    "shared_intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "decoder_layers": 2,
    "encoder_layers": 1,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_head": 8,
    "d_kv": 8,
    "global_head_dim": 8,
    "swa_head_dim": 8,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "attention_head_dim": 8,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "rotary_dim": 8,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 4,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 6,
    "window_size": 6,
    "attention_window_size": 6,
    "attention_chunk_size": 6,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_head": 16,
    "n_mamba_heads": 2,
    "mamba_ngroups": 1,
    "mamba_n_groups": 1,
    "ssm_state_size": 8,
    "n_groups": 1,
    "lru_width": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_seq_len": 128,
    "attention_hidden_size": 32,
    "mask_token_id": None,
    "num_nextn_predict_layers": 0,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
# What the sizes above do not fit.
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
OTHERS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {"num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": HYBRID,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16], "num_buckets": 4},
    "xlm": {"pad_index": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layer_types": ["linear_attention", "hybrid", "hybrid"],
        "num_hidden_layers": 3,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "attention_hidden_size": 64,
        "layers_block_type": ["linear_attention", "hybrid"],
        "mamba_headdim": 16,
        "n_mamba_heads": 4,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def names() -> list[str]:
    """Return the kinds of model that there are, by the name of their configuration."""
    from transformers.models.auto import modeling_auto

    return sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def configuration(name: str, **settings: Any) -> Any:
    """Make a small configuration of a kind; of one with parts, the parts are small."""
    import transformers

    kind: Any = type(transformers.AutoConfig.for_model(name))
    parts = {
        part: _sizes(type(value)) | OTHERS.get(f"{name}.{part}", {})
        for part, value in vars(kind()).items()
        if isinstance(value, transformers.PretrainedConfig)
    }
    return kind(**parts | _sizes(kind) | TOKENS | OTHERS.get(name, {}) | settings)


def _sizes(kind: Any) -> dict[str, Any]:
    given = vars(kind())
    fixed = {name for name in SIZES if isinstance(getattr(kind, name, None), property)}
    known = {key for key in SIZES if given.get(key) is not None} - fixed
    known |= {key for key in getattr(kind, "attribute_map", {}) if key in SIZES} - fixed
    sizes = {key: SIZES[key] for key in SIZES if key in known}
    if "kv_lora_rank" in given:  # each head has its own
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    kinds = list(dict.fromkeys(given.get("layer_types") or ()))
    if len(kinds) > 1:
        sizes |= {"layer_types": kinds, "num_hidden_layers": len(kinds)}
    if "is_decoder" in given:
        sizes["is_decoder"] = True
    return sizes


def model(name: str, seed: int = 0, **settings: Any) -> Any:
    """Make a small random model of a kind, whose logits are far apart.

    Raises:
        ValueError: If it would not be small.
    """
    import torch
    import transformers

    config = configuration(name, **settings)
    with torch.device("meta"):
        count = sum(
            x.numel() for x in transformers.AutoModelForCausalLM.from_config(config).parameters()
        )
    if count > LARGEST:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for values in made.parameters():
            if values.dim() > 1:
                torch.nn.init.normal_(values, std=0.3)
    made.generation_config.eos_token_id = None
    return made


def save(name: str, path: Path, **settings: Any) -> Any:
    """Write a small random model of a kind into a directory, and return it."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        made = model(name, **settings)
        made.save_pretrained(path)
    return made


def outcome(name: str, path: Path, **settings: Any) -> str:
    """Serve a small model of a kind, and compare with `generate()`.

    Returns:
        "together", "one by one", "refused: ..." or "wrong: ...".
    """
    import numpy as np
    import transformers
    from language_models import greedy

    from mpiserve.errors import Error

    save(name, path, **settings)
    made = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    random = np.random.default_rng(1)
    lengths = np.array(PROMPTS)
    tokens = random.integers(3, VOCABULARY, (len(lengths), lengths.max()))
    try:
        steps = _served(path, made.dtype)
    except Error as error:
        return f"refused: {error}"
    got, note = _generated(steps, tokens, lengths), ""
    for prompt, length, new in zip(tokens, lengths, got, strict=True):
        wanted = greedy(made, prompt[:length], ROOM)
        if new != wanted and not _tie(made, [*prompt[:length], *wanted], len(wanted), new):
            if new != _whole(made, prompt[:length]):
                return f"wrong: {new} where generate() gives {wanted}"
            note = ", as without a cache; generate() differs"
    return {"BatchDecoder": "together", "SingleDecoder": "one by one"}[
        type(steps._decoder).__name__
    ] + note


def _tie(made: Any, context: list[int], count: int, new: list[int]) -> bool:
    """Whether the first token that differs is as likely as the other, but for rounding."""
    first = next(i for i in range(count) if context[i - count] != new[i])
    logits = _logits(made, context[: len(context) - count + first])
    other, mine = logits[context[first - count]], logits[new[first]]
    return bool((other - mine).abs() < TIE * logits.abs().max())


def _whole(made: Any, prompt: Any) -> list[int]:
    """Continue a prompt without a cache."""
    context = list(prompt)
    for _ in range(ROOM):
        context.append(int(_logits(made, context).argmax()))
    return context[len(prompt) :]


def _logits(made: Any, context: list[int]) -> Any:
    import torch

    ids = torch.tensor([context])
    known = inspect.signature(made.forward).parameters
    more = {"position_ids": torch.arange(ids.shape[1])[None]} if "position_ids" in known else {}
    with torch.inference_mode():
        out = made(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **more)
    return out.logits[0, -1]


def _served(path: Path, dtype: Any) -> Any:
    from mpiserve import backends
    from mpiserve.config import Config

    table = {
        "task": "generate",
        "model": path.name,
        "backend": "torch",
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": [
            {"name": "tokens", "dtype": "int64", "shape": [-1, max(PROMPTS)]},
            {"name": "lengths", "dtype": "int64", "shape": [-1]},
        ],
        "outputs": [{"name": "tokens", "dtype": "int64", "shape": [-1, ROOM]}],
        "max_batch_rows": 8,
    }
    config = Config.from_dict({"service": {"s": table}}, folder=path.parent)
    backend = backends.create(config.services[0])
    backend.load()
    return backend.steps


def _generated(steps: Any, tokens: Any, lengths: Any) -> list[list[int]]:
    """Let prompts join one after the other, and collect what is made of them."""
    said: dict[int, Any] = {}
    for key in range(len(lengths)):
        steps.begin(key, 0, (tokens[key : key + 1], lengths[key : key + 1]))
        if key % 2:
            said |= steps.step()
    while len(said) < len(lengths):
        said |= steps.step()
    for one in said.values():
        if isinstance(one, Exception):
            raise one
    return [said[key]["tokens"][0].tolist() for key in range(len(lengths))]


def table(folder: Path) -> list[str]:
    """Return the rows of the table in docs/guide/language-models.md, a line for each kind."""
    rows = []
    for name in names():
        try:
            with contextlib.redirect_stdout(None):  # some print
                said = outcome(name, folder / name)
        except Exception as error:
            said = f"not tried: no small model of it could be made ({type(error).__name__})"
        shutil.rmtree(folder / name, ignore_errors=True)
        what, _, why = said.partition(": ")
        rows.append(f"| `{name}` | {what} | {reason(why)} |")
    return rows


def reason(text: str) -> str:
    """Shorten why a model is refused, to what was seen; without numbers, which vary."""
    found = re.search(r"one by one, (.*?)\)?$", text)
    short = (found.group(1) if found else text).replace("|", "/")
    return re.sub(r"^logits are \S+ % off.*", "its logits are off, one by one too", short)[:140]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(*table(Path(place)), sep="\n")
