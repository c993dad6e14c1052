"""Write what the jobs of the check need into a folder: configurations, an ONNX file, a Llama.

python make.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import models
import torch
import transformers

SERVICE = """
[service.{name}]
backend = "{backend}"
model = "{model}"
inputs = [{{ name = "x", dtype = "float32", shape = {shape} }}]
outputs = [{{ name = "y", dtype = "float32", shape = {out} }}]
max_batch_rows = {rows}
{more}"""

LLAMA = """
[service.llama]
backend = "torch"
model = "llama"
task = "generate"
inputs = [{ name = "tokens", dtype = "int64", shape = [-1, 8] }]
outputs = [{ name = "tokens", dtype = "int64", shape = [-1, 12] }]
max_batch_rows = 16
"""


def service(name: str, shape: list[int], out: list[int] | None = None, **keys: object) -> str:
    values = {"backend": "torch", "model": f"models:{name}", "rows": 64, "more": ""} | keys
    return SERVICE.format(name=name, shape=[-1, *shape], out=[-1, *(out or shape)], **values)


def services() -> str:
    wide = "options = { arguments = { wide = true } }"
    tables = [
        service("where", [1]),
        service("mlp", [8]),
        service("mlp_ds", [8], backend="deepspeed", model="models:mlp"),
        service("conv", [3, 16, 16], [3, 14, 14]),
        service("fno", [4, 32]),
        service("onnx", [8], backend="onnx", model="mlp.onnx"),
        service("wide", [64], rows=65536, model="models:mlp", more=wide),
        service("identity", [1024], rows=4096),
        service("hungry", [4]),
    ]
    names = ", ".join(f'"{table.split("]")[0].split(".")[1]}"' for table in tables)
    return "".join(tables) + f"\n[pool.gpu]\nservices = [{names}]\n"


def llama(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=1,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "services.toml").write_text(services())
    (folder / "llama.toml").write_text(
        LLAMA + service("where", [1]) + '\n[pool.gpu]\nservices = ["llama", "where"]\n'
    )
    rows = torch.export.Dim("rows", min=1)
    torch.onnx.export(
        models.mlp(),
        (torch.ones(2, 8),),
        folder / "mlp.onnx",
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: rows},),
        dynamo=True,
        verbose=False,
    )
    llama(folder / "llama")
    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"torch {torch.__version__}, {', '.join(cards) or 'no GPU'}")


if __name__ == "__main__":
    main()
