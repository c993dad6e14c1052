"""Write the models of the services: a small Llama with random weights, and an ONNX network."""

from pathlib import Path

import networks
import torch

MODELS = Path(__file__).resolve().parent / "out/models"
VOCABULARY = 96


def llama(path):
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        # With smaller random weights, logits are so close that rounding decides between tokens.
        initializer_range=0.3,
        eos_token_id=None,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)


def to_onnx(network, path):
    """Write a Sequential of Linear and Tanh, from x to y, without torch's slow exporter."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, name = [], [], "x"
    linear = [layer for layer in network if hasattr(layer, "weight")]
    for i, layer in enumerate(network):
        result = "y" if i == len(network) - 1 else f"h{i}"
        if layer in linear:
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


if __name__ == "__main__":
    MODELS.mkdir(parents=True, exist_ok=True)
    llama(MODELS / "llama")
    to_onnx(networks.risk(), MODELS / "risk.onnx")
    print(f"wrote {MODELS.relative_to(MODELS.parents[1])}")
