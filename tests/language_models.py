"""Models for tests of other backends and of language models, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def greedy(model: Any, prompt: Any, room: int) -> list[int]:
    """Continue one prompt as transformers does: the reference."""
    import torch

    ids = torch.as_tensor(prompt, dtype=torch.long)[None]
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False
        )
    return out[0, ids.shape[1] :].tolist()


def onnx_file(path: Path, network: Any) -> None:
    """Write a Sequential of Linear and Tanh as an ONNX model from x to y, without torch's exporter.

    That needs one more package, onnxscript, and half a minute.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "x"
    linear = [layer for layer in network if hasattr(layer, "weight")]
    for i, layer in enumerate(network):
        result = "y" if i == len(network) - 1 else f"h{i}"
        if hasattr(layer, "weight"):
            for part in ("weight", "bias"):
                array = getattr(layer, part).detach().numpy()
                weights.append(numpy_helper.from_array(array, f"{part}{i}"))
            names = [name, f"weight{i}", f"bias{i}"]
            nodes.append(helper.make_node("Gemm", names, [result], transB=1))
        else:
            nodes.append(helper.make_node(type(layer).__name__, [name], [result]))
        name = result
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", linear[0].in_features])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", linear[-1].out_features])
    graph = helper.make_graph(nodes, "network", [x], [y], weights)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
